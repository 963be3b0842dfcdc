"""flannel's own rules, as its releases wrote them: what is taken for one, and what is not."""

from __future__ import annotations

import ipaddress

import pytest

from flanneld_masq.model import Family, FamilyLease, Group
from flanneld_masq.ruleset import flannel_rules
from flanneld_masq.ruleset.flannel_rules import FlatRule, flat_rules


def lease(subnet: str, *networks: str) -> FamilyLease:
    network = ipaddress.ip_network(subnet)
    return FamilyLease(tuple(map(ipaddress.ip_network, networks)), network, network[1])


V4 = lease("10.244.1.0/24", "10.244.0.0/16")
V6 = lease("fd00:10:244:1::/64", "fd00:10:244::/56")


def iptables(group: Group, family: Family, family_lease: FamilyLease) -> list[str]:
    return [rule.iptables() for rule in flat_rules(group, family, family_lease)]


# The lines of MasqRules and ForwardRules in flannel's releases before 0.20, as iptables-save prints them.
WRITTEN_V4 = [
    "-s 10.244.0.0/16 -d 10.244.0.0/16 -j RETURN",
    "-s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
    "-s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
    "! -s 10.244.0.0/16 -d 10.244.1.0/24 -j RETURN",
    "! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE --random-fully",
    "! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE",
]
WRITTEN_V6 = [
    "-s fd00:10:244::/56 -d fd00:10:244::/56 -j RETURN",
    "-s fd00:10:244::/56 ! -d ff00::/8 -j MASQUERADE --random-fully",
    "! -s fd00:10:244::/56 -d fd00:10:244:1::/64 -j RETURN",
    "! -s fd00:10:244::/56 -d fd00:10:244::/56 -j MASQUERADE",
]


@pytest.mark.parametrize("line", WRITTEN_V4)
def test_each_rule_that_old_releases_wrote_is_known(line: str) -> None:
    assert line in iptables(Group.MASQUERADE, Family.IPV4, V4)


@pytest.mark.parametrize("line", WRITTEN_V6)
def test_those_of_ipv6_differ_by_their_addresses_alone(line: str) -> None:
    assert line in iptables(Group.MASQUERADE, Family.IPV6, V6)


def test_the_forward_rules_are_two() -> None:
    assert iptables(Group.FORWARD, Family.IPV4, V4) == ["-s 10.244.0.0/16 -j ACCEPT", "-d 10.244.0.0/16 -j ACCEPT"]


@pytest.mark.parametrize(
    "line",
    [
        "-s 10.99.0.0/16 -d 10.99.0.0/16 -j RETURN",
        "-s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE",  # what docker writes for a bridge, but for its device
        "-s 10.244.1.0/24 ! -d 224.0.0.0/4 -j MASQUERADE",
        "-s 10.244.0.0/16 -d 10.244.0.0/16 -j ACCEPT",
        "-s 10.244.0.0/16 -j RETURN",
        "-s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random",
        "-s 10.244.0.0/16 ! -d 224.0.0.0/4 -o eth0 -j MASQUERADE",
        "-j MASQUERADE",
    ],
)
def test_what_others_write_is_not_taken_for_it(line: str) -> None:
    assert line not in iptables(Group.MASQUERADE, Family.IPV4, V4)


def test_each_network_has_its_rules() -> None:
    family_lease = lease("10.42.7.0/24", "10.42.0.0/16", "10.43.0.0/16")
    for group in Group:
        lines = iptables(group, Family.IPV4, family_lease)
        assert len(set(lines)) == len(lines)
        assert lines == [
            *iptables(group, Family.IPV4, lease("10.42.7.0/24", "10.42.0.0/16")),
            *iptables(group, Family.IPV4, lease("10.42.7.0/24", "10.43.0.0/16")),
        ]


@pytest.mark.parametrize("group", Group)
def test_no_rule_matches_everything(group: Group) -> None:
    for family, family_lease in ((Family.IPV4, V4), (Family.IPV6, V6)):
        for rule in flat_rules(group, family, family_lease):
            assert rule.src or rule.dst


@pytest.mark.parametrize(
    ("rule", "nft"),
    [
        (FlatRule("RETURN", V4.subnet, V4.networks[0]), "ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return"),
        (
            FlatRule("MASQUERADE --random-fully", V4.networks[0], Family.IPV4.data.multicast, dst_not=True),
            "ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
        ),
        (
            FlatRule("MASQUERADE", V4.networks[0], V4.networks[0], src_not=True),
            "ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade",
        ),
        (FlatRule("ACCEPT", dst=V4.networks[0]), "ip daddr 10.244.0.0/16 accept"),
    ],
)
def test_the_same_in_the_words_of_nft(rule: FlatRule, nft: str) -> None:
    assert rule.nft(Family.IPV4) == nft


def test_every_rule_has_words_in_both_languages() -> None:
    for group in Group:
        rules = flat_rules(group, Family.IPV6, V6)
        assert len({rule.nft(Family.IPV6) for rule in rules}) == len({rule.iptables() for rule in rules}) == len(rules)
        assert all(rule.nft(Family.IPV6).startswith("ip6 ") for rule in rules)


def test_the_names_are_those_in_flannel() -> None:
    assert flannel_rules.CHAINS == {Group.MASQUERADE: "FLANNEL-POSTRTG", Group.FORWARD: "FLANNEL-FWD"}
    assert flannel_rules.COMMENTS == {Group.MASQUERADE: "flanneld masq", Group.FORWARD: "flanneld forward"}
    assert flannel_rules.TABLES == {Family.IPV4: "flannel-ipv4", Family.IPV6: "flannel-ipv6"}
