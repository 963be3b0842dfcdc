"""Random rulesets of every flavour, and real packets: the kernel does with each what the model says.

A ruleset mixes tables of nft, iptables-nft and iptables-legacy, with chains, jumps, sets, verdict maps, NAT and marks.
The same seed makes the same ruleset.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Optional

import pytest

from flanneld_masq.packet_path.collect import collect
from flanneld_masq.packet_path.evaluate import Node, Result
from flanneld_masq.packet_path.packet import ACK, SYN, TCP, UDP, Connection, CtState, Packet
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.topology import Topology, families

from ..common import FIGURE
from .packet_lab import Arrival, PacketLab
from .random_rulesets import random_packets, random_ruleset, vips

RULESETS = 200 if os.environ.get("LONG") == "1" else 20
PACKETS = 20
GROUPS = 4  # tests among which the rulesets are spread, so that processes of pytest-xdist share them
MAX_UNCERTAIN = 0.05
SEED = int(os.environ.get("SEED", "1"))


def follow(seed: int) -> Counter[str]:
    """Send packets through one ruleset and count what the model said of them. Fails where the kernel did otherwise."""
    source = random.Random(seed)
    family = source.choice(families())
    said: Counter[str] = Counter()
    with Topology(prefix="path-") as topology, PacketLab(topology, family) as lab:
        lab.route(vips(family))
        ruleset = random_ruleset(source, topology.of(family))
        ruleset.load(topology.node)
        with topology.node.entered():
            node = Node(collect(ProcessRunner()))
        assert not node.snapshot.unread
        packets = random_packets(source, topology.of(family), PACKETS)
        results = [node.evaluate(packet) for packet in packets]
        arrivals = lab.send(packets, [expected(result) for result in results])
        check(seed, str(ruleset), results, arrivals, said)
        answers = [answer for one in zip(results, arrivals) for answer in answers_to(*one)]
        results = [node.evaluate(answer) for answer in answers]
        check(seed, str(ruleset), results, lab.send(answers, [expected(one) for one in results]), said)
    return said


def check(
    seed: int, ruleset: str, results: Sequence[Result], arrivals: Sequence[Optional[Arrival]], said: Counter[str]
) -> None:
    for result, arrival in zip(results, arrivals):
        packet = result.packet
        said["answers"] += packet.reply
        said[result.fate.value if result.certain else "may"] += 1
        said["translated"] += any(one.src != packet.source or one.dst != packet.destination for one in result.outcomes)
        assert agree(result, arrival), story(seed, ruleset, result, arrival)


def answers_to(result: Result, arrival: Optional[Arrival]) -> Iterator[Packet]:
    """Yield the answer of the host that a packet certainly reached, if the flow is tracked."""
    packet = result.packet
    if arrival is None or not result.certain or packet.proto not in (TCP, UDP):
        return
    if arrival.device in ("", packet.iif):  # the node would answer itself; a host's answer to itself never leaves it
        return
    if any(outcome.untracked for outcome in result.outcomes):
        return
    marks = {one.ct_mark for one in result.outcomes}
    connection = Connection(
        packet.source, packet.destination, arrival.src, arrival.dst, marks.pop() if len(marks) == 1 else None
    )
    ends = (arrival.dst.address, arrival.src.address, packet.proto, arrival.dst.port, arrival.src.port)
    flags = SYN | ACK
    yield Packet(*ends, arrival.device, 0, CtState.ESTABLISHED, True, connection, flags)


def expected(result: Result) -> bool:
    """Return True if the model says for certain that the packet arrives."""
    return all(outcome.delivered for outcome in result.outcomes)


def agree(result: Result, arrival: Optional[Arrival]) -> bool:
    """Return True if the kernel did one of the things that the model has as outcomes."""
    if result.why_not:
        return True
    for outcome in result.outcomes:
        if arrival is None or not outcome.delivered:
            if arrival is None and not outcome.delivered:
                return True
            continue
        ends = (outcome.src.address, outcome.dst.address) == (arrival.src.address, arrival.dst.address)
        ports = outcome.dst.port in (None, arrival.dst.port) and outcome.src.port in (None, arrival.src.port)
        if outcome.device == arrival.device and (outcome.unknown_end or (ends and ports)):
            return True
    return False


def story(seed: int, ruleset: str, result: Result, arrival: Optional[Arrival]) -> str:
    lines = [f"seed {seed}", ruleset, f"packet {result.packet}", f"the kernel: {arrival or 'dropped'}", "the model:"]
    for outcome in result.outcomes:
        end = f"{outcome.src} -> {outcome.dst} by {outcome.device or 'the node'}" if outcome.delivered else "dropped"
        lines += [f"  {end}", *(f"    {step.hook.value} {step.effect.value} {step.place}" for step in outcome.steps)]
    return "\n".join(lines)


@pytest.mark.parametrize("group", range(GROUPS))
def test_the_kernel_does_what_the_model_says(group: int, record_property: Callable[[str, object], None]) -> None:
    said: Counter[str] = Counter()
    for number in range(group, RULESETS, GROUPS):
        said += follow(SEED * 100_000 + number)
    total = said["delivered"] + said["dropped"] + said["may"]
    record_property(FIGURE, f"packets through random rulesets: {dict(said)}, may {said['may'] / total:.1%}")
    assert total - said["answers"] == PACKETS * len(range(group, RULESETS, GROUPS))
    assert said["may"] <= MAX_UNCERTAIN * total
    assert said["delivered"] and said["dropped"]
