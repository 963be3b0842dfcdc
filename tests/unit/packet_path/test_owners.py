"""Rules as programs write them, and the program that each belongs to."""

from __future__ import annotations

import pytest

from flanneld_masq.packet_path.owners import owner_by_text, owner_of
from flanneld_masq.packet_path.rules import Place


def place(table: str, chain: str, text: str = "", comment: str = "", number: int = 1) -> Place:
    return Place(table, chain, number, 0, text, comment)


@pytest.mark.parametrize(
    ("rule", "owner"),
    [
        (place("inet firewalld", "filter_FORWARD"), "firewalld"),
        (place("legacy ip filter", "FWDI_public"), "firewalld"),
        (place("legacy ip filter", "FORWARD", "-A FORWARD -j FORWARD_ZONES"), "firewalld"),
        (place("ip docker-bridges", "filter-FORWARD"), "docker"),
        (place("ip filter", "DOCKER-USER"), "docker"),
        (place("ip nat", "POSTROUTING", "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"), "docker"),
        (place("ip nat", "POSTROUTING", "-A POSTROUTING -s 10.244.1.0/24 ! -o cni0 -j MASQUERADE"), "docker"),
        (place("ip kube-proxy", "services"), "kube-proxy"),
        (place("ip nat", "KUBE-POSTROUTING"), "kube-proxy"),
        (place("ip filter", "FORWARD", "-A FORWARD -j KUBE-FORWARD"), "kube-proxy"),
        (place("ip filter", "KUBE-FIREWALL"), "kubelet"),
        (place("ip filter", "KUBE-POD-FW-ABC"), "kube-router"),
        (place("ip filter", "cali-FORWARD"), "calico"),
        (place("ip filter", "FORWARD", comment="cali:abc"), "calico"),
        (place("ip filter", "CILIUM_FORWARD"), "cilium"),
        (place("ip filter", "ufw-before-forward"), "ufw"),
        (place("ip6 filter", "ufw6-reject-forward"), "ufw"),
        (place("ip filter", "LIBVIRT_FWI"), "libvirt"),
        (place("ip libvirt_network", "guest_input"), "libvirt"),
        (place("ip nm-shared-eth1", "filter_forward"), "NetworkManager"),
        (place("ip io.systemd.nat", "postrouting"), "systemd-networkd"),
        (place("ip filter", "ts-forward"), "tailscale"),
        (place("ip nat", "CNI-abc"), "cni-plugins"),
        (place("inet cni_plugins_masquerade", "masq_checks"), "cni-plugins"),
        (place("ip nat", "FLANNEL-POSTRTG"), "flannel"),
        (place("ip flannel-ipv4", "postrtg"), "flannel"),
        (place("inet netavark", "POSTROUTING"), "netavark"),
        (place("ip flanneld-masq", "forward"), "flanneld-masq"),
        (place("ip flanneld-masq-probe-4711", "guard"), "flanneld-masq"),
        (place("ip flanneld-masquerade", "forward"), ""),
        (place("ip nat", "FLANNELD-MASQ"), "flanneld-masq"),
        (place("ip filter", "FORWARD", "-A FORWARD -j DROP"), ""),
        (place("inet filter", "forward"), ""),
        (place("sysctl", "", "net.ipv4.ip_forward = 0", number=0), ""),
    ],
    ids=str,
)
def test_owner_of_a_rule(rule: Place, owner: str) -> None:
    assert owner_of(rule) == owner


def test_a_rule_without_a_name_belongs_to_the_author_of_the_jump() -> None:
    jump = place("ip filter", "FORWARD", "-A FORWARD -j OWN", "cali:x")
    assert owner_of(place("ip filter", "OWN", "-A OWN -j DROP"), jumps=(jump,)) == "calico"


@pytest.mark.parametrize(
    ("beside", "owner"),
    [
        (("FORWARD", "DOCKER", "DOCKER-USER"), "docker"),
        (("FORWARD", "DOCKER", "ufw-before-forward"), "ufw"),
        (("FORWARD", "KUBE-FORWARD"), ""),
        (("FORWARD",), ""),
    ],
)
def test_a_policy_belongs_to_a_program_there_that_sets_policies(beside: tuple[str, ...], owner: str) -> None:
    assert owner_of(place("ip filter", "FORWARD", "policy drop", number=0), beside) == owner


@pytest.mark.parametrize(("chain", "owner"), [("DOCKER", ""), ("LIBVIRT_INP", ""), ("ufw6-before-input", "ufw")])
def test_docker_sets_the_policy_of_forward_alone(chain: str, owner: str) -> None:
    assert owner_of(place("ip6 filter", "INPUT", "policy drop", number=0), ("INPUT", chain)) == owner


@pytest.mark.parametrize(
    ("table", "chain", "text", "owner"),
    [
        ("ip nat", "POSTROUTING", "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", "docker"),
        ("inet firewalld", "filter_FORWARD", "", "firewalld"),
        ("ip nat", "KUBE-POSTROUTING", "", "kube-proxy"),
        ("ip filter", "FLANNELD-MASQ-FWD", "", "flanneld-masq"),
        ("ip nat", "FLANNEL-POSTRTG", "", "flannel"),
        ("ip filter", "FORWARD", 'jump cali-FORWARD comment "cali:wUHhoiAYhphO9Mso"', "calico"),
        ("filter", "FORWARD", "-A FORWARD -m comment --comment cali:wUHhoiAYhphO9Mso -j ACCEPT", "calico"),
        ("ip nat", "POSTROUTING", 'counter jump X comment "flanneld-masq:0123456789ab"', "flanneld-masq"),
        ("filter", "FORWARD", "-A FORWARD -j ufw-user", "ufw"),
        ("ip filter", "FORWARD", "drop", ""),
    ],
)
def test_owner_of_a_printed_rule(table: str, chain: str, text: str, owner: str) -> None:
    assert owner_by_text(table, chain, text) == owner
