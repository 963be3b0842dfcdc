"""The same rules in the languages of nft and iptables-restore, and what a listing of iptables-save says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from flanneld_masq_iptables import binaries, legacy_backend, rules
from flanneld_masq_iptables.legacy_backend import IptablesLegacy
from flanneld_masq_iptables.nft_backend import IptablesNft
from flanneld_masq_iptables.rules import PLACES
from flanneld_masq_nft import render
from flanneld_masq_nft.backend import NftBackend
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.errors import CommandError
from flanneld_masq.hookspecs import Host
from flanneld_masq.model import (
    Change,
    ChangeKind,
    Desired,
    Family,
    Group,
    GroupRules,
    Item,
    ItemKind,
    Mark,
    Observation,
    Position,
    Rule,
    Verdict,
)
from flanneld_masq.process import Completed, ProcessRunner
from flanneld_masq.ruleset import diff

V4, V6 = Family.IPV4, Family.IPV6
POD, CLUSTER = ip_network("10.244.1.0/24"), ip_network("10.244.0.0/16")
MULTICAST = ip_network("224.0.0.0/4")
MASQUERADE = GroupRules(
    Group.MASQUERADE,
    (
        Rule("1", "", Verdict.RETURN, mark=Mark(0x4000, 0x4000), tag="aa"),
        Rule("2", "", Verdict.RETURN, src=POD, dst=CLUSTER, tag="bb"),
        Rule("6", "", Verdict.MASQUERADE, src=CLUSTER, dst_not=MULTICAST, fully_random=True, tag="cc"),
        Rule("7", "", Verdict.MASQUERADE, dst=CLUSTER, tag="dd"),
    ),
    jump_tag="ee",
)
FORWARD = GroupRules(Group.FORWARD, (Rule("forward-src", "", Verdict.ACCEPT, src=CLUSTER, tag="ff"),), jump_tag="gg")
BOTH = Desired(V4, (MASQUERADE, FORWARD))
NOTHING = Desired(V4)
NAT, FILTER = PLACES[Group.MASQUERADE], PLACES[Group.FORWARD]

NAT_RULES = (
    '-A FLANNELD-MASQ -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld-masq:aa" -j RETURN',
    '-A FLANNELD-MASQ -s 10.244.1.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld-masq:bb" -j RETURN',
    '-A FLANNELD-MASQ -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld-masq:cc" '
    "-j MASQUERADE --random-fully",
    '-A FLANNELD-MASQ -d 10.244.0.0/16 -m comment --comment "flanneld-masq:dd" -j MASQUERADE',
)
NAT_JUMP = '-A POSTROUTING -m comment --comment "flanneld-masq:ee" -j FLANNELD-MASQ'
FORWARD_RULE = '-A FLANNELD-MASQ-FWD -s 10.244.0.0/16 -m comment --comment "flanneld-masq:ff" -j ACCEPT'
FORWARD_JUMP = '-A FORWARD -m comment --comment "flanneld-masq:gg" -j FLANNELD-MASQ-FWD'


def lines(*found: str) -> str:
    return "".join(f"{line}\n" for line in found)


class TestRestoreInput:
    """Both flavours are fed the same."""

    @pytest.fixture(params=[IptablesNft, IptablesLegacy])
    def backend(self, request: pytest.FixtureRequest) -> IptablesNft | IptablesLegacy:
        found: IptablesNft | IptablesLegacy = request.param(V4, Host(ProcessRunner(path=())))
        return found

    def test_all_of_it(self, backend: IptablesNft | IptablesLegacy) -> None:
        assert backend.render(BOTH) == lines(
            "*nat",
            ":FLANNELD-MASQ - [0:0]",
            *NAT_RULES,
            NAT_JUMP,
            "COMMIT",
            "*filter",
            ":FLANNELD-MASQ-FWD - [0:0]",
            FORWARD_RULE,
            FORWARD_JUMP,
            "COMMIT",
        )

    def test_first(self, backend: IptablesNft | IptablesLegacy) -> None:
        text = backend.render(replace(BOTH, position=Position.FIRST))
        assert text == backend.render(BOTH).replace("-A POSTROUTING", "-I POSTROUTING").replace(
            "-A FORWARD", "-I FORWARD"
        )
        assert text.count("-I ") == 2

    def test_one_group(self, backend: IptablesNft | IptablesLegacy) -> None:
        text = backend.render(Desired(V4, (FORWARD,)))
        assert text.startswith("*filter\n") and "nat" not in text

    def test_nothing(self, backend: IptablesNft | IptablesLegacy) -> None:
        assert backend.render(NOTHING) == ""

    def test_no_option_is_empty(self, backend: IptablesNft | IptablesLegacy) -> None:
        for line in backend.render(BOTH).splitlines():
            assert "  " not in line and '""' not in line and line == line.strip()

    def test_what_is_wanted_is_what_is_written(self, backend: IptablesNft | IptablesLegacy) -> None:
        wanted = backend.wanted(BOTH)
        assert [item.kind for item in wanted] == ["chain", *["rule"] * 4, "jump", "chain", "rule", "jump"]
        written = [line for line in backend.render(BOTH).splitlines() if line.startswith("-A")]
        assert [item.text for item in wanted if item.kind is not ItemKind.CHAIN] == written
        assert {item.place for item in wanted} == {NAT.own, NAT.jump, FILTER.own, FILTER.jump}


class TestNftInput:
    BLOCK = """\
table ip flanneld-masq {
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment "flanneld-masq:aa"
		ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return comment "flanneld-masq:bb"
		ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "flanneld-masq:cc"
		ip daddr 10.244.0.0/16 masquerade comment "flanneld-masq:dd"
	}

	chain forward {
		type filter hook forward priority 0; policy accept;
		ip saddr 10.244.0.0/16 accept comment "flanneld-masq:ff"
	}
}
"""

    def test_all_of_it(self) -> None:
        assert render.render(BOTH) == self.BLOCK
        assert NftBackend(V4, Host(ProcessRunner(path=()))).render(BOTH) == self.BLOCK

    def test_position_means_nothing_to_it(self) -> None:
        assert render.render(replace(BOTH, position=Position.FIRST)) == self.BLOCK

    def test_ipv6(self) -> None:
        network = ip_network("fd00:10:244::/56")
        group = GroupRules(Group.FORWARD, (Rule("x", "", Verdict.ACCEPT, dst=network, tag="aa"),))
        assert render.render(Desired(V6, (group,))).splitlines() == [
            "table ip6 flanneld-masq {",
            "\tchain forward {",
            "\t\ttype filter hook forward priority 0; policy accept;",
            '\t\tip6 daddr fd00:10:244::/56 accept comment "flanneld-masq:aa"',
            "\t}",
            "}",
        ]

    def test_nothing(self) -> None:
        assert render.render(NOTHING) == ""
        assert render.items(NOTHING) == ()

    def test_chains_are_emptied_by_name(self) -> None:
        assert render.flush(BOTH) == lines(
            "flush chain ip flanneld-masq postrouting", "flush chain ip flanneld-masq forward"
        )

    def test_removal_works_whether_it_is_there_or_not(self) -> None:
        assert render.removal(V6) == lines("add table ip6 flanneld-masq", "delete table ip6 flanneld-masq")

    def test_what_is_wanted_is_what_is_written(self) -> None:
        wanted = render.items(BOTH)
        assert [item.kind for item in wanted] == ["table", "chain", *["rule"] * 4, "chain", "rule"]
        assert all(item.text in self.BLOCK for item in wanted if item.kind is not ItemKind.TABLE)
        assert wanted[0].text == "table ip flanneld-masq holding 2 chains, sets and objects"


class TestJumps:
    RIGHT = Item(ItemKind.JUMP, NAT.jump, NAT_JUMP, raw=NAT_JUMP, handle=1)
    OTHER = Item(ItemKind.JUMP, NAT.jump, NAT_JUMP.replace(":ee", ":old"), raw="old", handle=2)
    STRAY = Item(ItemKind.JUMP, "nat PREROUTING", NAT_JUMP.replace("POSTROUTING", "PREROUTING"), raw="stray", handle=3)
    FILTERS = Item(ItemKind.JUMP, FILTER.jump, FORWARD_JUMP, raw=FORWARD_JUMP, handle=4)

    @pytest.mark.parametrize(
        ("found", "needed", "stale"),
        [
            ([], True, []),
            ([RIGHT], False, []),
            ([OTHER], True, [OTHER]),
            ([STRAY], True, [STRAY]),
            ([RIGHT, OTHER, STRAY], False, [OTHER, STRAY]),
            ([RIGHT, RIGHT], True, [RIGHT, RIGHT]),
            ([FILTERS], True, []),
            ([Item(ItemKind.RULE, NAT.jump, NAT_JUMP)], True, []),
        ],
    )
    def test_which_stay(self, found: list[Item], needed: bool, stale: list[Item]) -> None:
        observed = Observation(tuple(found))
        assert rules.jumps_to_replace(NAT, MASQUERADE, observed, ()) == (needed, tuple(stale))

    def test_one_that_was_moved_goes(self) -> None:
        observed = Observation((self.RIGHT,))
        moved = Change(ChangeKind.MOVED, NAT.jump, "first", "behind")
        assert rules.jumps_to_replace(NAT, MASQUERADE, observed, (moved,)) == (True, (self.RIGHT,))
        elsewhere = Change(ChangeKind.MOVED, FILTER.jump, "first", "behind")
        assert rules.jumps_to_replace(NAT, MASQUERADE, observed, (elsewhere,)) == (False, ())


class Tools(ProcessRunner):
    """iptables-save prints what a test says; what iptables-restore is fed is kept."""

    def __init__(self, **printed: str) -> None:
        super().__init__(path=())
        self.printed = printed
        self.fed: list[str] = []

    def __call__(
        self, argv: tuple[str, ...], *, executable: str | None = None, stdin: str = "", timeout: float = 0.0
    ) -> Completed:
        assert executable == "/multi", "one program, whatever the names on the path are"
        if argv == ("iptables-restore", "--noflush", "--wait=5"):
            self.fed.append(stdin)
            return Completed(argv, "", "")
        name, option, table = argv
        assert (name, option) == ("iptables-save", "-t"), argv
        return Completed(argv, self.printed[table], "")


CHAINS = (":PREROUTING ACCEPT [7:8]", ":INPUT ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", ":POSTROUTING ACCEPT [9:10]")


def saved(*found: str, table: str = "nat", chains: Sequence[str] = CHAINS) -> str:
    return lines("# Generated by iptables-save v1.8.9", f"*{table}", *chains, *found, "COMMIT", "# Completed on Mon")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/ip_tables_names").write_text("nat\n")
    return tmp_path


@pytest.fixture(autouse=True)
def without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_backend.TableInfo, "read", lambda self, table: b"")
    monkeypatch.setattr(legacy_backend.TableInfo, "look", lambda self, table: Quiet())
    monkeypatch.setattr(IptablesLegacy, "_fingerprint", lambda self, place: b"")  # so a listing is read each time


class Quiet:
    """A table in which nothing changes."""

    def changed(self) -> bool:
        return False


class TestListing:
    """What iptables-legacy-save printed, read as an observation."""

    def backend(self, root: Path, printed: str) -> tuple[IptablesLegacy, Tools]:
        tools = Tools(nat=printed)
        backend = IptablesLegacy(V4, Host(tools, root))
        backend._found = binaries.Program("/multi", "legacy", (1, 8, 9))
        return backend, tools

    def observe(self, root: Path, printed: str) -> Observation:
        return self.backend(root, printed)[0].observe(tuple(Group))

    def refused(self, root: Path, printed: str) -> str:
        with pytest.raises(CommandError) as caught:
            self.observe(root, printed)
        return str(caught.value)

    OURS = (":FLANNELD-MASQ - [0:0]", *NAT_RULES)

    def test_ours_is_found_as_it_was_written(self, root: Path) -> None:
        observed = self.observe(root, saved(*self.OURS, NAT_JUMP))
        wanted = rules.items(Desired(V4, (MASQUERADE,)))
        assert diff.unmet(wanted, observed) == ""
        assert [item.text for item in observed.items] == [item.text for item in wanted]

    def test_where_nothing_of_ours_is(self, root: Path) -> None:
        observed = self.observe(root, saved("-A POSTROUTING -j MASQUERADE"))
        assert (observed.items, observed.obstacle) == ((), "")

    def test_counters_do_not_count(self, root: Path) -> None:
        one = self.observe(root, saved(*self.OURS, NAT_JUMP))
        assert self.observe(root, saved(*self.OURS, NAT_JUMP).replace("[0:0]", "[5:99]")) == one

    def test_a_table_that_is_not_there_is_not_looked_at(self, root: Path) -> None:
        (root / "proc/net/ip_tables_names").write_text("filter\nraw\n")
        backend, tools = self.backend(root, saved())
        tools.printed = {"filter": saved(table="filter", chains=())}
        assert backend.observe((Group.MASQUERADE,)).items == ()
        (root / "proc/net/ip_tables_names").unlink()
        tools.printed = {}
        assert backend.observe(tuple(Group)).items == ()

    def test_neighbours(self, root: Path) -> None:
        before, after = "-A POSTROUTING -s 1.1.1.1/32 -j ACCEPT", "-A POSTROUTING -s 2.2.2.2/32 -j ACCEPT"
        (around, *_) = self.observe(root, saved(*self.OURS, before, NAT_JUMP, after)).neighbours
        (other, *_) = self.observe(root, saved(*self.OURS, after, NAT_JUMP, before)).neighbours
        assert (around.place, len(around.before), len(around.after)) == (NAT.jump, 1, 1)
        assert (around.before, around.after) == (other.after, other.before)

    @pytest.mark.parametrize(
        "line",
        [
            "-A POSTROUTING -j FLANNELD-MASQ",
            "-A POSTROUTING -g FLANNELD-MASQ",
            "-A POSTROUTING -s 1.1.1.1/32 -m comment --comment mine -j FLANNELD-MASQ",
            '-A POSTROUTING -m comment --comment "flanneld-masq:ee" -j ACCEPT',
        ],
    )
    def test_jumps_that_are_not_as_we_write_them(self, line: str, root: Path) -> None:
        (item,) = self.observe(root, saved(line)).items
        assert (item.kind, item.place, item.text) == ("jump", NAT.jump, line)

    def test_a_stray_jump_of_ours(self, root: Path) -> None:
        stray = NAT_JUMP.replace("POSTROUTING", "PREROUTING")
        (item,) = self.observe(root, saved(stray)).items
        assert (item.kind, item.place, item.tag) == ("jump", "nat PREROUTING", "ee")

    @pytest.mark.parametrize(
        "line",
        [
            "-A PREROUTING -j FLANNELD-MASQ",
            "-A POSTROUTING -j FLANNELD-MASQUERADE",
            '-A POSTROUTING -m comment --comment "-j FLANNELD-MASQ" -j ACCEPT',
            '-A POSTROUTING -m comment --comment "say \\"-j FLANNELD-MASQ\\" to it" -j ACCEPT',
            '-A POSTROUTING -m comment --comment "it\\\'s \\\\ \\" fine" -j ACCEPT',
            '-A POSTROUTING -m comment --comment "not flanneld-masq:ee" -j ACCEPT',
            '-A POSTROUTING -m comment --comment ":FLANNELD-MASQ - [0:0]" -j ACCEPT',
            "-A POSTROUTING -m comment --comment --comment -j ACCEPT",
        ],
    )
    def test_what_only_looks_like_ours(self, line: str, root: Path) -> None:
        assert self.observe(root, saved(line)).items == ()

    def test_a_foreign_rule_in_our_chain(self, root: Path) -> None:
        foreign = "-A FLANNELD-MASQ -s 1.1.1.1/32 -j DROP"
        observed = self.observe(root, saved(*self.OURS, foreign, NAT_JUMP))
        assert [item.text for item in observed.items if not item.tag and item.kind is ItemKind.RULE] == [foreign]

    @pytest.mark.parametrize("cut", range(1, 8))
    def test_a_listing_that_was_cut_is_never_an_answer(self, cut: int, root: Path) -> None:
        whole = saved(*self.OURS, NAT_JUMP).splitlines()[:-1]
        assert "did not print the whole of table nat" in self.refused(root, lines(*whole[:-cut]))

    @pytest.mark.parametrize(
        "printed",
        [
            "",
            "# Table `nat' is incompatible, use 'nft' tool.\n",
            "# Generated by iptables-save v1.8.9\n# Completed on Mon\n",
            "COMMIT\n",
            "*nat\n",
            "*filter\nCOMMIT\n",
        ],
    )
    def test_nothing_to_read_is_not_nothing_there(self, printed: str, root: Path) -> None:
        assert "did not print the whole of table nat" in self.refused(root, printed)

    def test_another_table_s_rules_are_not_read_as_ours(self, root: Path) -> None:
        two = saved(*self.OURS, NAT_JUMP) + saved(table="filter", chains=())
        assert "neither chain nor rule" in self.refused(root, two)

    def test_a_line_that_makes_no_sense(self, root: Path) -> None:
        assert "neither chain nor rule: 'Killed'" in self.refused(root, saved("Killed"))

    def test_a_quote_that_is_left_open(self, root: Path) -> None:
        line = '-A POSTROUTING -m comment --comment "FLANNELD-MASQ -j ACCEPT'
        assert "did not print the whole of table" in self.refused(root, saved(line))

    def test_a_newline_in_the_comment_of_somebody_is_part_of_the_comment(self, root: Path) -> None:
        line = '-A POSTROUTING -m comment --comment "one\ntwo" -j ACCEPT'
        backend, _ = self.backend(root, saved(*self.OURS, line))
        assert backend.observe((Group.MASQUERADE,)).items

    @given(st.text(alphabet='ab"\\\n', max_size=40))
    def test_the_quick_way_to_split_a_listing_is_the_slow_one_s_equal(self, text: str) -> None:
        joined = [line for line in legacy_backend._joined(text.split("\n")) if line]
        assert [line for line in legacy_backend._logical_lines(text) if line] == joined

    def test_what_is_written_removes_just_what_was_read(self, root: Path) -> None:
        stale = '-A POSTROUTING -m comment --comment "flanneld-masq:old" -j FLANNELD-MASQ'
        backend, tools = self.backend(root, saved(*self.OURS, "-A POSTROUTING -j ACCEPT", stale, stale))
        observed = backend.observe((Group.MASQUERADE,))
        assert backend.replace(Desired(V4, (MASQUERADE,)), observed, ()) == 1
        (fed,) = tools.fed
        deletion = stale.replace("-A", "-D", 1)
        jumps = (deletion, deletion, NAT_JUMP)
        assert fed == lines("*nat", ":FLANNELD-MASQ - [0:0]", *NAT_RULES, *jumps, "COMMIT")

    def test_removal(self, root: Path) -> None:
        backend, tools = self.backend(root, saved(*self.OURS, NAT_JUMP))
        observed = backend.observe((Group.MASQUERADE,))
        assert backend.replace(NOTHING, observed, ()) == 1
        deletion = NAT_JUMP.replace("-A", "-D", 1)
        assert tools.fed == [lines("*nat", deletion, "-F FLANNELD-MASQ", "-X FLANNELD-MASQ", "COMMIT")]
        assert backend.replace(NOTHING, Observation(), ()) == 0
        assert len(tools.fed) == 1


class TestPrograms:
    """Which binary is taken: by what it says of itself, not by its name."""

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

    def test_by_flavour(self, tmp_path: Path) -> None:
        self.binary(tmp_path / "xtables-nft-multi")
        self.binary(tmp_path / "xtables-legacy-multi")
        run = self.Versions(
            tmp_path,
            xtables_nft_multi="iptables v1.8.9 (nf_tables)",
            xtables_legacy_multi="iptables v1.8.9 (legacy)",
        )
        for flavour, name in (("nf_tables", "xtables-nft-multi"), ("legacy", "xtables-legacy-multi")):
            found = binaries.find(flavour, legacy_backend.NAME, run)
            assert found == binaries.Program(str(tmp_path / name), flavour, (1, 8, 9))
            assert str(found) == f"iptables 1.8.9 ({flavour})"

    def test_a_name_says_nothing(self, tmp_path: Path) -> None:
        self.binary(tmp_path / "xtables-nft-multi")
        self.binary(tmp_path / "iptables")
        run = self.Versions(
            tmp_path, xtables_nft_multi="iptables v1.8.4 (legacy)", iptables="iptables v1.8.4 (nf_tables)"
        )
        assert binaries.find("nf_tables", legacy_backend.NAME, run).path == str(tmp_path / "iptables")

    def test_scripts_and_things_that_cannot_be_started_are_passed_over(self, tmp_path: Path) -> None:
        self.binary(tmp_path / "iptables", b"#!/bin/sh\n")
        self.binary(tmp_path / "xtables-nft-multi")
        (tmp_path / "xtables-nft-multi").chmod(0o644)
        (tmp_path / "xtables-legacy-multi").mkdir()
        with pytest.raises(binaries.BackendUnavailable, match="no iptables program of flavour legacy was found"):
            binaries.find("legacy", legacy_backend.NAME, self.Versions(tmp_path))

    @pytest.mark.parametrize(
        ("said", "flavour", "version", "random"),
        [
            ("iptables v1.8.11 (nf_tables)", "nf_tables", (1, 8, 11), True),
            ("iptables v1.6.2", "legacy", (1, 6, 2), True),
            ("iptables v1.6.1", "legacy", (1, 6, 1), False),
            ("iptables v1.4.21", "legacy", (1, 4, 21), False),
        ],
    )
    def test_versions(self, said: str, flavour: str, version: tuple[int, ...], random: bool, tmp_path: Path) -> None:
        self.binary(tmp_path / "xtables-multi")
        found = binaries.find(flavour, legacy_backend.NAME, self.Versions(tmp_path, xtables_multi=said))
        assert (found.version, found.random_fully) == (version, random)

    @pytest.mark.parametrize("said", ["", "nftables v1.0.6", "iptables"])
    def test_what_was_found_instead_is_said(self, said: str, tmp_path: Path) -> None:
        self.binary(tmp_path / "iptables")
        with pytest.raises(binaries.BackendUnavailable) as caught:
            binaries.find("legacy", legacy_backend.NAME, self.Versions(tmp_path, iptables=said))
        assert f"(found instead: {tmp_path}/iptables is not iptables)" in caught.value.reason
        assert "install the package iptables" in caught.value.remedy
