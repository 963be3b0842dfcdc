"""The observations and writes of the iptables-legacy backend, without a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest
from flanneld_masq_iptables import binaries, legacy_tables, rules
from flanneld_masq_iptables.forward_chain import Drop
from flanneld_masq_iptables.legacy_backend import IptablesLegacy, _Reading
from flanneld_masq_iptables.sockopt import TableInfo
from flanneld_masq_iptables.xtables_lock import XtablesLock

from flanneld_masq.errors import CommandError, LockHeld, RulesetError
from flanneld_masq.hookspecs import Host
from flanneld_masq.model import Change, ChangeKind, Desired, Group, ItemKind, Observation
from flanneld_masq.process import Completed, ProcessRunner
from flanneld_masq.ruleset import diff

from .ruleset import FORWARD_JUMP, FORWARD_RULE, MASQUERADE, NAT, NAT_JUMP, NAT_RULES, NOTHING, OWN, V4, lines, saved


class Tools(ProcessRunner):
    """iptables-save prints what a test says; the input of iptables-restore is kept."""

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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/thread-self/net").mkdir(parents=True)
    (tmp_path / "proc/thread-self/net/ip_tables_names").write_text("nat\n")
    return tmp_path


@pytest.fixture(autouse=True)
def without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TableInfo, "read", lambda self, table: b"")
    monkeypatch.setattr(TableInfo, "watch", lambda self, table: Quiet())
    monkeypatch.setattr(IptablesLegacy, "_reading", lambda self, place: _Reading())  # every listing is read


class Watched:
    """A table that changes when a test says so."""

    def __init__(self, changed: set[str], table: str) -> None:
        self.table, self._changed = table, changed
        changed.discard(table)

    def changed(self) -> bool:
        return self.table in self._changed


class TestReads:
    """Which tables an observation reads."""

    @pytest.fixture(autouse=True)
    def scene(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.changed: set[str] = set()
        self.read: list[str] = []
        self.now = 100.0
        self.locked = False
        (root / "proc/thread-self/net/ip_tables_names").write_text("nat\nfilter\n")
        monkeypatch.setattr(TableInfo, "watch", lambda info, table: Watched(self.changed, table))
        monkeypatch.setattr(legacy_tables, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(XtablesLock, "busy", lambda lock: self.locked)
        tools = Tools(nat=saved(*OWN, NAT_JUMP), filter=saved(table="filter", chains=()))
        self.backend = IptablesLegacy(V4, Host(tools, root))
        self.backend._installed = binaries.Program("/multi", "legacy", (1, 8, 9))
        lines_of = self.backend._lines

        def note(place: rules.Place) -> Iterator[str]:
            self.read.append(place.table)
            return lines_of(place)

        monkeypatch.setattr(self.backend, "_lines", note)
        self.first = self.observe("nat", "filter")

    def observe(self, *tables: str) -> Observation:
        self.read.clear()
        observed = self.backend.observe(tuple(Group))
        assert self.read == list(tables)
        return observed

    def test_while_the_lock_is_held_the_last_drop_is_the_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        policy: Drop | None = Drop(None)

        @contextmanager
        def entries(info: TableInfo, table: str) -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(drop=lambda hook, own: policy)

        monkeypatch.setattr(TableInfo, "entries", entries)
        self.locked = True
        found = self.backend.drops_forwarding()
        assert "policy DROP" in found, "without a last answer the table is read"
        policy = None
        assert self.backend.drops_forwarding() == found
        self.locked = False
        assert not self.backend.drops_forwarding()

    @pytest.mark.parametrize("table", ["nat", "filter"])
    def test_after_a_poll_only_the_changed_table_is_read(self, table: str) -> None:
        assert not self.backend.poll()
        self.changed.add(table)
        assert self.backend.poll()
        assert self.observe(table) == self.first
        assert not self.backend.poll()

    def test_without_a_poll_everything_is_read(self) -> None:
        self.changed.add("filter")
        self.observe("nat", "filter")
        self.observe("nat", "filter")

    def test_everything_is_read_once_a_minute(self) -> None:
        for seconds, tables in ((50.0, ("filter",)), (20.0, ("nat", "filter")), (50.0, ("filter",))):
            self.now += seconds
            self.changed.add("filter")
            assert self.backend.poll()
            self.observe(*tables)

    def test_a_write_is_read_back_whole(self) -> None:
        self.changed.add("filter")
        assert self.backend.poll()
        observed = self.observe("filter")
        self.backend.replace(Desired(V4, (MASQUERADE,)), observed, ())
        self.observe("nat", "filter")

    def test_a_change_is_not_seen_while_the_lock_is_held(self) -> None:
        self.changed.add("filter")
        self.locked = True
        assert not self.backend.poll()
        self.locked = False
        assert self.backend.poll()
        self.observe("filter")


def test_a_held_lock_is_told_from_a_failure(root: Path) -> None:
    backend = IptablesLegacy(V4, Host(Tools(nat=""), root))
    refusals = {
        (4, "Another app is currently holding the xtables lock. Stopped waiting after 5s."): LockHeld,
        (4, "iptables-restore v1.8.9: out of memory"): CommandError,
        (1, "line 4 failed"): CommandError,
    }
    for (status, stderr), kind in refusals.items():

        def refuse(*arguments: object, error: CommandError) -> NoReturn:
            raise error

        failed = CommandError(("iptables-restore",), "failed", status=status, stderr=stderr)
        backend._installed = cast("binaries.Program", SimpleNamespace(restore=partial(refuse, error=failed)))
        with pytest.raises((LockHeld, CommandError)) as caught:
            backend._restore("")
        assert type(caught.value) is kind


class Quiet:
    """A table in which nothing changes."""

    def changed(self) -> bool:
        return False


class TestListings:
    """Listings of iptables-legacy-save, read as observations."""

    def backend(self, root: Path, printed: str) -> tuple[IptablesLegacy, Tools]:
        tools = Tools(nat=printed)
        backend = IptablesLegacy(V4, Host(tools, root))
        backend._installed = binaries.Program("/multi", "legacy", (1, 8, 9))
        return backend, tools

    def observe(self, root: Path, printed: str) -> Observation:
        return self.backend(root, printed)[0].observe(tuple(Group))

    def test_the_rules_are_read_as_they_were_written(self, root: Path) -> None:
        observed = self.observe(root, saved(*OWN, NAT_JUMP))
        wanted = rules.items(Desired(V4, (MASQUERADE,)))
        assert diff.unmet(wanted, observed) == ""
        assert [item.text for item in observed.items] == [item.text for item in wanted]

    def test_foreign_rules_alone_give_no_items(self, root: Path) -> None:
        observed = self.observe(root, saved("-A POSTROUTING -j MASQUERADE"))
        assert (observed.items, observed.obstacle) == ((), "")

    def test_counters_do_not_count(self, root: Path) -> None:
        one = self.observe(root, saved(*OWN, NAT_JUMP))
        assert self.observe(root, saved(*OWN, NAT_JUMP).replace("[0:0]", "[5:99]")) == one

    def test_a_table_that_does_not_exist_is_not_listed(self, root: Path) -> None:
        (root / "proc/thread-self/net/ip_tables_names").write_text("filter\nraw\n")
        backend, tools = self.backend(root, saved())
        tools.printed = {"filter": saved(table="filter", chains=())}
        assert backend.observe((Group.MASQUERADE,)).items == ()
        (root / "proc/thread-self/net/ip_tables_names").unlink()
        tools.printed = {}
        assert backend.observe(tuple(Group)).items == ()

    def test_neighbours(self, root: Path) -> None:
        before, after = "-A POSTROUTING -s 1.1.1.1/32 -j ACCEPT", "-A POSTROUTING -s 2.2.2.2/32 -j ACCEPT"
        (around, *_) = self.observe(root, saved(*OWN, before, NAT_JUMP, after)).neighbours
        (other, *_) = self.observe(root, saved(*OWN, after, NAT_JUMP, before)).neighbours
        assert (around.place, len(around.before), len(around.after)) == (NAT.jump, 1, 1)
        assert (around.before, around.after) == (other.after, other.before)

    @pytest.mark.parametrize(
        "line",
        [
            '-A POSTROUTING -m comment --comment "flanneld-masq:eeeeeeeeeeee" -g FLANNELD-MASQ',
            '-A POSTROUTING -s 1.1.1.1/32 -m comment --comment "flanneld-masq:eeeeeeeeeeee" -j FLANNELD-MASQ',
            '-A POSTROUTING -m comment --comment "flanneld-masq:eeeeeeeeeeee" -j ACCEPT',
        ],
    )
    def test_a_jump_in_another_form_is_an_item(self, line: str, root: Path) -> None:
        (item,) = self.observe(root, saved(line)).items
        assert (item.kind, item.place, item.text) == ("jump", NAT.jump, line)

    def test_a_stray_jump_is_an_item(self, root: Path) -> None:
        stray = NAT_JUMP.replace("POSTROUTING", "PREROUTING")
        (item,) = self.observe(root, saved(stray)).items
        assert (item.kind, item.place, item.tag) == ("jump", "nat PREROUTING", "eeeeeeeeeeee")

    @pytest.mark.parametrize(
        "line",
        [
            "-A PREROUTING -j FLANNELD-MASQ",
            "-A POSTROUTING -j FLANNELD-MASQ",
            "-A POSTROUTING -g FLANNELD-MASQ",
            "-A POSTROUTING -s 1.1.1.1/32 -m comment --comment mine -j FLANNELD-MASQ",
            '-A POSTROUTING -m comment --comment "flanneld-masq: do not NAT the office" -j RETURN',
            '-A POSTROUTING -m comment --comment "flanneld-masq:eeeeeeeeeeee2" -j FLANNELD-MASQ',
            '-A POSTROUTING -m comment --comment "flanneld-masq:EEEEEEEEEEEE" -j FLANNELD-MASQ',
            '-A POSTROUTING -m comment --comment "flanneld-masq:eeeeeeeeeee" -j FLANNELD-MASQ',
            '-A POSTROUTING -m comment --comment "flanneld-masq:eeeeeeeeeeee\n" -j FLANNELD-MASQ',
            '-A POSTROUTING -m comment --comment "xflanneld-masq:eeeeeeeeeeee" -j FLANNELD-MASQ',
            "-A POSTROUTING -j FLANNELD-MASQUERADE",
            '-A POSTROUTING -m comment --comment "-j FLANNELD-MASQ" -j ACCEPT',
            '-A POSTROUTING -m comment --comment "say \\"-j FLANNELD-MASQ\\" to it" -j ACCEPT',
            '-A POSTROUTING -m comment --comment "it\\\'s \\\\ \\" fine" -j ACCEPT',
            '-A POSTROUTING -m comment --comment "not flanneld-masq:eeeeeeeeeeee" -j ACCEPT',
            '-A POSTROUTING -m comment --comment ":FLANNELD-MASQ - [0:0]" -j ACCEPT',
            "-A POSTROUTING -m comment --comment --comment -j ACCEPT",
        ],
    )
    def test_a_rule_that_only_resembles_a_jump_is_foreign(self, line: str, root: Path) -> None:
        assert self.observe(root, saved(line)).items == ()

    def test_a_foreign_rule_in_the_own_chain_is_an_item(self, root: Path) -> None:
        foreign = "-A FLANNELD-MASQ -s 1.1.1.1/32 -j DROP"
        observed = self.observe(root, saved(*OWN, foreign, NAT_JUMP))
        assert [item.text for item in observed.items if not item.tag and item.kind is ItemKind.RULE] == [foreign]

    def test_a_newline_in_a_foreign_comment_is_accepted(self, root: Path) -> None:
        line = '-A POSTROUTING -m comment --comment "one\ntwo" -j ACCEPT'
        backend, _ = self.backend(root, saved(*OWN, line))
        assert backend.observe((Group.MASQUERADE,)).items

    def test_a_write_deletes_exactly_what_was_read(self, root: Path) -> None:
        stale = '-A POSTROUTING -m comment --comment "flanneld-masq:01d01d01d01d" -j FLANNELD-MASQ'
        backend, tools = self.backend(root, saved(*OWN, "-A POSTROUTING -j ACCEPT", stale, stale))
        observed = backend.observe((Group.MASQUERADE,))
        assert backend.replace(Desired(V4, (MASQUERADE,)), observed, ()) == 1
        (fed,) = tools.fed
        deletion = stale.replace("-A", "-D", 1)
        jumps = (deletion, deletion, NAT_JUMP)
        assert fed == lines("*nat", ":FLANNELD-MASQ - [0:0]", *NAT_RULES, *jumps, "COMMIT")

    def test_removing_one_group_leaves_the_other_table_alone(self, root: Path) -> None:
        (root / "proc/thread-self/net/ip_tables_names").write_text("nat\nfilter\n")
        backend, tools = self.backend(root, saved(*OWN, NAT_JUMP))
        tools.printed["filter"] = saved(
            ":FLANNELD-MASQ-FWD - [0:0]", FORWARD_RULE, FORWARD_JUMP, table="filter", chains=()
        )
        observed = backend.observe(tuple(Group))
        leftovers = tuple(
            Change(ChangeKind.EXTRA, item.place, "", item.text) for item in observed.items if "FWD" in item.place
        )
        assert backend.replace(Desired(V4, (MASQUERADE,)), observed, leftovers) == 1
        deletion = FORWARD_JUMP.replace("-A", "-D", 1)
        assert tools.fed == [lines("*filter", deletion, "-F FLANNELD-MASQ-FWD", "-X FLANNELD-MASQ-FWD", "COMMIT")]

    def test_the_removal_of_all_groups(self, root: Path) -> None:
        backend, tools = self.backend(root, saved(*OWN, NAT_JUMP))
        observed = backend.observe((Group.MASQUERADE,))
        assert backend.replace(NOTHING, observed, ()) == 1
        deletion = NAT_JUMP.replace("-A", "-D", 1)
        assert tools.fed == [lines("*nat", deletion, "-F FLANNELD-MASQ", "-X FLANNELD-MASQ", "COMMIT")]
        assert backend.replace(NOTHING, Observation(), ()) == 0
        assert len(tools.fed) == 1


class TestLeftovers:
    def test_without_the_program_they_are_an_error(self, root: Path) -> None:
        """They stay in force, so it must not go unsaid."""
        backend = IptablesLegacy(V4, Host(Tools(), root))
        with pytest.raises(RulesetError, match="legacy table nat holds rules of flanneld-masq"):
            backend.observe(tuple(Group))

    def test_a_table_without_ours_is_not_listed(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(IptablesLegacy, "_reading", lambda self, place: _Reading(None))
        assert IptablesLegacy(V4, Host(Tools(), root)).observe(tuple(Group)).items == ()

    def test_without_any_table_there_is_nothing_to_poll(self, root: Path) -> None:
        backend = IptablesLegacy(V4, Host(Tools(), root))
        assert backend.poll() is True
        (root / "proc/thread-self/net/ip_tables_names").write_text("mangle\n")
        assert backend.poll() is None
