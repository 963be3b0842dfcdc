"""Steps of several packets become one journey for each."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from flanneld_masq.kernel.trace_events import Header, LegacyStep, NftStep, StepKind
from flanneld_masq.live.journey import Assembler, translated_destination, translated_source

TABLE = "flanneld-masq-trace-1"
POD, WORLD, NODE = map(ip_address, ("10.244.1.5", "192.0.2.7", "192.0.2.1"))
HEADER = Header(POD, WORLD, 17, 4000, 53, iif=3)


def begin(packet: int = 1, header: Header = HEADER) -> NftStep:
    return NftStep(2, TABLE, "prerouting", StepKind.RULE, packet, 5, "continue", header=header)


def end(packet: int = 1, header: Header | None = HEADER, chain: str = "postrouting") -> NftStep:
    return NftStep(2, TABLE, chain, StepKind.POLICY, packet, verdict="accept", header=header)


def rule(packet: int = 1, verdict: str = "accept", header: Header | None = None, handle: int = 7) -> NftStep:
    return NftStep(1, "firewalld", "FORWARD", StepKind.RULE, packet, handle, verdict, header=header)


def legacy(header: Header = HEADER) -> LegacyStep:
    return LegacyStep("filter", "FORWARD", StepKind.RULE, 1, 2, header)


def assembled(*steps: NftStep | LegacyStep, limit: int = 5) -> Assembler:
    assembler = Assembler(TABLE, limit)
    assembler.feed(steps)
    return assembler


def test_steps_of_two_packets_are_kept_apart() -> None:
    other = replace(HEADER, src=WORLD, dst=POD)
    first, second = assembled(begin(), begin(2, other), rule(), rule(2), end(2, other), end()).journeys
    assert (first.steps, second.steps) == ([rule()], [rule(2)])
    assert (first.end, second.end) == (HEADER, other)


def test_steps_of_another_trace_are_left_out() -> None:
    strange = replace(HEADER, src=NODE, dst=NODE)
    assert assembled(rule(), rule(9, header=strange), begin(), rule(9, header=strange)).journeys[0].steps == []


def test_a_number_that_changes_on_the_way() -> None:
    translated = replace(HEADER, src=NODE)
    (journey,) = assembled(begin(), rule(8, header=HEADER), rule(8), end(8, translated)).journeys
    assert journey.steps == [rule(8, header=HEADER), rule(8)]
    assert translated_source(journey) == NODE and translated_destination(journey) is None


def test_a_later_packet_has_the_same_numbers() -> None:
    one = (begin(), rule(8, "drop", HEADER))
    first, second = assembled(*one, *one).journeys
    assert first.steps == second.steps == [rule(8, "drop", HEADER)]
    assert first.dropped and first.end is None


def test_packets_beyond_the_limit_do_not_mix_with_others() -> None:
    one = (begin(), rule(8, "drop", HEADER))
    assembler = assembled(*one, *one, *one, limit=1)
    assert assembler.full
    assert [journey.steps for journey in assembler.journeys] == [[rule(8, "drop", HEADER)]]


def test_rules_of_ip_tables_stand_where_they_came() -> None:
    (journey,) = assembled(begin(), legacy(), rule(8, header=HEADER), end(8)).journeys
    assert journey.steps == [legacy(), rule(8, header=HEADER)]


def test_the_end_of_a_chain_is_no_rule() -> None:
    """Linux 6.18 reports it like one, with the header that the policy then lacks."""
    translated = replace(HEADER, dst=NODE)
    closing = replace(end(header=translated), kind=StepKind.RULE)
    (journey,) = assembled(begin(), rule(handle=0), closing, end(header=None)).journeys
    assert journey.steps == []
    assert translated_destination(journey) == NODE


def test_a_packet_that_comes_back_by_loopback_has_not_ended() -> None:
    (journey,) = assembled(begin(), end(), rule(verdict="drop", header=HEADER)).journeys
    assert journey.end is None and journey.dropped


def test_a_packet_for_this_host_ends_in_a_socket() -> None:
    (journey,) = assembled(begin(), end(chain="input")).journeys
    assert journey.local and journey.end == HEADER


def test_steps_of_a_packet_are_bounded() -> None:
    (journey,) = assembled(begin(), *[rule()] * 5000).journeys
    assert len(journey.steps) == 4096
