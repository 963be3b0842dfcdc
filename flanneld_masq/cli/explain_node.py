"""The part of `explain` that is about the node as it is: a packet through the rules of every program."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.cli.command_options import PROTOCOLS
from flanneld_masq.errors import ConfigError, MasqError
from flanneld_masq.model import SLOTS, Address
from flanneld_masq.packet_path.collect import collect
from flanneld_masq.packet_path.evaluate import Fate, Node, Outcome, Result
from flanneld_masq.packet_path.owners import OURS
from flanneld_masq.packet_path.packet import WITH_PORTS, Packet
from flanneld_masq.packet_path.routing import UNICAST, Routing
from flanneld_masq.packet_path.state import Effect, Step
from flanneld_masq.process import ProcessRunner

_NO_RULE = ("sysctl", "routing")  # what stands for a table where the kernel drops without a rule
_CLIENT_PORT = 40000
_VERBS = {Effect.DROPPED: "drop", Effect.REJECTED: "reject"}


@dataclass(frozen=True, **SLOTS)
class Decider:
    """A rule that decides about a packet, and its owner. `owner` is the name of a program; empty if that is not known.
    `certain` is False if the rule only may decide."""

    step: Step
    owner: str
    certain: bool = True

    def __str__(self) -> str:
        place = self.step.place
        if place.table in _NO_RULE:
            return f"the kernel {self._verb()}: {place.text}"
        owner = f" ({self.owner})" if self.owner else ""
        if not place.number:
            return f"the policy of {place.chain} in {place.table}{owner} {self._verb()}"
        return f"rule {place.number} of {place.chain} in {place.table}{owner} {self._verb()}: {place.text}"

    def _verb(self) -> str:
        if self.step.effect is Effect.MAY:
            return "may decide otherwise"
        detail = self.step.detail
        translated = "masquerade" if detail.startswith("masquerade") else "translate"
        verb = _VERBS.get(self.step.effect, translated)
        done = f"{verb}s it" if self.certain else f"may {verb} it"
        return f"{done} ({detail})" if verb in ("translate", "drop") and detail else done

    def as_data(self) -> dict[str, object]:
        place = self.step.place
        return {
            "effect": self.step.effect.value,
            "hook": self.step.hook.value,
            "table": place.table,
            "chain": place.chain or None,
            "number": place.number or None,
            "handle": place.handle or None,
            "text": place.text,
            "owner": self.owner or None,
            "detail": self.step.detail or None,
        }


@dataclass(frozen=True, **SLOTS)
class Followed:
    """The fate of a packet on this node, and the rules that decide it."""

    node: Node
    result: Result

    @property
    def deciders(self) -> tuple[Decider, ...]:
        """Return the rules that decide; of one that may drop a packet, not also that it may not."""
        certain, found = self.result.certain, self.result.deciders
        ended = {step.place for step in found if step.effect is not Effect.MAY}
        steps = [step for step in found if step.effect is not Effect.MAY or step.place not in ended]
        return tuple(Decider(step, self.node.owner(step), certain) for step in steps)

    @property
    def fate(self) -> str:
        """Return the fate of the packet, for the first line of the answer."""
        if not self.result.certain:
            arrives = self.result.fate is Fate.DELIVERED
            return "arrives, but its addresses are not certain" if arrives else "it is not certain that it arrives"
        outcome, packet = self.result.outcomes[0], self.result.packet
        if not outcome.delivered:
            return outcome.steps[-1].effect.value if outcome.steps else Effect.DROPPED.value
        source = outcome.src.address
        kept = "keeps its source address" if source == packet.src else f"masqueraded as {source}"
        return kept if outcome.dst.address == packet.dst else f"{kept}, sent to {outcome.dst}"

    @property
    def description(self) -> str:
        """Return what the first line says of the packet besides its addresses."""
        packet = self.result.packet
        name = next((name for name, number in PROTOCOLS.items() if number == packet.proto), str(packet.proto))
        port = f" port {packet.dport}" if packet.dport else ""
        return f", {name}{port}, {f'from {packet.iif}' if packet.iif else 'of this node'}"

    @property
    def foreign(self) -> tuple[Decider, ...]:
        return tuple(one for one in self.deciders if one.owner != OURS)

    def lines(self, masquerades: bool) -> Iterator[str]:
        """Yield the answer in sentences. `masquerades` is what flanneld-masq's own policy says."""
        policy = "flanneld-masq masquerades it" if masquerades else "flanneld-masq leaves it alone"
        if self.foreign:
            yield f"{policy}, but {'; '.join(map(str, self.foreign))}"
        elif masquerades and self.result.certain and self.result.source == self.result.packet.src:
            yield f"{policy}, but its rules are not in force: see `flanneld-masq plan`"
        else:
            yield f"{policy}, and no other program's rule decides"
        if self.result.why_not:
            yield f"this is not certain: {self.result.why_not}"

    def as_data(self) -> dict[str, object]:
        result = self.result
        ends: Outcome | None = result.outcomes[0] if result.certain and result.outcomes[0].delivered else None
        return {
            "fate": result.fate.value,
            "certain": result.certain,
            "from": result.packet.iif or None,
            "to": (ends.device or None) if ends else None,
            "arrives_from": str(ends.src.address) if ends else None,
            "arrives_at": str(ends.dst.address) if ends else None,
            "decided_by": [one.as_data() for one in self.deciders],
            "cannot_tell": result.why_not or None,
        }


def follow(options: argparse.Namespace, root: Path) -> Followed:
    """Follow the packet of the options. Raises MasqError if the node cannot be read, or no such packet can come."""
    node = Node(collect(ProcessRunner(), root))
    return Followed(node, node.evaluate(packet_of(options, node)))


def packet_of(options: argparse.Namespace, node: Node) -> Packet:
    """Return the packet of the options: the first of its flow, by the device on which its source is."""
    ports = options.proto in WITH_PORTS
    packet = Packet(options.src, options.dst, options.proto, mark=options.mark)
    iif = _device(options.iif, options.src, node.routing[packet.family])
    sport, dport = (_CLIENT_PORT, options.dport or None) if ports else (None, None)
    return Packet(options.src, options.dst, options.proto, sport, dport, iif, options.mark)


def _device(asked: str, src: Address, routing: Routing) -> str:
    if asked:
        if asked not in routing.links:
            raise ConfigError("command line", "--from", f"this node has no interface {asked}")
        return asked
    if routing.is_local(src):
        return ""
    route = routing.route(None, src, "", 0)[0]
    if route.kind != UNICAST:
        raise MasqError(f"no route leads to {src}; name the interface by which its packets come with --from")
    return route.device
