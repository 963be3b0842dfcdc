"""flannel's masquerade rules beside the policy: what they agree on, and which rule decides where they do not."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.model import (
    Family,
    FamilyLease,
    Item,
    ItemKind,
    Lease,
    MasqueradeSettings,
    Packet,
    Settings,
    Verdict,
)
from flanneld_masq.ruleset import flannel_effect, policy
from flanneld_masq.ruleset.flannel_effect import Effect, evaluate, parsed

V4 = FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1"))
V6 = FamilyLease((ip_network("fd00:10:244::/56"),), ip_network("fd00:10:244:1::/64"), ip_address("fd00:10:244:1::1"))
LEASE = Lease("/run/flannel/subnet.env", V4, V6, ipmasq=True)
COMMENT = '-m comment --comment "flanneld masq"'


def items(*lines: str) -> tuple[Item, ...]:
    return tuple(Item(ItemKind.RULE, "nat FLANNEL-POSTRTG", line) for line in lines)


def iptables(family: Family, random: str = " --random-fully") -> tuple[Item, ...]:
    """The chain of releases since 0.20, as iptables-legacy-save prints it."""
    lease = LEASE.of(family)
    assert lease is not None
    cluster, pods, multicast = lease.networks[0], lease.subnet, family.data.multicast
    return items(
        f"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {COMMENT} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {pods} -d {cluster} {COMMENT} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {cluster} -d {pods} {COMMENT} -j RETURN",
        f"-A FLANNEL-POSTRTG ! -s {cluster} -d {pods} {COMMENT} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {cluster} ! -d {multicast} {COMMENT} -j MASQUERADE{random}",
        f"-A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} {COMMENT} -j MASQUERADE{random}",
    )


def in_words(family: Family, mark: str = "& 0x00004000 == ") -> tuple[Item, ...]:
    """The same chain of iptables-nft, as the kernel's rules are described."""
    lease = LEASE.of(family)
    assert lease is not None
    cluster, pods, multicast, ip = lease.networks[0], lease.subnet, family.data.multicast, family.data.nft
    return items(
        f'meta mark {mark}0x00004000 return comment "flanneld masq"',
        f'{ip} saddr {pods} {ip} daddr {cluster} return comment "flanneld masq"',
        f'{ip} saddr {cluster} {ip} daddr {pods} return comment "flanneld masq"',
        f'{ip} saddr != {cluster} {ip} daddr {pods} return comment "flanneld masq"',
        f'{ip} saddr {cluster} {ip} daddr != {multicast} masquerade fully-random comment "flanneld masq"',
        f"{ip} saddr != {cluster} {ip} daddr {cluster} masquerade",
    )


def nftables(family: Family) -> tuple[Item, ...]:
    """flannel's nftables mode: its fourth rule differs, so that its last one is never reached."""
    rules = list(in_words(family, mark=""))
    lease = LEASE.of(family)
    assert lease is not None
    ip = family.data.nft
    (rules[3],) = items(f"{ip} saddr != {lease.subnet} {ip} daddr {lease.networks[0]} return")
    return tuple(rules)


def settings(**masquerade: object) -> Settings:
    return Settings(masquerade=MasqueradeSettings(**masquerade))  # type: ignore[arg-type]


def effect(rules: tuple[Item, ...], family: Family = Family.IPV4, **masquerade: Any) -> Effect:
    return evaluate(rules, settings(**masquerade), (LEASE,), family)


@pytest.mark.parametrize("family", Family)
class TestKnownGenerations:
    def test_rules_of_the_iptables_mode_agree(self, family: Family) -> None:
        for rules in (iptables(family), iptables(family, random=""), in_words(family)):
            found = effect(rules, family)
            assert found.agrees
            assert list(found.summaries()) == ["flannel's 5 masquerade rules were read and agree with the policy"]

    def test_rules_of_the_nftables_mode_differ_without_harm(self, family: Family) -> None:
        found = effect(nftables(family), family)
        assert (found.agrees, found.weaker, found.conflicts, found.unread) == (False, True, (), ())
        assert "masquerade less than the policy, which is harmless" in next(found.summaries())

    def test_no_rules_say_nothing(self, family: Family) -> None:
        assert effect((), family) == Effect()
        assert list(Effect().summaries()) == [] and not Effect().agrees


@pytest.mark.parametrize("rules", [iptables, in_words, nftables])
@pytest.mark.parametrize(
    ("masquerade", "setting", "packets"),
    [
        (
            {"non_masquerade_cidrs": (ip_network("192.168.9.0/24"), ip_network("10.0.0.0/8"))},
            "masquerade.non_masquerade_cidrs",
            "packets from pods to ",
        ),
        ({"masquerade_link_local": False}, "masquerade.masquerade_link_local = false", "pods to 169.254.0.0/16"),
        ({"enabled": False}, "masquerade.enabled = false", "packets of pods"),
        ({"families": (Family.IPV6,)}, "masquerade.families", "ipv4 packets of pods"),
        ({"to_remote_pods": False}, "masquerade.to_remote_pods = false", "packets to pods of other nodes"),
    ],
)
def test_setting_without_effect_is_named_with_the_rule(
    rules: object, masquerade: dict[str, Any], setting: str, packets: str
) -> None:
    assert callable(rules)
    found = effect(rules(Family.IPV4), **masquerade)
    if setting == "masquerade.to_remote_pods = false" and rules is nftables:
        assert found.conflicts == (), "flannel's own rule for these packets is never reached"
        return
    (*_, conflict) = found.conflicts
    assert {conflict.setting for conflict in found.conflicts} == {setting}
    assert packets in conflict.packets
    assert "masquerade" in str(conflict.rule).lower() and "(nat FLANNEL-POSTRTG)" in str(conflict.rule)
    assert str(conflict).startswith(f"{setting} has no effect: {conflict.packets} get the node's address")


def test_rules_in_the_wrong_order_nat_pods() -> None:
    rules = iptables(Family.IPV4)
    found = effect((rules[4], *rules))
    assert {(conflict.packets, conflict.setting) for conflict in found.conflicts} == {
        ("packets from pods of this node to pods", ""),
        ("packets to pods of this node", ""),
    }
    assert all(conflict.rule.item == rules[4] for conflict in found.conflicts)


def test_half_a_chain_is_weaker() -> None:
    found = effect(iptables(Family.IPV4)[:4])
    assert (found.conflicts, found.weaker, found.agrees) == ((), True, False)


def test_rules_for_another_network_are_no_conflict() -> None:
    rules = items("-A POSTROUTING -s 10.42.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE")
    assert effect(rules).conflicts == ()


@pytest.mark.parametrize(
    "text",
    [
        "-A FLANNEL-POSTRTG -o eth0 -j MASQUERADE",
        "-A FLANNEL-POSTRTG -m physdev --physdev-is-in -j MASQUERADE",
        "-A FLANNEL-POSTRTG -s 10.244.0.0/16 -j SNAT --to-source 192.0.2.1",
        '-A FLANNEL-POSTRTG -m comment --comment "open -j MASQUERADE',
        "-A FLANNEL-POSTRTG -s 10.244.0.0/16",
        "meta oifname 0x65746830 masquerade",
        "ip saddr 10.244.0.0/16 counter(00) masquerade",
        "ip saddr 10.244.0.0/16",
        "",
    ],
)
def test_rules_that_cannot_be_evaluated_are_named(text: str) -> None:
    found = effect((*iptables(Family.IPV4), *items(text)))
    assert (found.unread, found.agrees) == ((text,), False)
    assert list(found.summaries()) == [
        f"flannel's rules cannot be compared with the policy, because this one cannot be evaluated: {text}"
    ]


def test_text_of_other_programs_is_printable() -> None:
    texts = ("-A FLANNEL-POSTRTG -m comment --comment \x1b[31m -j MASQUERADE", "\x1b[31m")
    summaries = list(effect(items(*texts)).summaries())
    assert summaries and all(one.isprintable() and "\\x1b[31m" in one for one in summaries)


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    for line in (text, f"-A FLANNEL-POSTRTG {text}"):
        rules, unread = parsed(items(line))
        assert len(rules) + len(unread) <= 1


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from([{}, {"enabled": False}, {"masquerade_link_local": False}, {"to_remote_pods": False}]),
)
def test_agreement_holds_for_every_packet_of_pods(src: int, dst: int, masquerade: dict[str, Any]) -> None:
    rules, _ = parsed(iptables(Family.IPV4))
    wished = settings(**masquerade)
    groups = policy.group_rules(wished, (LEASE,), Family.IPV4)
    ours = next((group.rules for group in groups if group.group.value == "masquerade"), ())
    packet = Packet(ip_address(src), ip_address(dst))
    flannel, decided = flannel_effect.decide(rules, packet), policy.decide(ours, packet)
    differ = (flannel is not None and flannel.verdict is Verdict.MASQUERADE) != (
        decided is not None and decided.verdict is Verdict.MASQUERADE
    )
    assert not (differ and effect(iptables(Family.IPV4), **masquerade).agrees)


def test_many_exceptions_are_compared_in_bounded_time() -> None:
    cidrs = tuple(ip_network(f"172.{16 + n // 256}.{n % 256}.0/24") for n in range(3000))
    assert effect(iptables(Family.IPV4), non_masquerade_cidrs=cidrs).conflicts
