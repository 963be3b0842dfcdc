"""Results are resumed, and the page ticks only what ran and held."""

from __future__ import annotations

from pathlib import Path

from ...matrix import page
from ...matrix.guest.console import Outcome
from ...matrix.plan import MACHINES
from ...matrix.results import VERSIONS, Results
from ...system.packages import TREE

MACHINE = next(machine for machine in MACHINES if machine.name == "bookworm")
CELLS = MACHINE.boots[0].cells


def results(directory: Path, package: bytes = b"one") -> Results:
    deb = directory / "deb"
    deb.write_bytes(package)
    return Results(directory, deb)


def test_only_what_is_missing_or_failed_runs_again(tmp_path: Path) -> None:
    kept = results(tmp_path)
    assert kept.missing("bookworm", CELLS) == CELLS
    kept.keep("bookworm", Outcome("nft", True, "", {}))
    kept.keep("bookworm", Outcome("cgroup-v1", None, "", {}))
    kept.keep("bookworm", Outcome("selftest-nft", False, "", {}))
    assert results(tmp_path).missing("bookworm", ("nft", "cgroup-v1", "selftest-nft", "service")) == (
        "selftest-nft",
        "service",
    )
    assert results(tmp_path).missing("trixie", ("nft",)) == ("nft",)
    assert results(tmp_path, b"another").missing("bookworm", ("nft",)) == ("nft",)


def test_a_cell_without_result_is_never_ticked(tmp_path: Path) -> None:
    text = page.render((MACHINE,), results(tmp_path))
    assert "yes" not in text.split("## Cells")[1]
    assert "### Debian 12\n\nNot run yet.\n" in text
    assert ": not run" not in text


def test_the_published_page_has_the_introduction_of_now(tmp_path: Path) -> None:
    introduction = page.render((), results(tmp_path)).partition("## Machines")[0]
    assert (TREE / "docs" / "compatibility.md").read_text(encoding="utf-8").startswith(introduction)


def test_a_machine_with_a_result_names_its_cells_without_one(tmp_path: Path) -> None:
    kept = results(tmp_path)
    kept.keep("bookworm", Outcome("nft", True, "12 damages repaired", {}))
    text = page.render((MACHINE,), kept)
    assert text.count(": not run\n") == len(MACHINE.cells) - 1
    assert "Not run yet" not in text


def test_the_page_shows_each_outcome(tmp_path: Path) -> None:
    kept = results(tmp_path)
    kept.keep("bookworm", Outcome(VERSIONS, True, "", {"kernel": "6.1.0-1-amd64", "factor": 12.5}))
    kept.keep("bookworm", Outcome("nft", True, "12 damages repaired", {"cpu_seconds": 0.25}))
    kept.keep("bookworm", Outcome("selftest-nft", False, "two\n lines <b>", {}))
    kept.keep("bookworm", Outcome("cgroup-v1", None, "no such systemd", {}))
    text = page.render((MACHINE,), kept)
    assert "| Debian 12 | 6.1.0-1-amd64 |" in text
    assert "| 12.5 x |" in text
    assert "| nft: damage and repair | yes |" in text
    assert "| nft | 0.25 |" in text
    assert "| `selftest`, nft | **no** |" in text
    assert "**fails**: two lines &lt;b>" in text
    assert "| the same, cgroup v1 |  |" in text
    assert "* the same, cgroup v1: cannot be run: no such systemd" in text
