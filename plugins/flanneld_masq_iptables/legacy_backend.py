"""iptables-legacy: written by iptables-legacy-restore, read by iptables-legacy-save.

The tool is asked for what it has not printed before: whether the entries of a table are those of an earlier listing
the kernel tells itself, without a process.

A table of ip_tables comes into being by the first look at it, so none is looked at that
/proc/net/ip_tables_names does not list.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping

from flanneld_masq import footprint
from flanneld_masq.errors import BackendUnavailable, CommandError, KernelError, RulesetError
from flanneld_masq.hookspecs import Host
from flanneld_masq.model import (
    COMMENT_PREFIX,
    BackendName,
    Change,
    Desired,
    Family,
    FamilyLease,
    Group,
    GroupRules,
    Item,
    ItemKind,
    Neighbours,
    Observation,
    Probe,
    Survey,
)
from flanneld_masq.process import Completed
from flanneld_masq.ruleset import flannel_rules
from flanneld_masq_iptables import binaries, rules
from flanneld_masq_iptables.rules import PLACES, Place
from flanneld_masq_iptables.sockopt import Look, TableInfo

NAME = BackendName("iptables-legacy")
_TABLES = frozenset(place.table for place in PLACES.values())
_REMEMBERED = 4  # of a table: as we want it, and what others make of it
Observed = tuple[tuple[Item, ...], Neighbours]
_QUOTE = re.compile(r'(?<!\\)"')


class IptablesLegacy:
    name = NAME

    def __init__(self, family: Family, host: Host) -> None:
        self.family = family
        self._host = host
        self._found: binaries.Program | None = None
        self._info = TableInfo(family)
        self._looks: Mapping[str, Look] = {}  # at our tables, those that exist, as `observe` found them
        self._surveyed: tuple[tuple[object, tuple[FamilyLease, ...]], Survey] | None = None
        self._known: dict[Place, dict[bytes, Observed]] = {}  # what was listed, by the fingerprint of the entries

    @property
    def _program(self) -> binaries.Program:
        if self._found is None:
            self._found = binaries.find("legacy", NAME, self._host.run)
        return self._found

    def probe(self) -> Probe:
        self._found = None
        self._known.clear()  # another release of the tools may print rules otherwise
        try:
            program = self._program
            self._tables()
        except BackendUnavailable as error:
            return Probe(False, error.reason, error.remedy)
        except KernelError as error:
            return Probe(False, str(error), "run as root")
        if not self._kernel_has_it():
            module = self.family.data.tools.replace("tables", "_tables")
            remedy = f"load it with `modprobe {module}`, or choose another backend: recent kernels come without"
            return Probe(False, f"the kernel has no {module}, nor a module of that name", remedy, (str(program),))
        return Probe(True, versions=(str(program),), random_fully=program.random_fully)

    def wanted(self, desired: Desired) -> tuple[Item, ...]:
        return rules.items(desired)

    def render(self, desired: Desired) -> str:
        return rules.restore_input(desired, lambda place, group: [rules.new_jump(place, group, desired.position)])

    def observe(self, groups: Collection[Group]) -> Observation:
        tables = self._tables()
        if self.poll():
            self._looks = {table: self._info.look(table) for table in tables & _TABLES}
        found = [self._observe(PLACES[group]) for group in Group if group in groups and PLACES[group].table in tables]
        items = tuple(item for observed, _ in found for item in observed)
        return Observation(items, tuple(around for _, around in found))

    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        def jumps(place: Place, group: GroupRules) -> list[str]:
            needed, stale = rules.jumps_to_replace(place, group, observed, changes)
            new = [rules.new_jump(place, group, desired.position)] if needed else []
            return [*map(_deletion, stale), *new]

        wanted = {group.group for group in desired.groups}
        transactions = 0
        if desired.groups:
            self._restore(rules.restore_input(desired, jumps))
            transactions += len(desired.groups)
        stuck: list[str] = []
        for group, place in PLACES.items():
            if group not in wanted:
                transactions += self._remove(place, observed, stuck)
        if stuck:
            raise RulesetError("; ".join(stuck))
        return transactions

    def _restore(self, text: str) -> None:
        self._program.restore(self._host.run, self.family.data.tools, text)

    def _remove(self, place: Place, observed: Observation, stuck: list[str]) -> int:
        items = [item for item in observed.items if item.place.split(" ", 1)[0] == place.table]
        lines = [f"*{place.table}", *(_deletion(item) for item in items if item.kind is ItemKind.JUMP)]
        if not items:
            return 0
        if not any(item.kind is ItemKind.CHAIN for item in items):
            self._restore("\n".join([*lines, "COMMIT", ""]))
            return 1
        emptied = [*lines, f"-F {place.chain}"]
        try:
            self._restore("\n".join([*emptied, f"-X {place.chain}", "COMMIT", ""]))
        except CommandError:
            # the whole of it failed; without the last step it works where a rule of others jumps to the chain
            self._restore("\n".join([*emptied, "COMMIT", ""]))
            listing = f"{self.family.data.tools}-legacy-save -t {place.table}"
            stuck.append(rules.still_referenced(place, place.table, listing))
        return 1

    def drops_forwarding(self) -> str:
        place = PLACES[Group.FORWARD]
        if place.table not in self._tables():
            return ""
        with self._info.entries(place.table) as entries:
            found = entries.drop(place.hook)
        return f"chain {place.base} of legacy table {place.table} has {found}" if found else ""

    def survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
        """What was found before holds as long as no table has changed its shape: a listing takes a process."""
        asked = (self._shape(), leases)
        if self._surveyed is None or self._surveyed[0] != asked:
            self._surveyed = (asked, self._survey(leases))
        return self._surveyed[1]

    def _survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
        found: list[Item] = []
        cni: list[str] = []
        for group, place in PLACES.items():
            lines = tuple(self._lines(place)) if place.table in self._tables() else ()
            found += _flannel(place, group, self.family, leases, lines)
            cni += [line for line in lines if line.startswith("-A POSTROUTING ") and _masquerades_pods(line, leases)]
        return Survey(tuple(found), f"rule {cni[0]} of legacy table nat" if cni else "")

    def remove(self, items: tuple[Item, ...]) -> None:
        for place in PLACES.values():
            there = [item for item in items if item.place.startswith(f"{place.table} ")]
            lines = [_deletion(item) for item in there if item.kind is ItemKind.RULE]
            lines += [f"-X {item.place.split(' ', 1)[1]}" for item in there if item.kind is ItemKind.CHAIN]
            if lines:
                text = "\n".join([f"*{place.table}", *lines, "COMMIT", ""])
                self._program.restore(self._host.run, self.family.data.tools, text)

    def fingerprint(self, groups: Collection[Group]) -> None:
        return None

    def generation(self) -> None:
        return None

    def poll(self) -> bool:
        appeared = len(self._looks) < len(_TABLES) and self._tables() & _TABLES != set(self._looks)  # what exists stays
        return appeared or any(look.changed() for look in self._looks.values())

    def _shape(self) -> tuple[tuple[str, bytes], ...]:
        """What ip_tables says of our tables, those that exist: number of entries, size, offsets."""
        return tuple((table, self._info.read(table)) for table in sorted(self._tables() & _TABLES))

    def _names_file(self) -> str:
        return self.family.data.legacy_names

    def _tables(self) -> frozenset[str]:
        """The tables that exist. None do while the module is not loaded."""
        path = str(self._host.root / self._names_file())
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return frozenset(os.read(descriptor, 4096).decode().split())
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise KernelError(f"reading {path}", error.strerror or str(error), error.errno or 0) from error

    def _kernel_has_it(self) -> bool:
        if (self._host.root / self._names_file()).exists():
            return True
        module = self.family.data.tools.replace("tables", "_tables")
        try:
            self._host.run(("modprobe", "--dry-run", "--quiet", module))
        except CommandError:
            return False
        return True

    def _lines(self, place: Place) -> Iterator[str]:
        return _table_lines(self._program.save(self._host.run, self.family.data.tools, place.table), place.table)

    def _observe(self, place: Place) -> Observed:
        """What a listing shows. None is made while the entries are those of a listing that was read before."""
        fingerprint = self._fingerprint(place)
        known = self._known.setdefault(place, {})
        if fingerprint in known:
            return known[fingerprint]
        observed = self._listed(place)
        footprint.trim()  # of a listing that may have been of 50,000 rules nothing is left
        if fingerprint and fingerprint == self._fingerprint(place):
            if len(known) >= _REMEMBERED:
                del known[next(iter(known))]
            known[fingerprint] = observed
        return observed

    def _fingerprint(self, place: Place) -> bytes:
        """Empty if only a listing can tell, or say what is wrong."""
        try:
            with self._info.entries(place.table) as entries:
                return entries.fingerprint(place.chain, place.hook)
        except KernelError:
            return b""

    def _listed(self, place: Place) -> Observed:
        lines = self._lines(place)
        items: list[Item] = []
        jumps: list[Item] = []
        base: list[str] = []
        first = -1
        for line in lines:
            chain = line[1:] if line.startswith(":") else line.split(" ", 2)[1]
            chain = chain.split(" ", 1)[0]
            if chain == place.chain:
                items.append(_own_item(place, line))
                continue
            jumping = place.chain in line and _jumps_to(line, place.chain)
            commented = COMMENT_PREFIX in line and rules.is_ours(_comment(line))
            if (jumping or commented) if chain == place.base else (jumping and commented):
                jumps.append(
                    Item(ItemKind.JUMP, f"{place.table} {chain}", line, raw=line, tag=rules.tag_of(_comment(line)))
                )
                first = len(base) if chain == place.base and first < 0 else first
            elif chain == place.base and not line.startswith(":"):
                base.append(hashlib.sha256(line.encode("utf-8", "surrogateescape")).hexdigest()[:16])
        around = Neighbours(place.jump, tuple(base[:first]), tuple(base[first:])) if first >= 0 else None
        return (*items, *jumps), around or Neighbours(place.jump)


def _flannel(
    place: Place, group: Group, family: Family, leases: tuple[FamilyLease, ...], lines: tuple[str, ...]
) -> Iterator[Item]:
    """What flannel wrote into the table, the chain after the rules that keep it from being removed."""
    chain = flannel_rules.CHAINS[group]
    flat = {rule.iptables() for lease in leases for rule in flannel_rules.flat_rules(group, family, lease)}
    for line in lines:
        start, _, rest = line.partition(f"-A {place.base} ")
        in_base = not start and bool(rest)
        if in_base and (rest in flat or _comment(line) == flannel_rules.COMMENTS[group] or _jumps_to(line, chain)):
            yield Item(ItemKind.RULE, place.jump, line, raw=line)
        elif line.startswith(f"-A {chain} "):
            yield Item(ItemKind.RULE, f"{place.table} {chain}", line, raw=line)
    if any(line.startswith(f":{chain} ") for line in lines):
        yield Item(ItemKind.CHAIN, f"{place.table} {chain}", f"chain {chain}")


def _masquerades_pods(line: str, leases: tuple[FamilyLease, ...]) -> bool:
    """By the CNI bridge plugin."""
    words = _words(line)
    options = dict(zip(words, words[1:]))
    return rules.is_cni_masquerade(options.get("-j")) and rules.is_about_pods(options.get("-s", ""), leases)


def _logical_lines(text: str) -> Iterable[str]:
    """A comment of somebody's rule may hold a newline; then its line ends where its quotes do."""
    parts = text.split("\n")
    if "\\" not in text and not any(part.count('"') & 1 for part in parts):
        return parts  # as always, and 0.1 s faster where there are 50,000 of them
    return _joined(parts)


def _joined(parts: list[str]) -> Iterator[str]:
    line = ""
    for part in parts:
        line = f"{line}\n{part}" if line else part
        if len(_QUOTE.findall(line)) % 2 == 0:
            yield line
            line = ""
    if line:
        yield line


def _table_lines(printed: Completed, table: str) -> Iterator[str]:
    """The chain and rule lines of one table. Raises CommandError unless the listing is whole."""
    lines = [line for line in _logical_lines(printed.stdout) if line and not line.startswith("#")]
    if len(lines) < 2 or lines[0] != f"*{table}" or lines[-1] != "COMMIT":
        raise CommandError(printed.argv, f"did not print the whole of table {table}", stderr=printed.stderr.strip())
    for line in lines[1:-1]:
        if line.startswith(":"):
            yield line.rsplit(" [", 1)[0]
        elif line.startswith("-A "):
            yield line
        else:
            raise CommandError(printed.argv, f"printed a line that is neither chain nor rule: {line!r}")


def _own_item(place: Place, line: str) -> Item:
    if line.startswith(":"):
        return Item(ItemKind.CHAIN, place.own, rules.chain_text(place), raw=rules.chain_text(place))
    return Item(ItemKind.RULE, place.own, line, raw=line, tag=rules.tag_of(_comment(line)))


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise CommandError(("iptables-save",), f"printed a rule that cannot be read ({error}): {line!r}") from error


def _jumps_to(line: str, chain: str) -> bool:
    words = _words(line)
    return any(option in ("-j", "-g") and target == chain for option, target in zip(words, words[1:]))


def _comment(line: str) -> str:
    words = _words(line)
    return next((value for option, value in zip(words, words[1:]) if option == "--comment"), "")


def _deletion(item: Item) -> str:
    """The exact text that was just read, so it is there unless somebody else was quicker, and then the
    whole restore fails, nothing changes, and it is read anew."""
    return item.raw.replace("-A ", "-D ", 1)
