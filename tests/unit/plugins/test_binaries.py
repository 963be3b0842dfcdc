"""The iptables programs that are found on a path."""

from __future__ import annotations

from pathlib import Path

import pytest
from flanneld_masq_iptables import binaries

from flanneld_masq.errors import BackendUnavailable, CommandError
from flanneld_masq.model import BackendName
from flanneld_masq.process import Completed, ProcessRunner

NAME = BackendName("iptables-legacy")


class TestPrograms:
    """A binary is chosen by the version that it prints, not by its name."""

    class Versions(ProcessRunner):
        def __init__(self, directory: Path, **said: str) -> None:
            super().__init__(path=(str(directory),))
            self.said = said

        def __call__(
            self, argv: tuple[str, ...], *, executable: str | None = None, stdin: str = "", timeout: float = 0.0
        ) -> Completed:
            assert argv == ("iptables", "--version") and executable is not None
            said = self.said[Path(executable).name.replace("-", "_")]
            if not said:
                raise CommandError(argv, "failed")
            return Completed(argv, f"{said}\n", "")

    def binary(self, path: Path, data: bytes = b"\x7fELF") -> None:
        path.write_bytes(data)
        path.chmod(0o755)

    def test_a_program_is_found_by_its_flavour(self, tmp_path: Path) -> None:
        self.binary(tmp_path / "xtables-nft-multi")
        self.binary(tmp_path / "xtables-legacy-multi")
        run = self.Versions(
            tmp_path,
            xtables_nft_multi="iptables v1.8.9 (nf_tables)",
            xtables_legacy_multi="iptables v1.8.9 (legacy)",
        )
        for flavour, name in ((binaries.NF_TABLES, "xtables-nft-multi"), (binaries.LEGACY, "xtables-legacy-multi")):
            program = binaries.find(flavour, NAME, run)
            assert program == binaries.Program(str(tmp_path / name), flavour, (1, 8, 9))
            assert str(program) == f"iptables 1.8.9 ({flavour})"

    def test_the_name_of_a_program_says_nothing(self, tmp_path: Path) -> None:
        self.binary(tmp_path / "xtables-nft-multi")
        self.binary(tmp_path / "iptables")
        run = self.Versions(
            tmp_path, xtables_nft_multi="iptables v1.8.4 (legacy)", iptables="iptables v1.8.4 (nf_tables)"
        )
        assert binaries.find(binaries.NF_TABLES, NAME, run).path == str(tmp_path / "iptables")

    def test_scripts_and_directories_are_passed_over(self, tmp_path: Path) -> None:
        self.binary(tmp_path / "iptables", b"#!/bin/sh\n")
        self.binary(tmp_path / "xtables-nft-multi")
        (tmp_path / "xtables-nft-multi").chmod(0o644)
        (tmp_path / "xtables-legacy-multi").mkdir()
        with pytest.raises(BackendUnavailable, match="no iptables program of flavour legacy was found"):
            binaries.find(binaries.LEGACY, NAME, self.Versions(tmp_path))

    @pytest.mark.parametrize(
        ("said", "flavour", "version", "random"),
        [
            ("iptables v1.8.11 (nf_tables)", "nf_tables", (1, 8, 11), True),
            ("iptables v1.6.2", "legacy", (1, 6, 2), True),
            ("iptables v1.6.1", "legacy", (1, 6, 1), False),
            ("iptables v1.4.21", "legacy", (1, 4, 21), False),
        ],
    )
    def test_the_version_decides_about_random_fully(
        self, said: str, flavour: str, version: tuple[int, ...], random: bool, tmp_path: Path
    ) -> None:
        self.binary(tmp_path / "xtables-multi")
        program = binaries.find(flavour, NAME, self.Versions(tmp_path, xtables_multi=said))
        assert (program.version, program.random_fully) == (version, random)

    @pytest.mark.parametrize("said", ["", "nftables v1.0.6", "iptables", "iptables v1." + "9" * 5000], ids=range(4))
    def test_the_error_names_other_programs(self, said: str, tmp_path: Path) -> None:
        self.binary(tmp_path / "iptables")
        with pytest.raises(BackendUnavailable) as caught:
            binaries.find(binaries.LEGACY, NAME, self.Versions(tmp_path, iptables=said))
        assert f"(found instead: {tmp_path}/iptables is not iptables)" in caught.value.reason
        assert "install the package iptables" in caught.value.remedy
