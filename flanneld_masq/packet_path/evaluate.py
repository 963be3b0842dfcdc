"""Follows a packet through the node: hooks, routing, sysctls. Pure over a snapshot.

    by a device:  ingress -> prerouting -> routing -> input, or forward -> postrouting -> egress
    by the node:  routing -> output -> (routing again) -> postrouting -> egress

The kernel calls the base chains of a hook in the order of their priorities. A packet that one of them drops is gone;
one that it accepts goes on to the next.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Optional

from flanneld_masq.model import SLOTS, Address, Family
from flanneld_masq.packet_path.owners import owner_of
from flanneld_masq.packet_path.packet import CtState, Endpoint, Packet
from flanneld_masq.packet_path.routing import LOCAL, LOOPBACK, MULTICAST, NO_ROUTE, UNICAST, Route, Routing
from flanneld_masq.packet_path.rules import BaseChain, Hook, Place, Verdict
from flanneld_masq.packet_path.ruleset import NAT_PRIORITY, Ruleset, ruleset, runs_at
from flanneld_masq.packet_path.snapshot import Snapshot
from flanneld_masq.packet_path.state import Effect, Scene, State, Step, begin
from flanneld_masq.packet_path.walk import TooManyWays, Walk, joined, with_step

_LAST = 1 << 31
_ANY_MARK = (0, *(1 << bit for bit in range(32)))  # examples of a mark that is not known
_HERE = (LOCAL, "broadcast", MULTICAST, "anycast")


class Fate(str, enum.Enum):
    """The end of a packet."""

    DELIVERED = "delivered"
    DROPPED = "dropped"
    MAY = "may"  # it depends on what cannot be evaluated


@dataclass(frozen=True, **SLOTS)
class Outcome:
    """One end that the packet may have.

    `src` and `dst` are the ends of the packet as it leaves, `device` where it leaves, empty for the node itself.
    `steps` are the rules that changed or ended it, in order; the last decided. `unknown_end` is True if an address is
    not known, `untracked` if connection tracking does not see the flow.
    """

    delivered: bool
    src: Endpoint
    dst: Endpoint
    device: str
    mark: Optional[int]
    ct_mark: Optional[int]
    steps: tuple[Step, ...]
    unknown_end: bool = False
    untracked: bool = False

    @property
    def deciders(self) -> tuple[Step, ...]:
        """Return the rules that dropped, rejected or translated the packet."""
        return tuple(step for step in self.steps if step.effect in _DECIDING)


_DECIDING = (Effect.DROPPED, Effect.REJECTED, Effect.TRANSLATED)


@dataclass(frozen=True, **SLOTS)
class Result:
    """Every end that a packet may have, at least one. `why_not` is the reason why other results are possible: the model
    gave up, or a part of the snapshot could not be read."""

    packet: Packet
    outcomes: tuple[Outcome, ...]
    why_not: str = ""

    @property
    def fate(self) -> Fate:
        ends = {outcome.delivered for outcome in self.outcomes}
        if len(ends) != 1 or self.why_not:
            return Fate.MAY
        return Fate.DELIVERED if ends.pop() else Fate.DROPPED

    @property
    def certain(self) -> bool:
        """True if there is one end: dropped, or delivered by one device with one source and one destination."""
        ends = {one.delivered and (one.src.address, one.dst, one.device) for one in self.outcomes}
        unknown = any(one.delivered and one.unknown_end for one in self.outcomes)
        return len(ends) == 1 and not self.why_not and not unknown

    @property
    def source(self) -> Optional[Address]:
        """Return the source address that arrives; None if the packet may not, or if it may be another."""
        found = {outcome.src.address for outcome in self.outcomes}
        known = self.fate is Fate.DELIVERED and not any(outcome.unknown_end for outcome in self.outcomes)
        return found.pop() if known and len(found) == 1 else None

    @property
    def deciders(self) -> tuple[Step, ...]:
        """Return the rules that decided, of every outcome, each once; with those that may have, if it is uncertain."""
        steps = [step for outcome in self.outcomes for step in outcome.deciders]
        if not self.certain:
            steps += [step for one in self.outcomes for step in one.steps if step.effect is Effect.MAY]
        return tuple(dict.fromkeys(steps))


class Node:
    """A snapshot that was read, for many packets. Rules are compiled when a packet first reaches their chain."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.ruleset: Ruleset = ruleset(snapshot)
        self.routing = {family: Routing(snapshot, family) for family in Family}

    def evaluate(self, packet: Packet) -> Result:
        """Follow a packet. Where two tables have one priority, it is followed in both orders."""
        outcomes: dict[object, Outcome] = {}
        hooks = [hook for hook in Hook if self.ruleset.has_ties(hook, packet.family)]
        try:
            for latest_first in (True, False) if hooks else (True,):
                for outcome in _Path(self, packet, latest_first).outcomes():
                    outcomes.setdefault(_alike(outcome), outcome)
        except TooManyWays:
            given_up = Outcome(False, packet.source, packet.destination, "", packet.mark, None, ())
            return Result(packet, (given_up,), "too many rules on its way cannot be evaluated")
        unread = "; ".join(self.snapshot.unread) if any(one.delivered for one in outcomes.values()) else ""
        return Result(packet, tuple(outcomes.values()), unread)

    def owner(self, step: Step) -> str:
        """Return the program that owns the rule of a step, empty if it is not recognised."""
        beside = next((tuple(base.chains) for base in self.ruleset.bases if base.table == step.place.table), ())
        return owner_of(step.place, beside, step.jumps)


def evaluate(snapshot: Snapshot, packet: Packet) -> Result:
    """Follow one packet. Raises SnapshotError if the snapshot cannot be read; use `Node` for several packets."""
    return Node(snapshot).evaluate(packet)


def _alike(outcome: Outcome) -> object:
    if not outcome.delivered:
        return (False, outcome.steps[-1].place if outcome.steps else None)
    marks = (outcome.mark, outcome.ct_mark, outcome.untracked)
    return (True, outcome.src, outcome.dst, outcome.device, marks, outcome.unknown_end)


class _Path:
    """The way of one packet, with tables of one priority in one order."""

    def __init__(self, node: Node, packet: Packet, latest_first: bool) -> None:
        self._node = node
        self._packet = packet
        self._latest_first = latest_first
        self._routing = node.routing[packet.family]
        self._lost: list[Outcome] = []

    def outcomes(self) -> tuple[Outcome, ...]:
        """Return every end. Raises TooManyWays."""
        state = begin(self._packet)
        arrived = self._from_device(state) if self._packet.iif else self._from_node(state)
        return (*arrived, *self._lost)

    def _from_device(self, state: State) -> tuple[Outcome, ...]:
        found: list[Outcome] = []
        if self._is_kept_off(state):
            return ()
        for after in self._hook(Hook.PREROUTING, self._at_device(Hook.INGRESS, (state,))):
            if self._is_bridged(after):
                bridged = replace(after, route=Route(UNICAST, self._packet.iif))
                found += self._leave(self._hook(Hook.FORWARD, (bridged,)))
                continue
            for routed in self._routed(after):
                if not self._is_source_valid(routed):
                    continue
                if routed.route is not None and routed.route.kind in _HERE:
                    found += self._ends(self._hook(Hook.INPUT, (routed,)), "")
                elif self._is_forwarded(routed):
                    found += self._leave(self._hook(Hook.FORWARD, (routed,)))
        return tuple(found)

    def _from_node(self, state: State) -> tuple[Outcome, ...]:
        found: list[Outcome] = []
        for routed in self._routed(state):
            for after in self._hook(Hook.OUTPUT, (routed,)):
                changed = (after.dst.address, after.mark) != (routed.dst.address, routed.mark)
                found += self._leave(tuple(self._routed(after)) if changed else (after,))
        return tuple(found)

    def _leave(self, states: Sequence[State]) -> Iterator[Outcome]:
        for state in self._hook(Hook.POSTROUTING, states):
            if state.route is not None and state.route.kind in _HERE and not self._packet.iif:
                yield from self._ends(self._looped(state), "")
            else:
                sent = self._at_device(Hook.EGRESS, (state,))
                yield from self._ends(sent, state.route.device if state.route else "")

    def _looped(self, state: State) -> tuple[State, ...]:
        """Return a packet that the node sends to itself, as it comes back by the loopback device."""
        done = replace(state.nat, source_done=True, destination_done=True)
        back = replace(state, first=replace(state.first, iif=LOOPBACK), nat=done)
        return self._hook(Hook.INPUT, self._hook(Hook.PREROUTING, (back,)))

    def _ends(self, states: Sequence[State], device: str) -> Iterator[Outcome]:
        for state in states:
            yield _outcome(state, device, delivered=True)

    # ---- hooks

    def _hook(self, hook: Hook, states: Sequence[State]) -> tuple[State, ...]:
        """Return the packets that pass every chain of a hook."""
        states = tuple(states)
        connection = NAT_PRIORITY.get(hook, _LAST)
        done = self._packet.connection is None or hook not in NAT_PRIORITY
        for base in self._node.ruleset.at(hook, self._packet.family, latest_first=self._latest_first):
            if not done and runs_at(base) >= connection:
                states, done = tuple(_reversed_nat(state, hook) for state in states), True
            states = self._pass(base, states)
        if not done:
            states = tuple(_reversed_nat(state, hook) for state in states)
        return states

    def _at_device(self, hook: Hook, states: Sequence[State]) -> tuple[State, ...]:
        """Return the packets that pass the chains of their device. NAT has no part in these hooks."""
        states = tuple(states)
        for base in self._node.ruleset.at(hook, self._packet.family, latest_first=self._latest_first):
            states = self._pass(base, states)
        return states

    def _pass(self, base: BaseChain, states: Sequence[State]) -> tuple[State, ...]:
        passed: list[State] = []
        scene = Scene(base.hook, runs_at(base), self._routing)
        for state in states:
            if not _is_seen(base, state):
                passed.append(state)
                continue
            for end in Walk(base, scene).run(state):
                if end.verdict in (Verdict.DROP, Verdict.REJECT):
                    self._lose(end.state)
                else:
                    passed.append(end.state)
        return joined(passed)

    def _lose(self, state: State) -> None:
        device = state.route.device if state.route else ""
        self._lost.append(_outcome(state, device, delivered=False))

    # ---- routing and sysctls

    def _routed(self, state: State) -> Iterator[State]:
        """Yield the packet once for each route that it may take. Stop it where no route leads on."""
        marks = _ANY_MARK if state.mark is None else (state.mark,)
        routes: dict[Route, None] = {}
        for mark in marks:
            found = self._routing.route(state.src.address, state.dst.address, self._packet.iif, mark)
            routes.update(dict.fromkeys(found))
        for route in routes:
            if route.kind == UNICAST or route.kind in _HERE:
                yield replace(state, route=route)
            else:
                self._stop(state, "routing", route.text or NO_ROUTE.text)

    def _is_bridged(self, state: State) -> bool:
        """Return True if a bridge sends the packet on: it passes the rules, and neither routes nor sysctls decide.

        Source: `br_nf_pre_routing_finish` in net/bridge/br_netfilter_hooks.c.
        """
        device, dst = self._packet.iif, self._packet.dst
        near = any(one.device == device and dst in one.network for one in self._routing.addresses)
        same = state.dst.address == dst and not self._routing.is_local(dst)
        return near and same and self._routing.bridge_calls(device)

    def _is_kept_off(self, state: State) -> bool:
        """Return True if the device takes no packets of the family."""
        device = self._packet.iif
        if self._packet.family is Family.IPV6 and self._sysctl(f"net.ipv6.conf.{device}.disable_ipv6") == 1:
            self._stop(state, "sysctl", f"net.ipv6.conf.{device}.disable_ipv6 = 1")
            return True
        return False

    def _is_forwarded(self, state: State) -> bool:
        """Return True if no sysctl keeps the node from forwarding the packet."""
        device = self._packet.iif
        keys = ["net.ipv4.ip_forward", f"net.ipv4.conf.{device}.forwarding"]
        if self._packet.family is Family.IPV6:
            if self._sysctl(f"net.ipv6.conf.{device}.force_forwarding"):  # since Linux 6.17; source: `ip6_forward`
                return True
            keys = ["net.ipv6.conf.all.forwarding"]
        values = [self._sysctl(key) for key in keys]
        # ip_forward writes all devices' keys; the device's own decides.
        if values[-1] == 0:
            self._stop(state, "sysctl", f"{keys[values.index(0)]} = 0")
        return values[-1] != 0

    def _is_source_valid(self, state: State) -> bool:
        """Return True if neither rp_filter nor the packet's source, an address of the node, keeps the packet off."""
        text = self._reverse_path(state) if self._packet.family is Family.IPV4 else ""
        if text:
            self._stop(state, "sysctl", text)
        return not text

    def _reverse_path(self, state: State) -> str:
        """Return why rp_filter drops the packet, empty if it does not. Source: ip-sysctl.rst."""
        device = self._packet.iif
        modes = [self._sysctl(f"net.ipv4.conf.{name}.rp_filter") or 0 for name in ("all", device)]
        mode = max(modes)
        accepts = any(self._sysctl(f"net.ipv4.conf.{name}.accept_local") for name in ("all", device))
        if self._routing.is_local(state.src.address) and not accepts:
            return f"the source {state.src.address} is an address of the node"
        if not mode:
            return ""
        marked = any(self._sysctl(f"net.ipv4.conf.{name}.src_valid_mark") for name in ("all", device))
        mark = (state.mark or 0) if marked else 0
        found = self._routing.reverse_device(state.src.address, device, mark, strict=mode == 1)
        name = "all" if modes[0] == mode else device
        return f"net.ipv4.conf.{name}.rp_filter = {mode}" if found == "" else ""

    def _sysctl(self, key: str) -> Optional[int]:
        return self._node.snapshot.sysctl(key)

    def _stop(self, state: State, where: str, text: str) -> None:
        """Lose a packet for another reason than a rule."""
        place = Place(where, "", text=text)
        hook = Hook.OUTPUT if not self._packet.iif else Hook.FORWARD
        self._lose(with_step(state, Step(hook, place, Effect.DROPPED)))


def _outcome(state: State, device: str, *, delivered: bool) -> Outcome:
    marks = (state.mark, state.ct_mark)
    return Outcome(delivered, state.src, state.dst, device, *marks, state.steps, state.unknown_end, state.untracked)


def _is_seen(base: BaseChain, state: State) -> bool:
    """Return True if a chain sees the packet."""
    if base.hook is Hook.INGRESS:
        return state.first.iif in base.devices
    if base.hook is Hook.EGRESS:
        return state.route is not None and state.route.device in base.devices
    return not base.nat or _begins(state, base.hook)


def _begins(state: State, hook: Hook) -> bool:
    """Return True if chains of NAT see the packet: the first of a tracked flow, this end not translated yet."""
    if state.first.state is not CtState.NEW or state.untracked:
        return False
    done = state.nat.source_done if hook in (Hook.INPUT, Hook.POSTROUTING) else state.nat.destination_done
    return not done


def _reversed_nat(state: State, hook: Hook) -> State:
    """Return a packet of an existing connection as NAT translates it at a hook: later packets like the first, answers
    backwards."""
    connection = state.first.connection
    if connection is None or state.untracked:
        return state
    if hook in (Hook.PREROUTING, Hook.OUTPUT):
        return replace(state, dst=connection.src if state.first.reply else connection.new_dst)
    return replace(state, src=connection.dst if state.first.reply else connection.new_src)
