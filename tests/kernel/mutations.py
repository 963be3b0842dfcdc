"""Every single step away from what we own in the kernel, generated from what is there.

A `Subject` is one backend of one family in the namespace of the calling thread. `mutations` goes over its
objects as they were just observed; each mutation looks its object up again when it is done, so that all
of them hold after any number of repairs.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_network
from itertools import count
from typing import Any

from flanneld_masq_iptables.rules import PLACES, Place, jump_line, rule_line
from flanneld_masq_nft import render
from nftables import Nftables

from flanneld_masq.errors import RulesetError
from flanneld_masq.hookspecs import Backend
from flanneld_masq.kernel.expressions import comment
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.objects import KernelRule
from flanneld_masq.model import (
    COMMENT_PREFIX,
    Desired,
    Family,
    Group,
    GroupRules,
    Item,
    ItemKind,
    Mark,
    Neighbours,
    Position,
    Rule,
    Verdict,
    tag_of,
)
from flanneld_masq.process import ProcessRunner

FOREIGN_COMMENT = "not ours"
LIKE_OURS = "flanneld-masq: do not NAT the office"
_HOSTS = {Family.IPV4: "203.0.113.9", Family.IPV6: "2001:db8:ffff::9"}
_NETWORKS = {Family.IPV4: ip_network("192.0.2.0/24"), Family.IPV6: ip_network("2001:db8::/48")}
# No rule of the iptables backends can have this verdict in the table of the group.
_REFUSED = {Group.MASQUERADE: Verdict.DROP, Group.FORWARD: Verdict.MASQUERADE}
_OTHER_TAG = "0123456789ab"
_OUR_CHAINS = frozenset(place.chain for place in PLACES.values())
_TAG = re.compile(f'{COMMENT_PREFIX}[0-9a-f]{{12}}(?![^"])')
_COUNTERS = re.compile(r"^\[\d+:\d+\] ")


@dataclass(frozen=True)
class Mutation:
    """One step. The plan must say one of `texts` of `place`.

    `undo` removes foreign objects that the step leaves, which the daemon must not remove; `foreign_stays` is false for
    steps that damage the rules of others too.
    """

    name: str
    place: str
    texts: tuple[str, ...]
    do: Callable[[], object]
    undo: Callable[[], object] = lambda: None
    foreign_stays: bool = True


@dataclass(frozen=True)
class Snapshot:
    """Rules of one family in a kernel interface: the daemon's without counters and handles, foreign ones with them."""

    ours: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    foreign_rules: tuple[str, ...] = ()


def alterations(rule: Rule, family: Family, group: Group) -> Iterator[tuple[str, Rule]]:
    """The rule with one field changed and its comment kept, by the name of the change; then another comment."""
    other = _NETWORKS[family]
    yield "other src", replace(rule, src=other)
    yield "other dst", replace(rule, dst=other, dst_not=None)
    yield "other dst_not", replace(rule, dst=None, dst_not=other)
    for field in ("src", "dst", "dst_not"):
        network = getattr(rule, field)
        if network is not None:
            changes: dict[str, Any] = {f"wider {field}": network.supernet(), f"no {field}": None}
            for name, change in changes.items():
                yield name, _with(rule, **{field: change})
    yield "dst and its negation exchanged", replace(rule, dst=rule.dst_not, dst_not=rule.dst)
    yield "other mark", replace(rule, mark=Mark(0x8000, 0x8000))
    if rule.mark is not None:
        yield "other mark value", replace(rule, mark=Mark(0, rule.mark.mask))
        yield "other mark mask", replace(rule, mark=Mark(rule.mark.value, 0xFFFFFFFF))
        yield "no mark", replace(rule, mark=None)
    for verdict in Verdict:
        if verdict is not _REFUSED[group]:
            yield f"verdict {verdict.value}", replace(rule, verdict=verdict)
    yield "fully random or not", replace(rule, fully_random=not rule.fully_random)
    yield "other tag", replace(rule, tag=_OTHER_TAG)


class Nft:
    """nft as a library. It starts no process, because the end of one waits for the kernel's grace period."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._netlink = Nfnetlink()
        self._library = Nftables()
        self._library.set_handle_output(True)

    def __call__(self, *lines: str) -> str:
        """One transaction, or a listing."""
        status, printed, error = self._library.cmd("\n".join(lines) + "\n")
        if status:
            raise RulesetError("\n".join((error, *lines)))
        return str(printed)

    def snapshot(self) -> Snapshot:
        """Rules as the kernel dumps them, since nft does not print all that is in those of iptables-nft."""
        ours: list[str] = []
        rules: list[str] = []
        listing = self(f"list ruleset {self.family.data.nft}")
        for table in re.findall(rf"^table {self.family.data.nft} (\S+) ", listing, re.MULTILINE):
            for rule in self._netlink.rules(self.family, table):
                if _is_our_rule(table, rule):
                    ours.append(f"{table} {rule.chain} {rule.raw}")
                else:
                    rules.append(f"{table} {rule.chain} {rule.handle} {rule.raw}")
        for table in re.findall(rf"^(table \S+ {render.TABLE}) .*?^}}", listing, re.MULTILINE | re.DOTALL):
            ours += (line.split(" # ")[0] for line in self(f"list {table}").splitlines())
        return Snapshot(tuple(ours), (*_foreign_lines(listing), *rules), tuple(rules))


class Subject(ABC):
    """One backend of one family, and the rules of others around it. `bases` are where its jumps are."""

    bases: frozenset[str] = frozenset()

    def __init__(self, family: Family, backend: Backend, run: ProcessRunner) -> None:
        self.family = family
        self.backend = backend
        self.run = run
        self.nft = Nft(family)

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """All that the kernel holds, the daemon's and foreign."""

    @abstractmethod
    def mutations(self, desired: Desired) -> Iterator[Mutation]:
        """Yield every change that another program may make to it."""

    def settle(self) -> bool:
        """Put foreign rules before and behind each jump of the daemon. Return True if it changed anything."""
        return False

    def observed(self, place: str) -> list[Item]:
        return [item for item in self.backend.observe(tuple(Group)).items if item.place == place]


class NftSubject(Subject):
    def snapshot(self) -> Snapshot:
        return self.nft.snapshot()

    def mutations(self, desired: Desired) -> Iterator[Mutation]:
        for group in desired.groups:
            for index in range(len(group.rules)):
                yield from self._of_rule(group, index)
            yield from self._of_chain(group)
        yield from self._of_table()

    def _of_rule(self, group: GroupRules, index: int) -> Iterator[Mutation]:
        place = render.chain_place(self.family, group.group)
        texts = [render.rule_text(self.family, rule) for rule in group.rules]
        text, foreign = texts[index], f"{self.family.data.nft} daddr {_HOSTS[self.family]}"

        def step(name: str, naming: Iterable[str], *commands: str) -> Mutation:
            def do() -> None:
                handles = [item.handle for item in self.observed(place) if item.kind is ItemKind.RULE]
                following = handles[index + 1] if index + 1 < len(handles) else 0
                self.nft(*(line.format(place=place, handle=handles[index], following=following) for line in commands))

            return Mutation(f"{place} rule {index + 1}: {name}", place, tuple(naming), do)

        yield step("deleted", [text], "delete rule {place} handle {handle}")
        yield step("duplicated after itself", [text], f"add rule {{place}} position {{handle}} {text}")
        yield step("duplicated at the end", [text], f"add rule {{place}} {text}")
        if index + 1 < len(texts):
            behind = f"add rule {{place}} position {{following}} {text}"
            yield step("swapped with the next", texts[index : index + 2], behind, "delete rule {place} handle {handle}")
        yield step("foreign before it", [foreign], f"insert rule {{place}} position {{handle}} {foreign} accept")
        yield step("foreign with our tag", [foreign], self._foreign_with_tag(foreign, group.rules[index]))
        for name, altered in alterations(group.rules[index], self.family, group.group):
            new = render.rule_text(self.family, altered)
            if new != text:
                yield step(name, [text], f"replace rule {{place}} handle {{handle}} {new}")
        for name, new in self._reworded(text):
            yield step(name, [text], f"replace rule {{place}} handle {{handle}} {new}")

    def _foreign_with_tag(self, foreign: str, rule: Rule) -> str:
        return f'insert rule {{place}} position {{handle}} {foreign} accept comment "{rule.comment}"'

    def _reworded(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield changes of what a `Rule` has no field for, as (name, text)."""
        body, _, quoted = text.partition(" comment ")
        matches, _, verdict = body.rpartition(" masquerade" if " masquerade" in body else " ")
        yield "comment gone", body
        yield "comment of others", f'{body} comment "{FOREIGN_COMMENT}"'
        yield "comment longer", f"{text[:-1]}0{text[-1]}"
        yield "only one protocol", f"meta l4proto tcp {text}"
        yield "only one interface", f'oifname "eth9" {text}'
        yield "with a counter", f"{matches} counter {'masquerade' * (' masquerade' in body)}{verdict} comment {quoted}"
        yield "verdict drop", f"{matches} drop comment {quoted}"
        if " saddr " in text:
            yield "src negated", text.replace(" saddr ", " saddr != ")
        if " == " in text:
            yield "mark negated", text.replace(" == ", " != ")
        if " fully-random" in text:
            yield "random", text.replace(" fully-random", " random")
            yield "persistent too", text.replace(" fully-random", " fully-random,persistent")

    def _of_chain(self, group: GroupRules) -> Iterator[Mutation]:
        place, chain = render.chain_place(self.family, group.group), render.CHAINS[group.group]
        declaration = chain.declaration
        texts = [render.rule_text(self.family, rule) for rule in group.rules]
        elsewhere = [text for text in texts if "masquerade" not in text]  # it goes nowhere but to nat postrouting
        foreign = f"{self.family.data.nft} daddr {_HOSTS[self.family]}"

        def step(name: str, naming: Iterable[str], *commands: str) -> Mutation:
            return Mutation(f"{place}: {name}", place, tuple(naming), lambda: self.nft(*commands))

        def replaced(name: str, new: str, rules: Iterable[str]) -> Mutation:
            added = (f"add rule {place} {text}" for text in rules)
            return step(name, [declaration], f"delete chain {place}", f"add chain {place} {{ {new} }}", *added)

        yield step("flushed", texts[:1], f"flush chain {place}")
        yield step("deleted", [declaration], f"delete chain {place}")
        yield step("renamed", [declaration], f"rename chain {place} elsewhere")
        yield step("policy drop", [declaration], f"add chain {place} {{ policy drop; }}")
        yield replaced("other priority", declaration.replace(str(chain.priority), str(chain.priority + 1), 1), texts)
        yield replaced("other hook", declaration.replace(f"hook {chain.hook}", "hook input"), elsewhere)
        if chain.type == "nat":
            yield replaced("other type", declaration.replace("type nat", "type filter"), elsewhere)
        yield step("no base chain", [declaration], f"delete chain {place}", f"add chain {place}")
        yield replaced("with a comment", f'comment "{FOREIGN_COMMENT}"; {declaration}', texts)
        yield step("foreign at the beginning", [foreign], f"insert rule {place} {foreign} accept")
        yield step("foreign at the end", [foreign], f"add rule {place} {foreign} accept")
        yield step(
            "foreign jump",
            ["jump other"],
            f"add chain {render.table_place(self.family)} other",
            f"insert rule {place} jump other",
        )

    def _of_table(self) -> Iterator[Mutation]:
        table, family = render.table_place(self.family), self.family.data.nft
        name = f"table {table}"
        address = "ipv4_addr" if self.family is Family.IPV4 else "ipv6_addr"
        block = re.sub(r" # handle \d+", "", self.nft(f"list table {table}"))

        def step(what: str, *commands: str, foreign_stays: bool = True) -> Mutation:
            do = lambda: self.nft(*commands)  # noqa: E731
            return Mutation(f"{table}: {what}", table, (name,), do, foreign_stays=foreign_stays)

        yield step("extra chain", f"add chain {table} extra")
        yield step("extra base chain", f"add chain {table} extra {{ type filter hook input priority 0; }}")
        yield step("extra set", f"add set {table} extra {{ type {address}; }}")
        yield step("extra map", f"add map {table} extra {{ type {address} : verdict; }}")
        yield step("extra counter", f"add counter {table} extra")
        yield step("dormant", f"add table {table} {{ flags dormant; }}")
        yield step("comment", f"delete table {table}", block.replace("{", f'{{ comment "{FOREIGN_COMMENT}";', 1))
        yield step("deleted", f"delete table {table}")
        yield step("family flushed", f"flush ruleset {family}", foreign_stays=False)
        yield step("ruleset flushed", "flush ruleset", foreign_stays=False)
        for group in Group:
            place = render.chain_place(self.family, group)
            yield Mutation(f"{table}: all rules flushed", place, ("comment",), lambda: self.nft(f"flush table {table}"))


class IptablesSubject(Subject):
    """Both flavours. Steps are inputs of iptables-restore: it parses no rule that it need not touch."""

    bases = frozenset(place.jump for place in PLACES.values())

    def __init__(self, family: Family, backend: Backend, run: ProcessRunner) -> None:
        super().__init__(family, backend, run)
        self._flavour = backend.name.partition("-")[2]
        self._prefix = f"{family.data.tools}-{self._flavour}"
        self._numbers = count(1)

    def snapshot(self) -> Snapshot:
        return self.nft.snapshot() if self._flavour == "nft" else legacy_snapshot(self.family, self.run)

    def settle(self) -> bool:
        nat = PLACES[Group.MASQUERADE].jump  # the jump to the forward group must be the last rule
        alone = [around.place for around in self._neighbours() if not around.after and around.place == nat]
        for jump in alone:
            table, base = jump.split()
            rule = f"-d {_HOSTS[self.family]} -m comment --comment after-{next(self._numbers)} -j RETURN"
            self._restore(table, f"-A {base} {rule}")
        return bool(alone)

    def mutations(self, desired: Desired) -> Iterator[Mutation]:
        for group in desired.groups:
            for index in range(len(group.rules)):
                yield from self._of_rule(group, index)
            yield from self._of_chain(group)
            yield from self._of_jump(group)
            yield from self._of_place(group, desired.position_of(group.group))
        if self._flavour == "nft":
            yield from self._of_nft()
        else:
            yield from self._of_legacy()

    def _restore(self, table: str, *lines: str) -> None:
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        self.run((f"{self._prefix}-restore", "--noflush", "--wait=5"), stdin=text)

    def _of_rule(self, group: GroupRules, index: int) -> Iterator[Mutation]:
        place = PLACES[group.group]
        lines = [rule_line(place, rule) for rule in group.rules]
        line, foreign, number = lines[index], f"-d {_HOSTS[self.family]}", index + 1
        chain, body = place.chain, _body(lines[index])

        def step(name: str, naming: Iterable[str], *commands: str) -> Mutation:
            what = f"{place.own} rule {number}: {name}"
            return Mutation(what, place.own, tuple(naming), lambda: self._restore(place.table, *commands))

        yield step("deleted", [line], f"-D {chain} {number}")
        yield step("duplicated after itself", [line], f"-I {chain} {number + 1} {body}")
        yield step("duplicated at the end", [line], f"-A {chain} {body}")
        if number < len(lines):
            swap = (f"-D {chain} {number}", f"-I {chain} {number + 1} {body}")
            yield step("swapped with the next", lines[index : index + 2], *swap)
        naming = [_HOSTS[self.family]]
        tag = group.rules[index].comment
        yield step("foreign before it", naming, f"-I {chain} {number} {foreign} -j ACCEPT")
        yield step("foreign with our tag", naming, f"-I {chain} {number} {foreign} {_comment(tag)} -j ACCEPT")
        for name, altered in alterations(group.rules[index], self.family, group.group):
            new = rule_line(place, altered)
            if new != line:
                yield step(name, [line], f"-R {chain} {number} {_body(new)}")
        for name, new in self._reworded(body, place):
            yield step(name, [line], f"-R {chain} {number} {new}")

    def _reworded(self, body: str, place: Place) -> Iterator[tuple[str, str]]:
        """Yield changes of what a `Rule` has no field for, as (name, text)."""
        yield "comment gone", re.sub(r'-m comment --comment "[^"]*" ', "", body)
        yield "comment of others", re.sub(r'--comment "[^"]*"', f'--comment "{FOREIGN_COMMENT}"', body)
        yield "comment longer", re.sub(r'(--comment "[^"]*)"', r'\g<1>0"', body)
        yield "comment twice", f"{_comment(FOREIGN_COMMENT)} {body}"
        yield "only one protocol", f"-p tcp {body}"
        yield "only one interface", f"-o eth9 {body}"
        yield "no verdict", body.split(" -j ")[0]
        yield "foreign chain instead of the verdict", body.split(" -j ")[0] + " -j FOREIGN"
        if place.table == "filter":
            yield "verdict drop", body.split(" -j ")[0] + " -j DROP"
        if body.startswith("-s "):
            yield "src negated", f"! {body}"
        if " --mark " in f" {body}":
            yield "mark negated", body.replace("--mark", "! --mark")
        if "--random-fully" in body:
            yield "random", body.replace("--random-fully", "--random")

    def _of_chain(self, group: GroupRules) -> Iterator[Mutation]:
        place = PLACES[group.group]
        chain, own = place.chain, f"chain {place.chain}"
        lines = [rule_line(place, rule) for rule in group.rules]
        foreign, naming = f"-d {_HOSTS[self.family]} -j ACCEPT", [_HOSTS[self.family]]
        jump = (place.jump, (jump_line(place, group),))

        def step(name: str, naming: Iterable[str], *commands: str) -> Mutation:
            do = lambda: self._restore(place.table, *commands)  # noqa: E731
            return Mutation(f"{place.own}: {name}", place.own, tuple(naming), do)

        def without_jump(*commands: str) -> Callable[[], None]:
            return lambda: self._restore(place.table, f"-D {place.base} {self._jump_number(place)}", *commands)

        def renamed() -> None:
            self.run((self._prefix, "-w", "-t", place.table, "-E", chain, "ELSEWHERE"))

        def forget() -> None:
            self._restore(place.table, "-F ELSEWHERE", "-X ELSEWHERE")

        yield step("flushed", lines[:1], f"-F {chain}")
        yield step("foreign at the beginning", naming, f"-I {chain} {foreign}")
        yield step("foreign at the end", naming, f"-A {chain} {foreign}")
        yield step("foreign jump", ["FOREIGN"], f"-I {chain} -j FOREIGN")
        yield step("only a foreign rule", naming, f"-F {chain}", f"-A {chain} {foreign}")
        yield step("reversed", lines, f"-F {chain}", *reversed(lines))
        yield Mutation(f"{place.own}: deleted", place.own, (own,), without_jump(f"-F {chain}", f"-X {chain}"))
        # the chain then has a name that is not the daemon's, so it stays, but no packet finds it
        yield Mutation(f"{place.own}: renamed", place.own, (own,), renamed, forget)
        yield Mutation(f"{place.own}: renamed, and so the jump", *jump, renamed, forget)

    def _of_jump(self, group: GroupRules) -> Iterator[Mutation]:
        place = PLACES[group.group]
        base, line = place.base, jump_line(place, group)
        body, foreign = _body(line), f"-d {_HOSTS[self.family]}"

        def step(name: str, commands: Callable[[int], Iterable[str]], where: str = place.jump) -> Mutation:
            do = lambda: self._restore(place.table, *commands(self._jump_number(place)))  # noqa: E731
            return Mutation(f"{place.jump} jump: {name}", where, (line, place.chain, "the daemon's jump"), do)

        def altered(name: str, new: str) -> Mutation:
            return step(name, lambda number: [f"-R {base} {number} {new}"])

        def replaced(name: str, new: str) -> Mutation:
            """Without a tag it is a foreign rule from then on, though it jumps to the daemon's chain."""
            undo = partial(self._restore, place.table, f"-D {base} {new}")
            return replace(altered(name, new), undo=undo)

        yield step("deleted", lambda number: [f"-D {base} {number}"])
        yield step("doubled after itself", lambda number: [f"-I {base} {number + 1} {body}"])
        yield step("doubled at the beginning", lambda _: [f"-I {base} {body}"])
        yield step("doubled at the end", lambda _: [f"-A {base} {body}"])
        yield step("second one with a match", lambda _: [f"-I {base} {foreign} {body}"])
        yield altered("only one destination", f"{foreign} {body}")
        yield altered("only one interface", f"-o eth9 {body}")
        yield altered("only one protocol", f"-p udp {body}")
        yield altered("only one mark", f"-m mark --mark 0x1 {body}")
        yield altered("goto", body.replace("-j ", "-g "))
        yield replaced("other comment", f"{_comment(FOREIGN_COMMENT)} -j {place.chain}")
        yield replaced("comment that begins like ours", f"{_comment(LIKE_OURS)} -j {place.chain}")
        yield altered("other tag", f"{_comment(COMMENT_PREFIX + _OTHER_TAG)} -j {place.chain}")
        yield replaced("no comment", f"-j {place.chain}")
        yield replaced("comment twice", f"{_comment(FOREIGN_COMMENT)} {body}")
        yield altered("other chain", body.replace(f"-j {place.chain}", "-j FOREIGN"))
        yield altered("accept", body.replace(f"-j {place.chain}", "-j ACCEPT"))
        yield altered("no target", body.replace(f" -j {place.chain}", ""))
        strays = {"jump": body, "goto": f"{foreign} {body.replace('-j ', '-g ')}"}
        for name, stray in strays.items():
            command = f"-A FOREIGN {stray}"
            yield step(f"stray {name}", partial(_one, command), f"{place.table} FOREIGN")
        if group.group is Group.FORWARD:  # MASQUERADE may be reached from nowhere but POSTROUTING
            yield step("stray in a built-in chain", lambda _: [f"-A OUTPUT {body}"], f"{place.table} OUTPUT")

    def _of_place(self, group: GroupRules, position: Position) -> Iterator[Mutation]:
        """The jump among the rules of others."""
        place = PLACES[group.group]
        base, body = place.base, _body(jump_line(place, group))

        def step(name: str, commands: Callable[[int], Iterable[str]]) -> Mutation:
            do = lambda: self._restore(place.table, *commands(self._jump_number(place)))  # noqa: E731
            return Mutation(f"{place.jump} jump: {name}", place.jump, ("the daemon's jump",), do)

        def moved(by: int) -> Callable[[int], Iterable[str]]:
            return lambda number: (f"-D {base} {number}", f"-I {base} {number + by} {body}")

        if position is Position.FIRST:
            yield step("moved behind one", moved(1))
            yield step("moved behind two", moved(2))
        else:
            yield step("moved before one", moved(-1))
            yield step("moved before two", moved(-2))

    def _of_nft(self) -> Iterator[Mutation]:
        """Steps that nft can do to the tables that iptables-nft uses."""
        family = self.family.data.nft
        for place in PLACES.values():
            own = (place.own, (f"chain {place.chain}",))
            for what, command in (
                (f"table {place.table} deleted", f"delete table {family} {place.table}"),
                (f"table {place.table} flushed", f"flush table {family} {place.table}"),
                ("family flushed", f"flush ruleset {family}"),
                ("ruleset flushed", "flush ruleset"),
            ):
                where = (place.jump, (place.chain,)) if command.startswith("flush table") else own
                do = partial(self.nft, command)
                yield Mutation(f"{what}, as seen in {place.own}", *where, do, foreign_stays=False)
            chain = f"{family} {place.table} {place.chain}"
            rule = f"{family} daddr {_HOSTS[self.family]} accept"
            do = partial(self.nft, f"insert rule {chain} {rule}")
            yield Mutation(f"{place.own}: native foreign rule", place.own, (rule,), do)
            vmap = "meta l4proto vmap { tcp : accept, udp : return }"
            do = partial(self.nft, f"add rule {chain} {vmap}")
            yield Mutation(f"{place.own}: rule that iptables cannot parse", place.own, ("lookup",), do)

    def _of_legacy(self) -> Iterator[Mutation]:
        for place in PLACES.values():
            jump = (place.jump, (place.chain,))
            flush = lambda place=place: self._restore(place.table, f"-F {place.base}")  # noqa: E731
            yield Mutation(f"{place.jump} flushed", *jump, flush, foreign_stays=False)
            flush_all = lambda place=place: self.run((self._prefix, "-w", "-t", place.table, "-F"))  # noqa: E731
            yield Mutation(f"table {place.table} flushed", *jump, flush_all, foreign_stays=False)
            text = f"*{place.table}\nCOMMIT\n"
            empty = lambda text=text: self.run((f"{self._prefix}-restore", "--wait=5"), stdin=text)  # noqa: E731
            own = (place.own, (f"chain {place.chain}",))
            yield Mutation(f"table {place.table} restored empty", *own, empty, foreign_stays=False)

    def _jump_number(self, place: Place) -> int:
        """Return the number of the daemon's jump in the built-in chain, from 1 on."""
        return next(len(found.before) + 1 for found in self._neighbours() if found.place == place.jump)

    def _neighbours(self) -> tuple[Neighbours, ...]:
        return self.backend.observe(tuple(Group)).neighbours


def add_foreign(family: Family, run: ProcessRunner) -> None:
    """Foreign rules, of both flavours and of nft, in each place where the daemon has rules."""
    host, network, nft = _HOSTS[family], _NETWORKS[family], family.data.nft
    for flavour in ("nft", "legacy"):
        text = "".join(
            f"*{place.table}\n:FOREIGN - [0:0]\n"
            f"[1:100] -A FOREIGN -s {host} {_comment(FOREIGN_COMMENT)} -j RETURN\n"
            f"[1:100] -A FOREIGN -s {host} {_comment(LIKE_OURS)} -j RETURN\n"
            f"[2:200] -A FOREIGN -d {host} -m mark --mark 0x4000/0x4000 -j ACCEPT\n"
            f"[3:300] -A {place.base} -d {host} {_comment('before ours')} -j ACCEPT\n"
            f"[4:400] -A {place.base} -s {network} {_comment(LIKE_OURS)} -j FOREIGN\n"
            f"[5:500] -A OUTPUT -d {network} -j ACCEPT\nCOMMIT\n"
            for place in PLACES.values()
        )
        run((f"{family.data.tools}-{flavour}-restore", "--noflush", "--counters", "--wait=5"), stdin=text)
    match = f"{nft} daddr {host} counter packets 7 bytes 700 accept"
    lines = (
        f"table {nft} foreign {{",
        f"  set hosts {{ type {'ipv4_addr' if family is Family.IPV4 else 'ipv6_addr'}; elements = {{ {host} }}; }}",
        f"  chain sources {{ type nat hook postrouting priority 99; {match}; }}",
        f"  chain crossing {{ type filter hook forward priority 1; policy drop; {nft} saddr @hosts accept; "
        f'{match}; {match} comment "{LIKE_OURS}"; }}',
        "}",
        f"table {nft} flanneld-masq-not-ours {{ chain postrouting {{ {match}; }}; }}",
        f"table inet flanneld-masq-{family.value} {{ chain postrouting {{ {match}; }}; }}",
        f"add chain {nft} nat VMAP",
        f"add rule {nft} nat VMAP meta l4proto vmap {{ tcp : accept, udp : return }}",
        f"insert rule {nft} nat POSTROUTING {nft} daddr {host} jump VMAP",
    )
    run(("nft", "-f", "-"), stdin="".join(f"{line}\n" for line in lines))


def remove_all(family: Family, run: ProcessRunner) -> None:
    """Everything of the family, with the daemon's rules."""
    run(("nft", "flush", "ruleset", family.data.nft))
    for place in PLACES.values():
        run((f"{family.data.tools}-legacy-restore", "--wait=5"), stdin=f"*{place.table}\nCOMMIT\n")


def legacy_snapshot(family: Family, run: ProcessRunner) -> Snapshot:
    ours: list[str] = []
    foreign: list[str] = []
    for counted in run((f"{family.data.tools}-legacy-save", "-c")).stdout.splitlines():
        line = _COUNTERS.sub("", counted)
        if line.startswith("#"):
            continue
        if any(chain in line for chain in _OUR_CHAINS) or _TAG.search(line):
            ours.append(line.split(" [")[0])
        else:
            foreign.append(counted)
    return Snapshot(tuple(ours), tuple(foreign), tuple(line for line in foreign if " -A " in line))


def _is_our_rule(table: str, rule: KernelRule) -> bool:
    return rule.chain in _OUR_CHAINS or table == render.TABLE or bool(tag_of(comment(rule)))


def _foreign_lines(listing: str) -> Iterator[str]:
    """The lines of `nft -a list ruleset` that are not of flanneld-masq."""
    end = ""
    for line in listing.splitlines():
        words = line.split()
        if end:
            end = "" if line == end else end
        elif words[:1] == ["table"] and words[2] == render.TABLE:
            end = "}"
        elif words[:1] == ["chain"] and words[1] in _OUR_CHAINS:
            end = "\t}"
        elif line and not any(chain in line for chain in _OUR_CHAINS):
            yield line


def _with(rule: Rule, **changes: Any) -> Rule:
    return replace(rule, **changes)


def _one(command: str, _: int) -> list[str]:
    return [command]


def _body(line: str) -> str:
    """The rule, without `-A CHAIN`."""
    return line.split(" ", 2)[2]


def _comment(text: str) -> str:
    return f'-m comment --comment "{text}"'
