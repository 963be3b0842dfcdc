"""The design's table of rules as a specification, and an oracle that does not share a line with it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.model import (
    TAG_LENGTH,
    Address,
    Desired,
    Family,
    FamilyLease,
    ForwardSettings,
    Group,
    GroupRules,
    Lease,
    Mark,
    MasqueradeSettings,
    Network,
    Packet,
    Position,
    Rule,
    Settings,
    Verdict,
)
from flanneld_masq.ruleset import policy

BOTH = frozenset(Group)


def family_lease(subnet: str, *networks: str) -> FamilyLease:
    parsed = tuple(ip_network(network) for network in networks)
    return FamilyLease(parsed, ip_network(subnet), ip_network(subnet).network_address + 1)


V4 = family_lease("10.244.1.0/24", "10.244.0.0/16")
V6 = family_lease("fd00:10:244:1::/64", "fd00:10:244::/56")
DUAL = Lease("/run/flannel/subnet.env", V4, V6)
OTHER = Lease("/run/flannel/other.env", family_lease("10.42.7.0/24", "10.42.0.0/16", "10.43.0.0/16"))


def settings(forward: bool = True, **masquerade: object) -> Settings:
    return Settings(
        masquerade=replace(MasqueradeSettings(), **masquerade),  # type: ignore[arg-type]
        forward=ForwardSettings(enabled=forward),
    )


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, texts))


def packet(src: str, dst: str, mark: int = 0) -> Packet:
    return Packet(ip_address(src), ip_address(dst), mark)


def groups_of(
    wished: Settings, *leases: Lease, family: Family = Family.IPV4, exceptions: tuple[Network, ...] = ()
) -> dict[Group, GroupRules]:
    groups = policy.group_rules(wished, leases, family, exceptions=exceptions)
    assert len({group.group for group in groups}) == len(groups)
    return {group.group: group for group in groups}


def rules_of(
    wished: Settings, *leases: Lease, family: Family = Family.IPV4, exceptions: tuple[Network, ...] = ()
) -> tuple[Rule, ...]:
    return groups_of(wished, *leases, family=family, exceptions=exceptions)[Group.MASQUERADE].rules


def shown(rule: Rule) -> str:
    words = [
        f"mark {rule.mark}" if rule.mark else "",
        f"src {rule.src}" if rule.src else "",
        f"dst {rule.dst}" if rule.dst else "",
        f"dst not {rule.dst_not}" if rule.dst_not else "",
        rule.verdict.value,
    ]
    return " ".join([f"{rule.row}:", *filter(None, words)])


# The table of section 3, with every option on.


def test_the_table() -> None:
    wished = settings(non_masquerade_cidrs=networks("192.168.0.0/16", "fd99::/64"), masquerade_link_local=False)
    assert list(map(shown, rules_of(wished, DUAL))) == [
        "1: mark 0x4000/0x4000 return",
        "2: src 10.244.1.0/24 dst 10.244.0.0/16 return",
        "3: dst 10.244.1.0/24 return",
        "4: src 10.244.0.0/16 dst 192.168.0.0/16 return",
        "5: src 10.244.0.0/16 dst 169.254.0.0/16 return",
        "6: src 10.244.0.0/16 dst not 224.0.0.0/4 masquerade",
        "7: dst 10.244.0.0/16 masquerade",
    ]
    assert list(map(shown, rules_of(wished, DUAL, family=Family.IPV6))) == [
        "1: mark 0x4000/0x4000 return",
        "2: src fd00:10:244:1::/64 dst fd00:10:244::/56 return",
        "3: dst fd00:10:244:1::/64 return",
        "4: src fd00:10:244::/56 dst fd99::/64 return",
        "5: src fd00:10:244::/56 dst fe80::/10 return",
        "6: src fd00:10:244::/56 dst not ff00::/8 masquerade",
        "7: dst fd00:10:244::/56 masquerade",
    ]


def test_the_forward_group() -> None:
    for family, network in ((Family.IPV4, "10.244.0.0/16"), (Family.IPV6, "fd00:10:244::/56")):
        group = groups_of(settings(), DUAL, family=family)[Group.FORWARD]
        assert list(map(shown, group.rules)) == [
            f"forward-src: src {network} accept",
            f"forward-dst: dst {network} accept",
        ]


def test_packets_of_no_connection_are_dropped_first_if_asked_for() -> None:
    asked = replace(settings(), forward=ForwardSettings(drop_invalid=True))
    plain, group = (groups_of(wished, DUAL)[Group.FORWARD] for wished in (settings(), asked))
    assert [(rule.row, rule.verdict, rule.invalid) for rule in group.rules] == [
        ("forward-invalid-src", Verdict.DROP, True),
        ("forward-invalid-dst", Verdict.DROP, True),
        ("forward-src", Verdict.ACCEPT, False),
        ("forward-dst", Verdict.ACCEPT, False),
    ]
    assert group.jump_tag == plain.jump_tag
    assert len({rule.tag for rule in (*plain.rules, *group.rules)}) == 6
    for one in (packet("10.244.1.7", "8.8.8.8"), packet("8.8.8.8", "10.244.1.7")):
        decided, of_none = policy.decide(group.rules, one), policy.decide(group.rules, replace(one, invalid=True))
        assert decided is not None and decided.verdict is Verdict.ACCEPT
        assert of_none is not None and of_none.verdict is Verdict.DROP
    assert policy.decide(group.rules, replace(packet("8.8.8.8", "1.1.1.1"), invalid=True)) is None


@pytest.mark.parametrize(
    ("what", "src", "dst", "mark", "row"),
    [
        ("pod to the world", "10.244.1.5", "1.1.1.1", 0, "6"),
        ("pod of another node to the world, through us", "10.244.9.5", "1.1.1.1", 0, "6"),
        ("pod to a remote pod", "10.244.1.5", "10.244.2.7", 0, "2"),
        ("pod to a pod of its node", "10.244.1.5", "10.244.1.6", 0, "2"),
        ("remote pod to a local pod", "10.244.2.7", "10.244.1.5", 0, "3"),
        ("the world to a local pod", "1.1.1.1", "10.244.1.5", 0, "3"),
        ("host to a local pod", "192.0.2.10", "10.244.1.5", 0, "3"),
        ("host to a remote pod", "192.0.2.10", "10.244.2.7", 0, "7"),
        ("the world to a remote pod, through us", "1.1.1.1", "10.244.2.7", 0, "7"),
        ("remote pod to another remote pod, through us", "10.244.2.7", "10.244.3.7", 0, "6"),
        ("pod to multicast", "10.244.1.5", "224.0.0.251", 0, None),
        ("pod to the last of multicast", "10.244.1.5", "239.255.255.255", 0, None),
        ("pod to just above multicast", "10.244.1.5", "240.0.0.0", 0, "6"),
        ("pod to just below multicast", "10.244.1.5", "223.255.255.255", 0, "6"),
        ("host to the world", "192.0.2.10", "1.1.1.1", 0, None),
        ("host to multicast", "192.0.2.10", "224.0.0.1", 0, None),
        ("pod to link-local, by default", "10.244.1.5", "169.254.169.254", 0, "6"),
        ("marked by kube-proxy", "10.244.1.5", "1.1.1.1", 0x4000, "1"),
        ("marked by kube-proxy and another program", "10.244.1.5", "1.1.1.1", 0x4001 | 0x4000, "1"),
        ("all marks there are", "10.244.1.5", "1.1.1.1", 0xFFFFFFFF, "1"),
        ("to be dropped, says kube-proxy", "10.244.1.5", "1.1.1.1", 0x8000, "6"),
        ("all marks but kube-proxy's", "10.244.1.5", "1.1.1.1", 0xFFFFFFFF ^ 0x4000, "6"),
        ("marked and host to the world", "192.0.2.10", "1.1.1.1", 0x4000, "1"),
        ("just below the network", "10.243.255.255", "1.1.1.1", 0, None),
        ("the last of the network", "10.244.255.255", "1.1.1.1", 0, "6"),
        ("just above the network", "10.245.0.0", "1.1.1.1", 0, None),
    ],
)
def test_which_row_decides(what: str, src: str, dst: str, mark: int, row: str | None) -> None:
    decided = policy.decide(rules_of(settings(), DUAL), packet(src, dst, mark))
    assert (decided.row if decided else None) == row, what


@pytest.mark.parametrize(
    ("src", "dst", "row"),
    [
        ("fd00:10:244:1::5", "2001:db8::1", "6"),
        ("fd00:10:244:1::5", "fd00:10:244:2::7", "2"),
        ("fd00:10:244:2::7", "fd00:10:244:1::5", "3"),
        ("2001:db8::1", "fd00:10:244:2::7", "7"),
        ("fd00:10:244:1::5", "ff02::1", None),
        ("fd00:10:244:1::5", "fe80::1", "6"),
        ("2001:db8::1", "2001:db8::2", None),
    ],
)
def test_which_row_decides_in_ipv6(src: str, dst: str, row: str | None) -> None:
    decided = policy.decide(rules_of(settings(), DUAL, family=Family.IPV6), packet(src, dst))
    assert (decided.row if decided else None) == row


class TestOptions:
    def test_no_mark(self) -> None:
        rules = rules_of(settings(kube_proxy_mark=None), DUAL)
        assert [rule.row for rule in rules] == ["2", "3", "6", "7"]
        assert policy.decide(rules, packet("10.244.1.5", "1.1.1.1", 0x4000)) == rules[2]

    def test_a_mark_of_several_bits(self) -> None:
        rules = rules_of(settings(kube_proxy_mark=Mark(0x2000, 0x6000)), DUAL)
        for mark, row in ((0x2000, "1"), (0x2001, "1"), (0x6000, "6"), (0x4000, "6"), (0, "6")):
            decided = policy.decide(rules, packet("10.244.1.5", "1.1.1.1", mark))
            assert decided is not None and decided.row == row, f"{mark:#x}"

    def test_link_local(self) -> None:
        rules = rules_of(settings(masquerade_link_local=False), DUAL)
        for dst, row in (("169.254.169.254", "5"), ("169.253.255.255", "6"), ("169.255.0.0", "6")):
            decided = policy.decide(rules, packet("10.244.1.5", dst))
            assert decided is not None and decided.row == row, dst

    def test_non_masquerade_cidrs_of_settings_and_plugins(self) -> None:
        rules = rules_of(
            settings(non_masquerade_cidrs=networks("192.168.0.0/16", "fd99::/64")),
            DUAL,
            exceptions=networks("172.16.0.0/12", "192.168.0.0/16", "fd98::/64"),
        )
        assert [str(rule.dst) for rule in rules if rule.row == "4"] == ["192.168.0.0/16", "172.16.0.0/12"]
        for src, dst, row in (
            ("10.244.1.5", "192.168.1.1", "4"),
            ("10.244.9.5", "172.31.255.255", "4"),
            ("10.244.1.5", "172.32.0.0", "6"),
            ("192.0.2.1", "192.168.1.1", None),
        ):
            decided = policy.decide(rules, packet(src, dst))
            assert (decided.row if decided else None) == row

    def test_pod_to_pod_wins_over_an_exception(self) -> None:
        rules = rules_of(settings(non_masquerade_cidrs=networks("10.0.0.0/8")), DUAL)
        for dst, row in (("10.244.2.7", "2"), ("10.9.9.9", "4")):
            decided = policy.decide(rules, packet("10.244.1.5", dst))
            assert decided is not None and decided.row == row

    def test_groups_can_be_switched_off(self) -> None:
        assert set(groups_of(settings(), DUAL)) == {Group.MASQUERADE, Group.FORWARD}
        assert set(groups_of(settings(forward=False), DUAL)) == {Group.MASQUERADE}
        assert set(groups_of(settings(enabled=False), DUAL)) == {Group.FORWARD}
        assert groups_of(settings(forward=False, enabled=False), DUAL) == {}

    @pytest.mark.parametrize(("asked", "able"), [(True, True), (True, False), (False, True), (False, False)])
    def test_random_ports_where_asked_for_and_possible(self, asked: bool, able: bool) -> None:
        wished = settings(random_fully=asked)
        for group in policy.group_rules(wished, (DUAL,), Family.IPV4, random_fully=able):
            for rule in group.rules:
                assert rule.fully_random == (rule.verdict is Verdict.MASQUERADE and asked and able)


class TestSeveral:
    def test_leases_are_joined_row_by_row(self) -> None:
        assert list(map(shown, rules_of(settings(kube_proxy_mark=None), DUAL, OTHER))) == [
            "2: src 10.244.1.0/24 dst 10.244.0.0/16 return",
            "2: src 10.42.7.0/24 dst 10.42.0.0/16 return",
            "2: src 10.42.7.0/24 dst 10.43.0.0/16 return",
            "3: dst 10.244.1.0/24 return",
            "3: dst 10.42.7.0/24 return",
            "6: src 10.244.0.0/16 dst not 224.0.0.0/4 masquerade",
            "6: src 10.42.0.0/16 dst not 224.0.0.0/4 masquerade",
            "6: src 10.43.0.0/16 dst not 224.0.0.0/4 masquerade",
            "7: dst 10.244.0.0/16 masquerade",
            "7: dst 10.42.0.0/16 masquerade",
            "7: dst 10.43.0.0/16 masquerade",
        ]
        forward = groups_of(settings(), DUAL, OTHER)[Group.FORWARD].rules
        assert [str(rule.src or rule.dst) for rule in forward] == [
            network for network in ("10.244.0.0/16", "10.42.0.0/16", "10.43.0.0/16") for _ in range(2)
        ]

    def test_a_network_that_is_named_twice_gives_its_rules_once(self) -> None:
        again = Lease("/run/flannel/again.env", V4)
        once, twice = rules_of(settings(), DUAL), rules_of(settings(), DUAL, again)
        assert list(map(shown, twice)) == [shown(once[0]), shown(once[1]), *map(shown, once[1:])]
        assert list(map(shown, twice)).count(shown(once[-1])) == 1

    def test_a_family_that_no_lease_names_has_no_rules(self) -> None:
        assert policy.group_rules(settings(), (OTHER,), Family.IPV6) == ()
        assert policy.group_rules(settings(), (), Family.IPV4) == ()
        assert policy.desired(settings(), (OTHER,), Family.IPV6, BOTH) == Desired(Family.IPV6)

    def test_a_lease_of_one_family_says_nothing_about_the_other(self) -> None:
        with_v4_only = rules_of(settings(), DUAL, OTHER, family=Family.IPV6)
        assert with_v4_only == rules_of(settings(), DUAL, family=Family.IPV6)


class TestDesired:
    def test_holds_the_groups_asked_for_and_the_position(self) -> None:
        for chosen in (frozenset[Group](), frozenset((Group.FORWARD,)), BOTH):
            desired = policy.desired(settings(position=Position.FIRST), (DUAL,), Family.IPV4, chosen)
            assert {group.group for group in desired.groups} == chosen
            assert (desired.family, desired.position) == (Family.IPV4, Position.FIRST)

    def test_a_group_is_the_same_beside_the_other_and_alone(self) -> None:
        together = policy.desired(settings(), (DUAL,), Family.IPV4, BOTH)
        alone = policy.desired(settings(), (DUAL,), Family.IPV4, frozenset((Group.FORWARD,)))
        assert alone.rules_of(Group.FORWARD) == together.rules_of(Group.FORWARD) is not None
        assert alone.rules_of(Group.MASQUERADE) is None


class TestTags:
    def test_each_is_new_and_short(self) -> None:
        groups = groups_of(settings(), DUAL, OTHER)
        tags = [tag for group in groups.values() for tag in (*(rule.tag for rule in group.rules), group.jump_tag)]
        assert len(set(tags)) == len(tags) > 10
        assert all(len(tag) == TAG_LENGTH and set(tag) <= set("0123456789abcdef") for tag in tags)

    def test_the_comment_carries_it(self) -> None:
        group = groups_of(settings(), DUAL)[Group.MASQUERADE]
        assert [rule.comment for rule in group.rules] == [f"flanneld-masq:{rule.tag}" for rule in group.rules]
        assert group.jump_comment == f"flanneld-masq:{group.jump_tag}"

    def test_a_change_changes_all_tags_from_there_on_and_none_before(self) -> None:
        before = rules_of(settings(non_masquerade_cidrs=networks("192.168.0.0/16")), DUAL)
        after = rules_of(settings(non_masquerade_cidrs=networks("192.168.0.0/17")), DUAL)
        same = [one.tag == two.tag for one, two in zip(before, after)]
        changed = [rule.row for rule in before].index("4")
        assert same == [True] * changed + [False] * (len(before) - changed)

    def test_they_are_chained_so_that_order_counts(self) -> None:
        one = rules_of(settings(non_masquerade_cidrs=networks("192.168.0.0/16", "172.16.0.0/12")), DUAL)
        two = rules_of(settings(non_masquerade_cidrs=networks("172.16.0.0/12", "192.168.0.0/16")), DUAL)
        assert {rule.tag for rule in one if rule.row in "4567"}.isdisjoint(rule.tag for rule in two)

    @pytest.mark.parametrize(
        "other",
        [
            settings(kube_proxy_mark=None),
            settings(kube_proxy_mark=Mark(0x4000, 0xC000)),
            settings(random_fully=False),
            settings(masquerade_link_local=False),
        ],
        ids=["no mark", "another mask", "not random", "link-local kept"],
    )
    def test_whatever_reaches_the_kernel_is_in_them(self, other: Settings) -> None:
        assert rules_of(settings(), DUAL)[-1].tag != rules_of(other, DUAL)[-1].tag

    def test_the_explanation_is_not(self) -> None:
        host_bits = replace(DUAL, path="/elsewhere", mtu=1, ipv4=replace(V4, gateway=ip_address("10.244.1.200")))
        assert rules_of(settings(), host_bits) == rules_of(settings(), DUAL)

    def test_they_stay_the_same_between_releases(self) -> None:
        """An upgrade with the same rules finds them in the kernel and writes nothing."""
        groups = groups_of(settings(), DUAL)
        masquerade, forward = groups[Group.MASQUERADE], groups[Group.FORWARD]
        assert (masquerade.jump_tag, masquerade.rules[-1].tag) == ("eb0bd1cfd49b", "2eb029297635")
        assert (forward.jump_tag, forward.rules[-1].tag) == ("b21a360d30fc", "19808cc2a352")


def test_a_packet_that_no_rule_matches_is_decided_by_none() -> None:
    assert policy.decide((), packet("10.244.1.5", "1.1.1.1")) is None


def test_every_rule_says_why() -> None:
    wished = settings(non_masquerade_cidrs=networks("192.168.0.0/16"), masquerade_link_local=False)
    for group in groups_of(wished, DUAL, OTHER).values():
        for rule in group.rules:
            assert rule.why and "\n" not in rule.why
            named = {"2": rule.src, "3": rule.dst, "4": rule.dst, "6": rule.src, "7": rule.dst}.get(rule.row)
            assert named is None or str(named) in rule.why


# The oracle: the table once more, as a person would write it down, with integers for addresses.

NETWORKS = ("10.244.0.0/16", "10.244.128.0/17", "10.42.0.0/16", "10.43.0.0/24", "0.0.0.0/1", "200.0.0.0/5")
NETWORKS_V6 = ("fd00:10:244::/56", "fd00:10:244:80::/57", "fd00:42::/64", "8000::/1", "fe00::/7")
EXCEPTIONS = ("10.0.0.0/8", "192.168.0.0/16", "10.244.1.0/25", "224.0.0.0/8", "169.254.0.0/17", "203.0.113.9/32")
EXCEPTIONS_V6 = ("fd00::/8", "fd00:10:244:1::/65", "fe80::/64", "ff02::/16", "2001:db8::9/128")
BOUNDARIES = {
    Family.IPV4: ("224.0.0.0/4", "169.254.0.0/16", *NETWORKS, *EXCEPTIONS),
    Family.IPV6: ("ff00::/8", "fe80::/10", *NETWORKS_V6, *EXCEPTIONS_V6),
}


def pod_networks(family: Family) -> tuple[str, ...]:
    return NETWORKS if family is Family.IPV4 else NETWORKS_V6


class Dice(random.Random):
    """Makes leases, settings and packets. Hypothesis picks the seed; what it would draw piece by piece is slow."""

    def some(self, known: Sequence[str], most: int) -> tuple[Network, ...]:
        return networks(*dict.fromkeys(self.choices(known, k=self.randrange(most + 1))))

    def family_lease(self, family: Family) -> FamilyLease:
        named = self.some(pod_networks(family), 2) or networks(self.choice(pod_networks(family)))
        around = named[0]
        longer = around.prefixlen + self.choice([0, 1, 7])
        nth = self.choice([0, 1, -1]) % (1 << (longer - around.prefixlen))
        address = around.network_address + (nth << (family.data.width - longer))
        return FamilyLease(named, ip_network(f"{address}/{longer}"), address)

    def leases(self, family: Family) -> tuple[Lease, ...]:
        named = [self.family_lease(family) if self.random() < 0.9 else None for _ in range(self.choice([1, 1, 2]))]
        v4 = family is Family.IPV4
        return tuple(Lease("/x", ipv4=family_lease) if v4 else Lease("/x", ipv6=family_lease) for family_lease in named)

    def settings(self) -> Settings:
        return settings(
            enabled=self.random() < 0.95,
            families=self.choice([tuple(Family)] * 8 + [(Family.IPV4,), (Family.IPV6,)]),
            to_remote_pods=self.random() < 0.8,
            non_masquerade_cidrs=self.some([*EXCEPTIONS, *EXCEPTIONS_V6], 2),
            masquerade_link_local=self.random() < 0.5,
            kube_proxy_mark=self.choice([None, Mark(0x4000, 0x4000), Mark(0x2000, 0x6000), Mark(1, 0xFFFFFFFF)]),
        )

    def packet(self, family: Family, leases: tuple[Lease, ...]) -> Packet:
        mark = self.choice([0] * 9 + [1, 0x2000, 0x4000, 0x6000, 0xC000, 0xFFFFFFFF])
        return Packet(self.address(family, leases), self.address(family, leases), mark)

    def address(self, family: Family, leases: tuple[Lease, ...]) -> Address:
        """At or near the edges of something that a rule names."""
        pods = [
            net
            for one in leases
            if (family_lease := one.of(family))
            for net in (family_lease.subnet, *family_lease.networks)
        ]
        edge = self.choice(pods) if pods and self.random() < 0.5 else ip_network(self.choice(BOUNDARIES[family]))
        offset = self.choice([0, 1, edge.num_addresses // 2, edge.num_addresses - 1, edge.num_addresses, -1])
        number = min(max(int(edge.network_address) + offset, 0), 2**family.data.width - 1)
        return type(edge.network_address)(number)


class TestSwitches:
    """Settings that leave rules out."""

    def test_families_that_are_left_out_are_forwarded_all_the_same(self) -> None:
        wished = settings(families=(Family.IPV4,))
        assert set(groups_of(wished, DUAL)) == BOTH
        assert set(groups_of(wished, DUAL, family=Family.IPV6)) == {Group.FORWARD}
        assert groups_of(settings(forward=False, families=(Family.IPV4,)), DUAL, family=Family.IPV6) == {}

    def test_remote_pods_see_the_client(self) -> None:
        for family, host, pod in (
            (Family.IPV4, "192.0.2.1", "10.244.2.5"),
            (Family.IPV6, "2001:db8::1", "fd00:10:244:2::5"),
        ):
            with_row, without = (
                rules_of(settings(to_remote_pods=wanted), DUAL, family=family) for wanted in (True, False)
            )
            assert [rule.row for rule in with_row if rule not in without] == ["7"]
            assert list(without) == list(with_row[: len(without)])
            assert policy.decide(without, packet(host, pod)) is None

    def test_auto_mark_comes_in_as_a_value(self) -> None:
        def mark_in(wished: Settings) -> Optional[Mark]:
            (group,) = policy.desired(
                wished, (DUAL,), Family.IPV4, frozenset((Group.MASQUERADE,)), auto_mark=Mark(1, 1)
            ).groups
            return group.rules[0].mark

        assert mark_in(settings()) == Mark(1, 1)
        assert mark_in(settings(kube_proxy_mark=Mark(2, 2))) == Mark(2, 2)
        assert mark_in(settings(kube_proxy_mark=None)) is None
        assert rules_of(settings(), DUAL)[0].mark == Mark(0x4000, 0x4000)

    @pytest.mark.parametrize(
        ("wished", "why"),
        [
            (settings(enabled=False), "there are no masquerade rules for ipv4: masquerade.enabled is false"),
            (settings(families=(Family.IPV6,)), "masquerade.families leaves the family out"),
            (settings(to_remote_pods=False), "masquerade.to_remote_pods is false"),
        ],
    )
    def test_explanation_names_the_setting(self, wished: Settings, why: str) -> None:
        assert why in policy.why_undecided(wished, (DUAL,), packet("192.0.2.1", "10.244.2.5"))

    def test_explanation_without_a_setting(self) -> None:
        assert "no subnet file names" in policy.why_undecided(settings(), (OTHER,), packet("::1", "::2"))
        assert "nothing to do with pods" in policy.why_undecided(
            settings(to_remote_pods=False), (DUAL,), packet("192.0.2.1", "192.0.2.2")
        )


def within(address: Address, network: Network) -> bool:
    shift = address.max_prefixlen - network.prefixlen
    return address.version == network.version and int(address) >> shift == int(network.network_address) >> shift


def oracle(
    wished: Settings, leases: tuple[Lease, ...], family: Family, exceptions: tuple[Network, ...], packet: Packet
) -> Optional[str]:
    """The row that decides; None for no rule. With several leases, a row is tried for all of them before the
    next one, and pod to pod (row 2) means: within one lease."""
    named = [lease.ipv4 if family is Family.IPV4 else lease.ipv6 for lease in leases]
    present = [lease for lease in named if lease is not None]
    if not present or not wished.masquerade.enabled or family not in wished.masquerade.families:
        return None
    mark = wished.masquerade.kube_proxy_mark
    assert not isinstance(mark, str)
    from_pod = any(within(packet.src, network) for lease in present for network in lease.networks)
    to_pod = any(within(packet.dst, network) for lease in present for network in lease.networks)
    top_bits = int(packet.dst) >> (28 if family is Family.IPV4 else 120)
    multicast = top_bits == (0xE if family is Family.IPV4 else 0xFF)
    if family is Family.IPV4:
        link_local = int(packet.dst) >> 16 == 169 * 256 + 254
    else:
        link_local = int(packet.dst) >> 118 == 0xFE80 >> 6
    if mark is not None and packet.mark & mark.mask == mark.value:
        return "1"
    for lease in present:
        if within(packet.src, lease.subnet) and any(within(packet.dst, network) for network in lease.networks):
            return "2"
    if any(within(packet.dst, lease.subnet) for lease in present):
        return "3"
    if from_pod and any(within(packet.dst, kept) for kept in (*wished.masquerade.non_masquerade_cidrs, *exceptions)):
        return "4"
    if from_pod and link_local and not wished.masquerade.masquerade_link_local:
        return "5"
    if from_pod and not multicast:
        return "6"
    if to_pod and wished.masquerade.to_remote_pods:
        return "7"
    return None


def check(seed: int) -> set[str | None]:
    """Hold one ruleset against the oracle, by many packets; the rows that decided."""
    dice = Dice(seed)
    family = dice.choice(list(Family))
    wished, leases = dice.settings(), dice.leases(family)
    exceptions = dice.some([*EXCEPTIONS, *EXCEPTIONS_V6], 1)
    groups = {group.group: group.rules for group in policy.group_rules(wished, leases, family, exceptions=exceptions)}
    pods = [network for one in leases if (lease := one.of(family)) for network in lease.networks]
    rows = set()
    for _ in range(20):
        packet = dice.packet(family, leases)
        decided = policy.decide(groups.get(Group.MASQUERADE, ()), packet)
        row = oracle(wished, leases, family, exceptions, packet)
        assert (decided.row if decided else None) == row, packet
        masqueraded = decided is not None and decided.verdict is Verdict.MASQUERADE
        assert masqueraded == (row in ("6", "7")), packet
        forwarded = any(within(address, network) for address in (packet.src, packet.dst) for network in pods)
        assert (policy.decide(groups.get(Group.FORWARD, ()), packet) is not None) == forwarded, packet
        rows.add(row)
    return rows


@given(st.integers(0, 2**32))
def test_rules_and_oracle_agree(seed: int) -> None:
    check(seed)


def test_the_packets_reach_every_row() -> None:
    assert set().union(*map(check, range(20))) == {None, "1", "2", "3", "4", "5", "6", "7"}
