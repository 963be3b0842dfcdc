"""Names the program that a table or chain belongs to, by how programs name them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

OwnerOf = Callable[[str, str, str], str]
"""Takes a table (`ip filter`), a chain and the text of a rule; returns the program that owns it, or an empty string."""

_TABLES = (
    (re.compile(r"^\w+ flanneld-masq"), "flanneld-masq"),
    (re.compile(r"^\w+ firewalld"), "firewalld"),
    (re.compile(r"^\w+ kube-proxy"), "kube-proxy"),
    (re.compile(r"^\w+ flannel-"), "flannel"),
    (re.compile(r"^\w+ docker-bridges"), "docker"),
    (re.compile(r"^\w+ libvirt_network"), "libvirt"),
    (re.compile(r"^\w+ nm-"), "NetworkManager"),
    (re.compile(r"^\w+ io\.systemd\.nat"), "systemd-networkd"),
)
_WORDS = (
    (re.compile(r"\bFLANNELD-MASQ|flanneld-masq:"), "flanneld-masq"),
    (re.compile(r"\bFLANNEL-|\bflanneld "), "flannel"),
    (re.compile(r"\bKUBE-|kubernetes"), "kube-proxy"),
    (re.compile(r"\bDOCKER|\bdocker0\b"), "docker"),
    (re.compile(r"\bufw6?-"), "ufw"),
    (re.compile(r"\bcali-|\bcali:"), "calico"),
    (re.compile(r"\bLIBVIRT_|\bvirbr"), "libvirt"),
    (re.compile(r"\bts-(?:input|forward|postrouting)"), "tailscale"),
    (re.compile(r"\bCNI-"), "CNI plugins"),
)


def by_name(table: str, chain: str, text: str) -> str:
    """Return the program whose names the table, the chain or the rule has; an empty string if none is known."""
    for patterns, where in ((_TABLES, table), (_WORDS, chain), (_WORDS, text)):
        for pattern, owner in patterns:
            if pattern.search(where):
                return owner
    return ""
