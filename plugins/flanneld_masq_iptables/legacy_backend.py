"""iptables-legacy: written by iptables-legacy-restore, read by iptables-legacy-save.

The program lists a table only if its entries are not those of an earlier listing; the kernel tells that without a
process.

The kernel copies a whole table, and no program can write one meanwhile. So a pass that follows a poll reads only the
tables that changed, and none is read while another program holds the lock of iptables-legacy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from flanneld_masq import footprint
from flanneld_masq.errors import BackendUnavailable, CommandError, KernelError, LockHeld, RulesetError
from flanneld_masq.hookspecs import Host
from flanneld_masq.model import (
    COMMENT_PREFIX,
    BackendName,
    Blocker,
    Change,
    Desired,
    Family,
    FamilyLease,
    Group,
    Item,
    ItemKind,
    MarkEvidence,
    Neighbours,
    Observation,
    Probe,
    Survey,
    Traffic,
    tag_of,
)
from flanneld_masq.ruleset import flannel_rules
from flanneld_masq_iptables import binaries, rules, save_format
from flanneld_masq_iptables.base import IptablesBackend, PlaceItems, Removal
from flanneld_masq_iptables.forward_chain import Drop
from flanneld_masq_iptables.kube_proxy import LegacyMarkReader
from flanneld_masq_iptables.legacy_tables import CONCERNED, LegacyTables
from flanneld_masq_iptables.rules import PLACES, Jumps, Place
from flanneld_masq_iptables.sockopt import TableInfo
from flanneld_masq_iptables.xtables_lock import XtablesLock

NAME = BackendName("iptables-legacy")
_MAX_LISTINGS = 4  # of a place: the desired state, and what other programs make of it
_LOCK_STATUS = 4  # RESOURCE_PROBLEM of iptables: the lock is held, for example


class _Surveyed(NamedTuple):
    """A survey, and what the tables looked like: shape and the digests of the chains concerned."""

    shape: tuple[tuple[str, bytes], ...]
    contents: tuple[bytes, ...]
    leases: tuple[FamilyLease, ...]
    survey: Survey


class _Listing(NamedTuple):
    """A listing of one place. `jumps` are the indexes of the daemon's jumps among all rules of the built-in chain."""

    items: tuple[Item, ...]
    neighbours: Neighbours
    jumps: tuple[int, ...]


class _Reading(NamedTuple):
    """The entries of a table, read without a process. `fingerprint` is None if nothing in them is the daemon's, and
    empty if a listing is needed, if only for its error. `hits` are the packets that each rule of POSTROUTING has
    counted. `foreign` is the number of rules in the built-in chain if nothing is the daemon's."""

    fingerprint: bytes | None = b""
    drop: Drop | None = None
    readable: bool = True
    hits: tuple[int, ...] = ()
    foreign: int = 0


class IptablesLegacy(IptablesBackend):
    """Chains and jumps of iptables-legacy, which are entries of ip_tables and not of nf_tables."""

    name = NAME
    flavour = binaries.LEGACY
    privilege = "run as root"

    def __init__(self, family: Family, host: Host) -> None:
        super().__init__(family, host)
        self._info = TableInfo(family)
        self._mark = LegacyMarkReader(self._info)
        self._tables = LegacyTables(host.root / family.data.legacy_names, self._info)
        self._surveyed: _Surveyed | None = None
        self._listings: dict[Place, dict[bytes, _Listing]] = {}  # by the fingerprint of the entries
        self._lock = XtablesLock(host.root)
        self._last: dict[Place, PlaceItems] = {}  # read last, and not written since
        self._drop: str | None = None  # the last answer of `drops_forwarding`

    def observe(self, groups: Collection[Group]) -> Observation:
        self._wait_for_lock()
        tables, stale = self._tables.existing(), self._tables.to_read()
        self._last = {place: last for place, last in self._last.items() if place.table not in stale}
        return self._observation(
            [PLACES[group] for group in Group if group in groups and PLACES[group].table in tables]
        )

    def drops_forwarding(self) -> str:
        """Return the last answer while another program holds the lock; `poll` then reports a change."""
        place = PLACES[Group.FORWARD]
        if place.table not in self._tables.existing():
            return ""
        if self._drop is not None and self._lock.busy():
            return self._drop
        with self._info.entries(place.table) as entries:
            drop = entries.drop(place.hook, place.chain)
        what = "has policy DROP" if drop and drop.index is None else "has a rule that drops every packet"
        self._drop = f"chain {place.base} of legacy table {place.table} {what}" if drop else ""
        return self._drop

    def kube_proxy_mark(self) -> MarkEvidence | None:
        if PLACES[Group.MASQUERADE].table not in self._tables.existing():
            return None
        return self._mark.last if self._mark.known and self._lock.busy() else self._mark.read()

    def _counted(self, place: Place) -> Iterator[tuple[str, Traffic]]:
        if place.table in self._tables.existing():
            with self._info.entries(place.table) as entries:
                yield from entries.counted(place.chain)

    def survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
        """Return the last survey as long as no chain has changed that flannel or the CNI plugin would have written to:
        a listing takes a process. These chains are read only if their table has another shape."""
        self._wait_for_lock()
        shape, last = self._shape(), self._surveyed
        if last is not None and (last.shape, last.leases) == (shape, leases):
            return last.survey
        contents = self._contents()
        same = last is not None and contents and (last.contents, last.leases) == (contents, leases)
        survey = last.survey if last is not None and same else self._survey(leases)
        self._surveyed = _Surveyed(shape, contents, leases, survey)
        return survey

    def fingerprint(self, groups: Collection[Group]) -> None:
        return None

    def generation(self) -> None:
        return None

    def poll(self) -> bool | None:
        """Return True if a table changed, once the program that changed it is done."""
        moved = self._tables.moved()
        if moved and self._lock.busy():
            return False
        if moved:
            self._tables.reported()
        return None if moved is None else bool(moved)

    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        self._last.clear()
        return super().replace(desired, observed, changes)

    def _wait_for_lock(self) -> None:
        """Wait until no program holds the lock. Return at once if no table exists, because there is nothing to read."""
        if self._tables.existing() & CONCERNED:
            self._lock.wait(lambda: self._host.run.stopped)

    def _restore(self, text: str) -> None:
        try:
            super()._restore(text)
        except CommandError as error:
            if error.status != _LOCK_STATUS or "xtables lock" not in error.stderr:
                raise
            held = f"{self._lock.holder()} holds {self._lock.path}, so iptables-legacy-restore cannot write"
            raise LockHeld(held) from error

    def _forget(self) -> None:
        self._listings.clear()
        self._last.clear()

    def _probe(self, program: binaries.Program) -> Probe:
        self._tables.existing()
        versions = (str(program),)
        if self._kernel_has_it():
            return Probe(True, versions=versions, random_fully=program.random_fully)
        module = self._module
        remedy = f"load it with `modprobe {module}`, or choose another backend: recent kernels do not have it"
        return Probe(False, f"the kernel has no {module}, nor a module of that name", remedy, versions)

    def _write(self, desired: Desired, observed: Observation, jumps: Mapping[Place, Jumps]) -> int:
        lines = {place: [*map(save_format.deletion, jump.stale), *jump.new] for place, jump in jumps.items()}
        self._restore(rules.restore_input(desired, lambda place, _: lines[place]))
        return len(desired.groups)

    def _delete(self, place: Place, items: tuple[Item, ...], chain: str | None) -> int:
        lines = [*map(save_format.deletion, items), *([f"-X {chain}"] if chain else [])]
        if lines:
            self._restore_table(place, lines)
        return 1 if lines else 0

    def _remove_chain(self, place: Place, items: tuple[Item, ...]) -> Removal:
        jumps = [save_format.deletion(item) for item in items if item.kind is ItemKind.JUMP]
        emptied = [*jumps, f"-F {place.chain}"]
        try:
            self._restore_table(place, [*emptied, f"-X {place.chain}"])
        except CommandError:
            # nothing of it took effect; without the last line it does, if a foreign rule jumps to the chain
            self._restore_table(place, emptied)
            listing = f"{self.family.data.tools}-legacy-save -t {place.table}"
            return Removal(1, rules.still_referenced(place, place.table, listing))
        return Removal(1)

    def _restore_table(self, place: Place, lines: list[str]) -> None:
        self._restore("\n".join([f"*{place.table}", *lines, "COMMIT", ""]))

    def _survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
        flannel: list[Item] = []
        cni: list[str] = []
        for group, place in PLACES.items():
            lines = tuple(self._lines(place)) if place.table in self._tables.existing() else ()
            flannel += _flannel(place, group, self.family, leases, lines)
            cni += [line for line in lines if line.startswith("-A POSTROUTING ") and _masquerades_pods(line, leases)]
        where = f"rule {cni[0]} of legacy table nat" if cni else ""
        return Survey(tuple(flannel), where, rules.flannel_nat(flannel))

    def _shape(self) -> tuple[tuple[str, bytes], ...]:
        """Return number of entries, size and offsets of the tables of both groups, as far as they exist."""
        return tuple((table, self._info.read(table)) for table in sorted(self._tables.existing() & CONCERNED))

    def _contents(self) -> tuple[bytes, ...]:
        """Return a digest of the chains that a survey reads. Empty if the kernel's answer cannot be read: then a
        listing is needed, which also reports the error."""
        contents = []
        try:
            for group, place in PLACES.items():
                if place.table in self._tables.existing():
                    with self._info.entries(place.table) as entries:
                        contents.append(entries.contents(flannel_rules.CHAINS[group], place.hook))
        except KernelError:
            return ()
        return tuple(contents)

    @property
    def _module(self) -> str:
        return self.family.data.tools.replace("tables", "_tables")

    def _kernel_has_it(self) -> bool:
        if self._tables.supported:
            return True
        try:
            self._host.run(("modprobe", "--dry-run", "--quiet", self._module))
        except CommandError:
            return False
        return True

    def _lines(self, place: Place) -> Iterator[str]:
        printed = self._program.save(self._host.run, self.family.data.tools, place.table)
        return save_format.table_lines(printed, place.table)

    def _lines_with_ours(self, place: Place) -> Iterator[str]:
        """List a table in which something of the daemon is known to be. That cannot stay unsaid."""
        try:
            return self._lines(place)
        except BackendUnavailable as error:
            what = (
                f"legacy table {place.table} holds rules of flanneld-masq, which only {self.name} can read and remove"
            )
            raise RulesetError(f"{what}: {error}") from error

    def _observe(self, place: Place) -> PlaceItems:
        if place not in self._last:
            self._last[place] = self._read(place)
        return self._last[place]

    def _read(self, place: Place) -> PlaceItems:
        """Read a listing, unless nothing in the entries is the daemon's, or they are those of an earlier listing."""
        reading = self._reading(place)
        listing = _Listing((), Neighbours(place.jump, ("",) * reading.foreign), ())
        if reading.fingerprint is not None:
            reading, listing = self._listed(place, reading)
        blocker = _blocker(listing, reading.drop) if reading.readable else _stay(listing)
        return listing.items, replace(listing.neighbours, blocker=blocker, hits=_foreign_hits(listing, reading.hits))

    def _listed(self, place: Place, reading: _Reading) -> tuple[_Reading, _Listing]:
        """Return the listing of the entries, and what they held when it was read."""
        listings = self._listings.setdefault(place, {})
        listing = listings.get(reading.fingerprint or b"")
        if listing is not None:
            return reading, listing
        listing = _read_listing(place, self._lines_with_ours(place) if reading.readable else self._lines(place))
        footprint.trim()  # nothing is left of the lines, which may have been 50,000
        again = self._reading(place)
        if reading.fingerprint and reading.fingerprint == again.fingerprint:
            if len(listings) >= _MAX_LISTINGS:
                del listings[next(iter(listings))]
            listings[reading.fingerprint] = listing
            return again, listing
        return again._replace(hits=()), listing  # the rules may be others

    def _reading(self, place: Place) -> _Reading:
        """Read the entries: what drops in FORWARD, and a fingerprint, None if nothing in them is the daemon's, empty if
        only a listing shows it."""
        try:
            shape = self._info.read(place.table)
            with self._info.entries(place.table) as entries:
                drop = entries.drop(place.hook, place.chain) if place == PLACES[Group.FORWARD] else None
                hits: tuple[int, ...] = ()
                if place == PLACES[Group.MASQUERADE]:
                    self._mark.note(shape, entries)
                    hits = entries.packets(place.hook)
                fingerprint = entries.fingerprint(place.chain, place.hook)
                foreign = len(hits or entries.packets(place.hook)) if fingerprint is None else 0
                return _Reading(fingerprint, drop, hits=hits, foreign=foreign)
        except KernelError:
            return _Reading(readable=False)


def _foreign_hits(listing: _Listing, hits: tuple[int, ...]) -> tuple[int, ...]:
    """Return the hits of the foreign rules around the jump; none if there is no jump, or more than one."""
    around = listing.neighbours
    if len(listing.jumps) != 1 or len(hits) != len(around.before) + len(around.after) + 1:
        return ()
    ahead = len(around.before)
    return (*hits[:ahead], *hits[ahead + 1 :])


def _blocker(listing: _Listing, drop: Drop | None) -> Blocker | None:
    """Return the place of a drop among the foreign rules. A write deletes the jumps before it inserts one."""
    if drop is None or drop.index is None:
        return None
    index = drop.index - sum(jump < drop.index for jump in listing.jumps)
    return Blocker(index, index + 1)


def _stay(listing: _Listing) -> Blocker | None:
    """Return the place of the jump itself: while nobody knows what drops, it stays where it is."""
    index = len(listing.neighbours.before)
    return Blocker(index, index + 1) if listing.jumps else None


def _read_listing(place: Place, lines: Iterator[str]) -> _Listing:
    """Return the daemon's items, the jumps last, and the foreign rules around the first jump."""
    items: list[Item] = []
    jumps: list[Item] = []
    base: list[str] = []
    positions: list[int] = []  # of the jumps in the built-in chain
    for line in lines:
        chain = save_format.chain_of(line)
        if chain == place.chain:
            items.append(save_format.own_item(place, line))
        elif _is_jump(place, chain, line):
            tag = tag_of(save_format.comment(line))
            jumps.append(Item(ItemKind.JUMP, f"{place.table} {chain}", line, raw=line, tag=tag))
            if chain == place.base:
                positions.append(len(base) + len(positions))
        elif chain == place.base and not line.startswith(":"):
            base.append(rules.digest(line))
    first = positions[0] if positions else len(base)
    around = Neighbours(place.jump, tuple(base[:first]), tuple(base[first:]))
    return _Listing((*items, *jumps), around, tuple(positions))


def _is_jump(place: Place, chain: str, line: str) -> bool:
    """Return True for the daemon's jumps: they have a tag. In the built-in chain that is enough; a rule elsewhere must
    jump to the daemon's chain too."""
    if COMMENT_PREFIX not in line or not tag_of(save_format.comment(line)):
        return False
    return chain == place.base or save_format.jumps_to(line, place.chain)


def _flannel(
    place: Place, group: Group, family: Family, leases: tuple[FamilyLease, ...], lines: tuple[str, ...]
) -> Iterator[Item]:
    """Yield what flannel wrote into the table: the chain comes after the rules that keep it from being removed."""
    chain = flannel_rules.CHAINS[group]
    flat = {rule.iptables() for lease in leases for rule in flannel_rules.flat_rules(group, family, lease)}
    in_base = f"-A {place.base} "
    for line in lines:
        if line.startswith(in_base):
            if line[len(in_base) :] in flat or _is_marked(line, group):
                yield Item(ItemKind.RULE, place.jump, line, raw=line)
        elif line.startswith(f"-A {chain} "):
            yield Item(ItemKind.RULE, f"{place.table} {chain}", line, raw=line)
    if any(line.startswith(f":{chain} ") for line in lines):
        yield Item(ItemKind.CHAIN, f"{place.table} {chain}", f"chain {chain}")


def _is_marked(line: str, group: Group) -> bool:
    """Return True if a rule has flannel's comment, or jumps to flannel's chain."""
    commented = save_format.comment(line) == flannel_rules.COMMENTS[group]
    return commented or save_format.jumps_to(line, flannel_rules.CHAINS[group])


def _masquerades_pods(line: str, leases: tuple[FamilyLease, ...]) -> bool:
    """Return True for the rule with which the CNI bridge plugin masquerades pods of these leases."""
    options = dict(save_format.options(line))
    return rules.is_cni_masquerade(options.get("-j")) and rules.is_about_pods(options.get("-s", ""), leases)
