"""Which connections have certainly the wrong source address."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.model import (
    Family,
    FamilyLease,
    Flow,
    Group,
    Lease,
    Mark,
    MasqueradeSettings,
    Packet,
    Rule,
    Settings,
    Verdict,
)
from flanneld_masq.ruleset import policy
from flanneld_masq.ruleset.healing import is_wrong

SUBNET = ip_network("10.244.1.0/24")
LEASE = Lease("/x", FamilyLease((ip_network("10.244.0.0/16"),), SUBNET, ip_address("10.244.1.1")))
POD, REMOTE, WORLD = "10.244.1.5", "10.244.2.5", "203.0.113.9"
VPN, GROUP, LINK_LOCAL, NODE = "198.18.0.9", "239.1.2.3", "169.254.169.254", "192.0.2.1"
VPN_KEPT = MasqueradeSettings(non_masquerade_cidrs=(ip_network("198.18.0.0/15"),), masquerade_link_local=False)
SLIPPED, MASQUERADED, DNAT, BOTH = (False, False), (True, False), (False, True), (True, True)


def rules_of(settings: MasqueradeSettings) -> tuple[Rule, ...]:
    groups = policy.group_rules(Settings(masquerade=settings), (LEASE,), Family.IPV4)
    return next((group.rules for group in groups if group.group is Group.MASQUERADE), ())


def wrong(src: str, dst: str, nat: tuple[bool, bool], settings: MasqueradeSettings = VPN_KEPT) -> bool:
    return is_wrong(Flow(ip_address(src), ip_address(dst), *nat), rules_of(settings), (SUBNET,))


@pytest.mark.parametrize(
    ("src", "dst", "nat", "expected"),
    [
        (POD, WORLD, SLIPPED, True),
        (POD, WORLD, DNAT, True),  # behind a service: kube-proxy or the daemon's rules masquerade it
        (POD, WORLD, MASQUERADED, False),
        (POD, WORLD, BOTH, False),
        (POD, REMOTE, SLIPPED, False),
        (POD, REMOTE, DNAT, False),
        (POD, REMOTE, MASQUERADED, True),
        (POD, REMOTE, BOTH, False),  # may be kube-proxy's work
        (POD, POD, MASQUERADED, True),
        (POD, VPN, SLIPPED, False),
        (POD, VPN, MASQUERADED, True),
        (POD, LINK_LOCAL, SLIPPED, False),
        (POD, GROUP, SLIPPED, False),
        (POD, GROUP, MASQUERADED, False),  # no rule says what is right
        (REMOTE, WORLD, SLIPPED, False),  # not a pod of this node
        (NODE, REMOTE, SLIPPED, False),
        (WORLD, POD, MASQUERADED, False),
        (NODE, WORLD, SLIPPED, False),
    ],
)
def test_table(src: str, dst: str, nat: tuple[bool, bool], expected: bool) -> None:
    assert wrong(src, dst, nat) is expected


@pytest.mark.parametrize("nat", [SLIPPED, MASQUERADED, DNAT, BOTH])
@pytest.mark.parametrize("dst", [WORLD, REMOTE])
def test_without_masquerade_rules_nothing_is_wrong(dst: str, nat: tuple[bool, bool]) -> None:
    assert not wrong(POD, dst, nat, MasqueradeSettings(enabled=False))


@pytest.mark.parametrize("nat", [SLIPPED, MASQUERADED])
def test_a_mark_that_every_unmarked_packet_has_makes_all_unsure(nat: tuple[bool, bool]) -> None:
    settings = replace(VPN_KEPT, kube_proxy_mark=Mark(0, 0x4000))
    assert not wrong(POD, WORLD, nat, settings)
    assert not wrong(POD, REMOTE, nat, settings)


def test_to_remote_pods_of_another_network_is_masqueraded_or_not() -> None:
    assert not wrong(POD, REMOTE, SLIPPED, MasqueradeSettings(to_remote_pods=False))
    assert wrong(POD, WORLD, SLIPPED, MasqueradeSettings(to_remote_pods=False))


ADDRESSES = st.sampled_from([POD, REMOTE, WORLD, VPN, GROUP, LINK_LOCAL, NODE])


@given(ADDRESSES, ADDRESSES, st.booleans(), st.booleans())
def test_what_is_healed_is_then_right(src: str, dst: str, source_nat: bool, destination_nat: bool) -> None:
    """A connection that begins again gets the other source address, and is not healed a second time."""
    if wrong(src, dst, (source_nat, destination_nat)):
        rule = policy.decide(rules_of(VPN_KEPT), Packet(ip_address(src), ip_address(dst)))
        assert rule is not None
        assert (rule.verdict is Verdict.MASQUERADE) is not source_nat
        assert not wrong(src, dst, (not source_nat, destination_nat))
