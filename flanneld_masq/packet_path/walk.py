"""Walks packets through the rules of one base chain. Pure.

A test that may hold splits the way in two. Ways on which the packet looks the same to all later rules join again, so
that many such tests do not multiply.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from itertools import islice
from typing import Optional, TypeVar, Union

from flanneld_masq.model import SLOTS, Address, Family
from flanneld_masq.packet_path.packet import Endpoint
from flanneld_masq.packet_path.rule_index import AddressKey
from flanneld_masq.packet_path.rules import (
    BaseChain,
    Chain,
    Change,
    ChangeField,
    Compute,
    Const,
    Draw,
    Expression,
    Hook,
    Jump,
    Lost,
    MapLookup,
    May,
    MayEnd,
    Nat,
    NatKind,
    Never,
    NoTrack,
    Op,
    Operation,
    Place,
    Read,
    Rule,
    Target,
    Test,
    Verdict,
    VerdictMap,
)
from flanneld_masq.packet_path.state import Effect, Scene, State, Step, has_connection, read
from flanneld_masq.packet_path.values import MISSING, UNKNOWN, Choices, Element, Elements, Interval, Value

MAX_DEPTH = 48  # of jumps; nf_tables allows 16
MAX_RULES = 1_000_000  # that one packet meets in one chain
MAX_WAYS = 128  # of one packet through one chain
MAX_STEPS = 100  # of one way
MAX_TARGETS = 16  # addresses of one NAT rule
MAX_DRAWN = 256  # numbers that the kernel draws from; of more the model knows none


class TooManyWays(Exception):
    """A packet has more ways through a chain than the model follows."""


@dataclass(frozen=True, **SLOTS)
class End:
    """The end of a way through a base chain: what becomes of the packet."""

    verdict: Verdict
    state: State


# ---- values


def evaluate(expression: Expression, state: State, scene: Scene) -> Value:
    """Return the value of an expression for a packet."""
    if isinstance(expression, Read):
        return read(expression.field, expression.proto, state, scene)
    if isinstance(expression, Const):
        return expression.value
    if isinstance(expression, Compute):
        return _compute(expression, state, scene)
    if isinstance(expression, Draw):
        return _drawn(expression)
    if isinstance(expression, MapLookup):
        return _look_up(expression, state, scene)
    return UNKNOWN


def _drawn(draw: Draw) -> Value:
    """Return the numbers that the kernel may draw."""
    if draw.count > MAX_DRAWN:
        return UNKNOWN
    return Choices(frozenset(range(draw.first, draw.first + draw.count)))


def _compute(expression: Compute, state: State, scene: Scene) -> Value:
    left, right = (evaluate(side, state, scene) for side in (expression.left, expression.right))
    if MISSING in (left, right):
        return MISSING
    if expression.name == "&" and 0 in (left, right):
        return 0
    if not isinstance(left, int) or not isinstance(right, int):
        return UNKNOWN
    return expression.function(left, right)


def _look_up(expression: MapLookup, state: State, scene: Scene) -> Value:
    """Return the number of the one element that holds the key."""
    key = [evaluate(part, state, scene) for part in expression.key]
    if MISSING in key:
        return MISSING
    found = list(expression.elements.find(key)) if expression.elements.complete else [(False, (UNKNOWN,))]
    if not found:
        return MISSING
    certain, data = found[0]
    return data[0] if certain and isinstance(data[0], int) else UNKNOWN


def passes(test: Union[Test, May, Never], state: State, scene: Scene) -> Optional[bool]:
    """Tell if a test holds; None if that is not known."""
    if isinstance(test, May):
        return None
    if isinstance(test, Never):
        return False
    key = [evaluate(part, state, scene) for part in test.key]
    if MISSING in key:
        return False
    if test.op is Op.EQ:
        return test.elements.contains(key)
    if test.op is Op.NE:
        answer = test.elements.contains(key)
        return None if answer is None else not answer
    return _compare(test, key[0])


def _compare(test: Test, value: Value) -> Optional[bool]:
    if not isinstance(value, int):
        return None
    number = test.number
    if test.op in (Op.BITS, Op.NO_BITS):
        return bool(value & number) == (test.op is Op.BITS)
    return {Op.LT: value < number, Op.GT: value > number, Op.LE: value <= number, Op.GE: value >= number}[test.op]


# ---- the walk


@dataclass(**SLOTS)
class _Frame:
    """A chain that is walked: the rules whose jumps led to it, the packets that go on with its next rule, and those
    that return from it."""

    jumps: tuple[Place, ...]
    following: list[State]
    back: list[State]


class Walk:
    """Walks one base chain."""

    def __init__(self, base: BaseChain, scene: Scene) -> None:
        self._base = base
        self._scene = scene
        self._ends: dict[object, End] = {}
        self._budget = MAX_RULES

    def run(self, state: State) -> tuple[End, ...]:
        """Return the ends of every way through the chain. Raises TooManyWays."""
        policy = self._base.policy
        for one in self._chain(self._base.chain, (state,), ()):
            if policy is Verdict.DROP:
                place, tracked = self._base.policy_place, self._scene.tracked
                one = with_step(one, Step(self._scene.hook, place, Effect.DROPPED, tracked=tracked))
            self._end(policy, one)
        return tuple(self._ends.values())

    def _end(self, verdict: Verdict, state: State) -> None:
        """Keep an end; of those that are alike, one that is certain, or the first."""
        dropped = verdict in (Verdict.DROP, Verdict.REJECT)
        key = (verdict, state.steps[-1].place if dropped and state.steps else state.key)
        known = self._ends.get(key)
        if known is None or (known.state.uncertain and not state.uncertain):
            self._ends[key] = End(verdict, state)
        if len(self._ends) > MAX_WAYS:
            raise TooManyWays

    def _chain(self, chain: Chain, states: Sequence[State], jumps: tuple[Place, ...]) -> tuple[State, ...]:
        """Return the packets that come back from a chain."""
        if len(jumps) > MAX_DEPTH:
            raise TooManyWays
        frame = _Frame(jumps, [], [])
        position = chain.next(0, partial(_ends_of, states))
        while states and position is not None:
            self._budget -= 1
            if not self._budget:
                raise TooManyWays
            rule = chain.rule(position)
            for state in states:
                self._rule(rule, state, frame)
            states = joined(frame.following)
            frame.following = []
            position = chain.next(position + 1, partial(_ends_of, states))
        return joined([*frame.back, *states])

    def _rule(self, rule: Rule, state: State, frame: _Frame) -> None:
        ways = [state]
        for operation in rule.operations:
            if isinstance(operation, (Test, May, Never)):
                ways = list(self._tested(operation, rule, ways, frame))
            elif isinstance(operation, (Change, NoTrack, MayEnd)):
                ways = [changed for way in ways for changed in self._changed(operation, rule, way, frame)]
            else:
                for way in ways:
                    self._act(operation, rule, way, frame)
                return
            if not ways:
                return
        frame.following += ways

    def _tested(
        self, test: Union[Test, May, Never], rule: Rule, ways: Iterable[State], frame: _Frame
    ) -> Iterator[State]:
        for way in ways:
            answer = passes(test, way, self._scene)
            if answer is not True:
                frame.following.append(way)
            if answer is None:
                detail = test.text if isinstance(test, May) else ""
                yield self._noted(way, rule, Effect.MAY, frame, detail)
            elif answer:
                yield way

    def _changed(
        self, operation: Union[Change, NoTrack, MayEnd], rule: Rule, way: State, frame: _Frame
    ) -> Iterator[State]:
        """Yield the packet behind an action that does not end the rule."""
        if isinstance(operation, MayEnd):
            way = self._noted(way, rule, Effect.MAY, frame, operation.text)
            self._end(Verdict.DROP, way)
            self._end(Verdict.ACCEPT, way)
            yield way
        elif isinstance(operation, NoTrack):
            noted = way if self._scene.tracked else self._noted(way, rule, Effect.UNTRACKED, frame)
            yield replace(noted, untracked=way.untracked or not self._scene.tracked)
        else:
            yield from self._written(operation, rule, way, frame)

    def _written(self, change: Change, rule: Rule, way: State, frame: _Frame) -> Iterator[State]:
        """Yield the packet with a new mark or address; the kernel leaves a rule that reads what is not there."""
        value = evaluate(change.value, way, self._scene)
        if value is MISSING:
            frame.following.append(way)
        elif change.field is ChangeField.CT_MARK and not has_connection(way, self._scene):
            yield way
        else:
            yield written(change.field, value, self._noted(way, rule, Effect.MARKED, frame))

    def _act(self, operation: Operation, rule: Rule, way: State, frame: _Frame) -> None:
        """Do what ends a rule."""
        if isinstance(operation, Verdict):
            self._verdict(operation, rule, way, frame)
        elif isinstance(operation, Lost):
            self._end(Verdict.DROP, self._noted(way, rule, Effect.DROPPED, frame, operation.text))
        elif isinstance(operation, Jump):
            self._jump(operation, rule, way, frame)
        elif isinstance(operation, VerdictMap):
            self._mapped(operation, rule, way, frame)
        elif isinstance(operation, Nat):
            self._translate(operation, rule, way, frame)

    def _verdict(self, verdict: Verdict, rule: Rule, way: State, frame: _Frame) -> None:
        if verdict is Verdict.RETURN:
            frame.back.append(way)
        elif verdict is Verdict.CONTINUE:
            frame.following.append(way)
        else:
            self._end(verdict, self._noted(way, rule, _EFFECTS[verdict], frame))

    def _jump(self, jump: Jump, rule: Rule, way: State, frame: _Frame) -> None:
        chain = self._base.chains.get(jump.chain) if jump.inline is None else jump.inline
        if chain is None:  # the target of an extension that the model does not know
            frame.following += self._changed(MayEnd(f"-j {jump.chain}"), rule, way, frame)
            return
        returned = self._chain(chain, (way,), (*frame.jumps, rule.place))
        (frame.following if jump.back else frame.back).extend(returned)

    def _mapped(self, lookup: VerdictMap, rule: Rule, way: State, frame: _Frame) -> None:
        """Do what the map says; of a key that is not known, everything that it may say."""
        key = [evaluate(part, way, self._scene) for part in lookup.key]
        found, complete = _found(lookup.elements, key)
        for action, certain in found.items():
            one = way if certain else self._noted(way, rule, Effect.MAY, frame)
            self._act(action, rule, one, frame)
        if not complete:
            frame.following.append(way)

    def _translate(self, nat: Nat, rule: Rule, way: State, frame: _Frame) -> None:
        """Translate the flow, in every way that the kernel may; a rule without a target for it does nothing."""
        name, nat = nat.kind.value, replace(nat, kind=nat.kind.at(self._scene.hook))
        fits = nat.version in (0, way.src.address.version)
        key = [evaluate(part, way, self._scene) for part in nat.key]
        found, complete = _found(nat.targets, key) if fits else ({}, False)
        for target in islice(found, MAX_TARGETS):
            for moved in translated(nat, target, way, self._scene):
                old, new = (way.src, moved.src) if nat.kind.source else (way.dst, moved.dst)
                detail = f"{name} {old} -> {'?' if moved.unknown_end else new}"
                self._end(Verdict.ACCEPT, self._noted(moved, rule, Effect.TRANSLATED, frame, detail))
        if not complete:
            frame.following.append(way)

    def _noted(self, state: State, rule: Rule, effect: Effect, frame: _Frame, detail: str = "") -> State:
        """Return the state with a step more."""
        step = Step(self._scene.hook, rule.place, effect, detail, frame.jumps, self._scene.tracked)
        noted = with_step(state, step)
        return replace(noted, uncertain=True) if effect is Effect.MAY else noted


def _ends_of(states: Sequence[State]) -> Optional[set[AddressKey]]:
    """Return the addresses of packets; None if one is not known."""
    if any(state.unknown_end for state in states):
        return None
    return {end for state in states for end in ((True, state.src.address.packed), (False, state.dst.address.packed))}


_EFFECTS = {Verdict.ACCEPT: Effect.ACCEPTED, Verdict.DROP: Effect.DROPPED, Verdict.REJECT: Effect.REJECTED}


_Found = TypeVar("_Found")


def _found(elements: Elements[_Found], key: Sequence[Value]) -> tuple[dict[_Found, bool], bool]:
    """Return the values that a map may have for a key, each with True if it is certain; and if it says one for
    certain."""
    if MISSING in key:
        return {}, False
    found: dict[_Found, bool] = {}
    for certain, data in elements.find(key):
        certain = certain and elements.complete
        found[data] = found.get(data, False) or certain
    complete = any(found.values())
    if len(found) > 1:
        found = dict.fromkeys(found, False)
    return found, complete or _covers(elements, key)


def _covers(elements: Elements[_Found], key: Sequence[Value]) -> bool:
    """Return True if the map has an element for every number that the kernel may draw."""
    if len(key) != 1 or not isinstance(key[0], Choices):
        return False
    return all(elements.contains([value]) for value in key[0].values)


def with_step(state: State, step: Step) -> State:
    return replace(state, steps=(*state.steps, step)[-MAX_STEPS:])


def joined(states: Sequence[State]) -> tuple[State, ...]:
    """Return the states without those that look the same to later rules; of these a certain one, or the first."""
    if len(states) < 2:
        return tuple(states)
    found: dict[object, State] = {}
    for state in states:
        known = found.get(state.key)
        if known is None or (known.uncertain and not state.uncertain):
            found[state.key] = state
    if len(found) > MAX_WAYS:
        raise TooManyWays
    return tuple(found.values())


def written(field: ChangeField, value: Value, state: State) -> State:
    number = value & 0xFFFFFFFF if isinstance(value, int) and field not in _ADDRESSES else value
    known = number if isinstance(number, int) else None
    if field is ChangeField.MARK:
        return replace(state, mark=known)
    if field is ChangeField.CT_MARK:
        return replace(state, ct_mark=known)
    if known is None:
        return replace(state, unknown_end=True)
    family = Family.IPV4 if state.src.address.version == 4 else Family.IPV6
    address = type(state.src.address)(known) if known >> family.data.width == 0 else ip_address(0)
    if field is ChangeField.SADDR:
        return replace(state, src=Endpoint(address, state.src.port))
    return replace(state, dst=Endpoint(address, state.dst.port))


_ADDRESSES = (ChangeField.SADDR, ChangeField.DADDR)

# ---- NAT


def translated(nat: Nat, target: Target, state: State, scene: Scene) -> Iterator[State]:
    """Yield the packet behind NAT to a target: one state for each address that the kernel may pick."""
    for end in _ends(nat, target, state, scene):
        yield _moved(nat.kind, state, end)


def _ends(nat: Nat, target: Target, state: State, scene: Scene) -> Iterator[Optional[Endpoint]]:
    """Yield what the translated end may become; None for one that is not known."""
    old = state.src if nat.kind.source else state.dst
    port = _new_port(nat, target, old)
    if target.addresses is UNKNOWN:
        yield None
    elif target.prefix and isinstance(target.addresses, Interval):
        size = target.addresses.high - target.addresses.low
        yield Endpoint(_like(old, target.addresses.low | int(old.address) & size), port)
    elif target.addresses is not None:
        for number in _numbers(target.addresses):
            yield Endpoint(_like(old, number), port)
    elif nat.kind in (NatKind.MASQUERADE, NatKind.REDIRECT):
        own = _own_address(nat.kind, state, scene)
        yield None if own is None else Endpoint(own, port)
    else:
        yield Endpoint(old.address, port)


def _like(old: Endpoint, number: int) -> Address:
    return type(old.address)(number)


def _numbers(element: Element) -> Iterator[int]:
    if isinstance(element, Interval):
        yield from range(element.low, min(element.high, element.low + MAX_TARGETS - 1) + 1)
    elif isinstance(element, int):
        yield element


def _new_port(nat: Nat, target: Target, old: Endpoint) -> Optional[int]:
    if isinstance(target.ports, int):
        return target.ports
    if isinstance(target.ports, Interval) and old.port is not None and old.port in target.ports and not nat.random:
        return old.port
    return None if target.ports is not None or nat.random else old.port


def _own_address(kind: NatKind, state: State, scene: Scene) -> Optional[Address]:
    if kind is NatKind.MASQUERADE:
        return scene.routing.source_for(state.route, state.dst.address) if state.route else None
    if scene.hook is Hook.OUTPUT:
        return ip_address("127.0.0.1" if state.src.address.version == 4 else "::1")
    own = [one.address for one in scene.routing.addresses if one.device == state.first.iif]
    return own[0] if own else None


def _moved(kind: NatKind, state: State, end: Optional[Endpoint]) -> State:
    """Return the packet with its new end, and remember that NAT of this kind is done."""
    old = state.src if kind.source else state.dst
    changed = end != old
    unknown = state.unknown_end or end is None
    new = old if end is None else end
    if kind.source:
        nat = replace(state.nat, source_done=True, source=state.nat.source or changed)
        return replace(state, src=new, nat=nat, unknown_end=unknown)
    nat = replace(state.nat, destination_done=True, destination=state.nat.destination or changed)
    return replace(state, dst=new, nat=nat, unknown_end=unknown)
