"""Holds what the tools of a node say about its rules, routes and settings, and saves and loads that as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flanneld_masq.errors import SnapshotError
from flanneld_masq.model import SLOTS, Family

VERSION = 1
NFT, LEGACY = "nft", "legacy"
XTABLES = ("raw", "mangle", "nat", "filter", "security")  # the tables of iptables


@dataclass(frozen=True, **SLOTS)
class Save:
    """The output of iptables-save or ip6tables-save of one flavour, NFT or LEGACY."""

    family: Family
    flavour: str
    text: str


@dataclass(frozen=True, **SLOTS)
class Snapshot:
    """The output of the tools, unchanged.

    `ruleset` is that of `nft -j list ruleset`, `links` and `addresses` are `ip -j -d link` and `ip -j -d addr`,
    `routes` and `rules` hold `ip -j route show table all` and `ip -j rule` of each family, `neighbours` and `ends` are
    `ip -j neigh show nud permanent` and `bridge -j fdb`, `ipsets` is that of `ipset save`, `queues` is the file
    /proc/net/netfilter/nfnetlink_queue, None if it was not read.
    `sysctls` are paths below /proc/sys with dots between their parts. `unread` says what could not be read, a line for
    each.
    """

    ruleset: str = ""
    saves: tuple[Save, ...] = ()
    links: str = "[]"
    addresses: str = "[]"
    routes: Mapping[Family, str] = field(default_factory=dict)
    rules: Mapping[Family, str] = field(default_factory=dict)
    ipsets: str = ""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    neighbours: str = "[]"
    ends: str = "[]"
    queues: str | None = None

    def sysctl(self, key: str) -> int | None:
        """Return a number; None if the node has no such key or it was not read."""
        text = self.sysctls.get(key, "")
        return int(text) if text.lstrip("-").isdecimal() and len(text) < 20 else None


def to_json(snapshot: Snapshot) -> str:
    """Return the snapshot as one line of JSON."""
    saves = [{"family": str(save.family), "flavour": save.flavour, "text": save.text} for save in snapshot.saves]
    content = {
        "version": VERSION,
        "ruleset": snapshot.ruleset,
        "saves": saves,
        "links": snapshot.links,
        "addresses": snapshot.addresses,
        "routes": {str(family): text for family, text in snapshot.routes.items()},
        "rules": {str(family): text for family, text in snapshot.rules.items()},
        "neighbours": snapshot.neighbours,
        "ends": snapshot.ends,
        "ipsets": snapshot.ipsets,
        "queues": snapshot.queues,
        "sysctls": dict(snapshot.sysctls),
        "unread": list(snapshot.unread),
    }
    return json.dumps(content)


def from_json(text: str) -> Snapshot:
    """Return the snapshot that `to_json` wrote. Raises SnapshotError for any other text."""
    try:
        return _snapshot(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SnapshotError(f"no snapshot of a node: {type(error).__name__}: {error}") from error


def _snapshot(content: Any) -> Snapshot:
    if content["version"] != VERSION:
        raise ValueError("it is of another version")
    return Snapshot(
        ruleset=_text(content["ruleset"]),
        saves=tuple(
            Save(Family(save["family"]), _text(save["flavour"]), _text(save["text"])) for save in content["saves"]
        ),
        links=_text(content["links"]),
        addresses=_text(content["addresses"]),
        routes={Family(name): _text(value) for name, value in content["routes"].items()},
        rules={Family(name): _text(value) for name, value in content["rules"].items()},
        neighbours=_text(content.get("neighbours", "[]")),
        ends=_text(content.get("ends", "[]")),
        ipsets=_text(content["ipsets"]),
        sysctls={_text(key): _text(value) for key, value in content["sysctls"].items()},
        unread=tuple(_text(line) for line in content["unread"]),
        queues=None if content.get("queues") is None else _text(content["queues"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    return value
