"""Nodes for the tests of the packet path: a pod network, a world and another node, with any ruleset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from flanneld_masq.model import Family
from flanneld_masq.packet_path.evaluate import Node, Result
from flanneld_masq.packet_path.packet import TCP, CtState, Packet
from flanneld_masq.packet_path.snapshot import LEGACY, Save, Snapshot

POD, REMOTE_POD, WORLD, OWN = "10.244.1.5", "10.244.2.5", "198.51.100.7", "192.0.2.1"


def _device(name: str, *addresses: tuple[str, int]) -> dict[str, object]:
    infos = [
        {"family": "inet" if ":" not in one else "inet6", "local": one, "prefixlen": length, "scope": "global"}
        for one, length in addresses
    ]
    return {"ifname": name, "mtu": 1500, "addr_info": infos}


ADDRESSES = [
    _device("lo"),
    _device("cni0", ("10.244.1.1", 24), ("fd00:10:244:1::1", 64)),
    _device("flannel.1", ("10.244.1.0", 32), ("fd00:10:244:1::", 128)),
    _device("eth0", (OWN, 24), ("2001:db8:1::1", 64)),
]
LINKS = [
    {"ifname": "cni0", "link_type": "ether", "group": "default"},
    {"ifname": "eth0", "link_type": "none", "group": "7"},
    {"ifname": "flannel.1", "link_type": "unheard", "group": "mgmt"},
]
ROUTES4: list[Any] = [
    {"dst": "default", "gateway": "192.0.2.100", "dev": "eth0"},
    {"dst": "10.244.1.0/24", "dev": "cni0"},
    {"dst": "10.244.2.0/24", "gateway": "10.244.2.0", "dev": "flannel.1", "flags": ["onlink"]},
    {"dst": "192.0.2.0/24", "dev": "eth0"},
    *({"type": "local", "dst": one, "dev": "lo", "table": "local"} for one in (OWN, "10.244.1.1", "10.244.1.0")),
]
ROUTES6: list[Any] = [
    {"dst": "default", "gateway": "2001:db8:1::100", "dev": "eth0"},
    {"dst": "fd00:10:244:1::", "dev": "flannel.1", "protocol": "kernel"},  # as the kernel writes for any address
    {"dst": "fd00:10:244:1::/64", "dev": "cni0"},
    {"dst": "fd00:10:244:2::/64", "gateway": "fd00:10:244:2::", "dev": "flannel.1"},
    *({"type": "local", "dst": one, "dev": "lo", "table": "local"} for one in ("2001:db8:1::1", "fd00:10:244:1::1")),
    {"type": "local", "dst": "fd00:10:244:1::", "dev": "flannel.1", "table": "local"},
]
RULES: list[Any] = [
    {"priority": 0, "src": "all", "table": "local"},
    {"priority": 32766, "src": "all", "table": "main"},
    {"priority": 32767, "src": "all", "table": "default"},
]


def snapshot(
    objects: Sequence[Any] = (),
    *,
    legacy: str = "",
    saves: tuple[Save, ...] = (),
    sysctls: Mapping[str, str] | None = None,
    routes: Sequence[Any] = ROUTES4,
    routes6: Sequence[Any] = ROUTES6,
    rules: Sequence[Any] = RULES,
    ipsets: str = "",
    unread: tuple[str, ...] = (),
    queues: str | None = None,
) -> Snapshot:
    """Return a snapshot with these objects of `nft -j`, and the tables of iptables-legacy-save."""
    found = (*saves, Save(Family.IPV4, LEGACY, legacy)) if legacy else saves
    return Snapshot(
        json.dumps({"nftables": [{"metainfo": {}}, *objects]}),
        found,
        json.dumps(LINKS),
        json.dumps(ADDRESSES),
        {Family.IPV4: json.dumps(routes), Family.IPV6: json.dumps(routes6)},
        {family: json.dumps(rules) for family in Family},
        ipsets,
        {"net.ipv4.ip_forward": "1", **(sysctls or {})},
        unread,
        queues=queues,
    )


def table(name: str = "t", family: str = "ip", handle: int = 1, **more: object) -> dict[str, object]:
    return {"table": {"family": family, "name": name, "handle": handle, **more}}


def chain(name: str, hook: str = "", kind: str = "filter", prio: int = 0, **more: Any) -> dict[str, object]:
    """Return a chain of the table `t`, a base chain with a hook."""
    where = {"family": more.pop("family", "ip"), "table": more.pop("table", "t"), "name": name, "handle": 1}
    based = {"type": kind, "hook": hook, "prio": prio, "policy": more.pop("policy", "accept")} if hook else {}
    return {"chain": {**where, **based, **more}}


def rule(name: str, *expressions: object, **more: Any) -> dict[str, object]:
    where = {"family": more.pop("family", "ip"), "table": more.pop("table", "t"), "chain": name}
    return {"rule": {**where, "handle": more.pop("handle", 7), **more, "expr": list(expressions)}}


def match(left: object, right: object, op: str = "==") -> dict[str, object]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> dict[str, object]:
    return {"payload": {"protocol": protocol, "field": field}}


def meta(key: str) -> dict[str, object]:
    return {"meta": {"key": key}}


def ct(key: str) -> dict[str, object]:
    return {"ct": {"key": key}}


ACCEPT: dict[str, object] = {"accept": None}
DROP: dict[str, object] = {"drop": None}
SADDR, DADDR = payload("ip", "saddr"), payload("ip", "daddr")


def forwarding(*rules: Sequence[object], policy: str = "accept", beside: Sequence[Mapping[str, object]] = ()) -> Node:
    """Return a node with these rules in a chain of the hook forward."""
    objects = [table(), chain("f", "forward", policy=policy), *beside]
    return Node(snapshot([*objects, *(rule("f", *one) for one in rules)]))


def packet(src: str = POD, dst: str = WORLD, iif: str = "cni0", **more: Any) -> Packet:
    defaults: dict[str, Any] = {"proto": TCP, "sport": 40000, "dport": 443, "state": CtState.NEW}
    return Packet(ip_address(src), ip_address(dst), iif=iif, **{**defaults, **more})


def follow(node: Node, **more: Any) -> Result:
    return node.evaluate(packet(**more))
