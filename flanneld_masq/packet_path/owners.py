"""Says which program owns a rule, by the names that programs give their tables, chains and comments. Pure.

`FINGERPRINTS` is data: the first entry of which every given pattern matches names the owner. A program that sets a
built-in chain's policy leaves no name there; such a chain belongs to the program whose chains stand in the same table.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Optional

from flanneld_masq.model import SLOTS
from flanneld_masq.packet_path.rules import Place

UNKNOWN = ""
OURS = "flanneld-masq"


@dataclass(frozen=True, **SLOTS)
class Fingerprint:
    """How to recognise a program's rules. `chain` fits the rule's own chain or one that it jumps to."""

    owner: str
    table: str = ""
    chain: str = ""
    comment: str = ""
    text: str = ""


FINGERPRINTS = (
    Fingerprint(OURS, comment=r"flanneld-masq:[0-9a-f]{12}"),
    Fingerprint(OURS, table=r"flanneld-masq(-(trace|probe|trial)\b.*)?"),
    Fingerprint(OURS, chain=r"FLANNELD-MASQ(-FWD)?"),
    Fingerprint("flannel", comment=r"flanneld (masq|forward).*"),
    Fingerprint("flannel", table=r"flannel-ipv[46]"),
    Fingerprint("flannel", chain=r"FLANNEL-.*"),
    Fingerprint("kube-router", chain=r"KUBE-(ROUTER|POD-FW|NWPLCY|NWPLCYS).*"),
    Fingerprint("kubelet", chain=r"KUBE-(FIREWALL|KUBELET-CANARY)"),
    Fingerprint("ip-masq-agent", chain=r"IP-MASQ(-AGENT)?"),
    Fingerprint("kube-proxy", table=r"kube-proxy"),
    Fingerprint("kube-proxy", chain=r"KUBE-.*"),
    Fingerprint("kube-proxy", comment=r"kubernetes .*"),
    Fingerprint("calico", chain=r"cali-.*"),
    Fingerprint("calico", comment=r"cali:.*"),
    Fingerprint("calico", table=r"calico"),
    Fingerprint("cilium", chain=r"(OLD_)?CILIUM_.*"),
    Fingerprint("cilium", comment=r"cilium.*"),
    Fingerprint("antrea", chain=r"ANTREA-.*"),
    Fingerprint("ovn-kubernetes", chain=r"OVN-KUBE-.*"),
    Fingerprint("weave", chain=r"WEAVE.*"),
    Fingerprint("istio", chain=r"ISTIO_.*"),
    Fingerprint("netavark", chain=r"NETAVARK.*"),
    Fingerprint("netavark", table=r"netavark"),
    Fingerprint("cni-plugins", table=r"cni_(plugins_masquerade|hostport)"),
    Fingerprint("cni-plugins", chain=r"CNI-.*"),
    Fingerprint("cni-plugins", comment=r'name: ".*" id: ".*"'),
    Fingerprint("docker", table=r"docker-bridges"),
    Fingerprint("docker", chain=r"DOCKER(-.*)?"),
    Fingerprint("docker", text=r".*\b(docker0|docker_gwbridge|br-[0-9a-f]{12})\b.*"),
    Fingerprint("firewalld", table=r"firewalld(_policy_drop)?"),
    Fingerprint("firewalld", chain=r"(IN|OUT|FWD|FWDI|FWDO|PRE|POST)_\w+"),
    Fingerprint("firewalld", chain=r"(INPUT|FORWARD|OUTPUT|PREROUTING|POSTROUTING)_(direct|\w*ZONES\w*|POLICIES_\w+)"),
    Fingerprint("ufw", chain=r"ufw6?-.*"),
    Fingerprint("libvirt", chain=r"LIBVIRT_.*"),
    Fingerprint("libvirt", table=r"libvirt_network"),
    Fingerprint("libvirt", text=r".*\bvirbr\d+.*"),
    Fingerprint("NetworkManager", table=r"nm-(shared|mlag)-.*"),
    Fingerprint("NetworkManager", chain=r"nm-sh-.*"),
    Fingerprint("NetworkManager", comment=r"nm-shared-.*"),
    Fingerprint("systemd-networkd", table=r"io\.systemd\.nat"),
    Fingerprint("tailscale", chain=r"ts-(forward|input|postrouting)"),
    Fingerprint("incus", table=r"(incus|lxd)"),
    Fingerprint("fail2ban", table=r"f2b-table"),
    Fingerprint("fail2ban", chain=r"f2b-.*"),
    Fingerprint("crowdsec", table=r"crowdsec6?"),
    Fingerprint("crowdsec", chain=r"CROWDSEC.*"),
    # The form in which docker masquerades the network of any bridge, also one that it was given.
    Fingerprint("docker", text=r"-A POSTROUTING -s \S+ ! -o \S+ -j MASQUERADE"),
)
BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_COMMENT = re.compile(r'\bcomment (?!--)(?:"([^"]*)"|(\S+))')
_CALLED = re.compile(r"(?:-[jg]|\bjump|\bgoto) (\S+)")


def owner_of(place: Place, beside: Collection[str] = (), jumps: Collection[Place] = ()) -> str:
    """Return the program that owns a rule, UNKNOWN if none is recognised.

    `beside` are the names of the chains in its table, `jumps` the rules that led to it.
    """
    own = _match(place)
    if own or place.number:
        return own or next((found for jump in reversed(tuple(jumps)) if (found := _match(jump))), UNKNOWN)
    if place.chain not in BUILT_IN:
        return UNKNOWN
    there = {_match(Place(place.table, chain)) for chain in beside if chain not in BUILT_IN}
    setters = _SET_POLICIES if place.chain == "FORWARD" else _SET_ALL_POLICIES
    return next((name for name in setters if name in there), UNKNOWN)


def owner_by_text(table: str, chain: str, text: str) -> str:
    """Return the program that owns a rule of which only its table ("ip filter") and chain are known, and its text as
    nft or iptables-save prints it, empty for a policy; UNKNOWN if none is recognised."""
    comment = _COMMENT.search(text)
    return _match(Place(table, chain, text=text, comment=(comment[1] or comment[2] or "") if comment else ""))


_SET_POLICIES = ("ufw", "docker", "firewalld", "libvirt")  # of the programs above, those that set policies
_SET_ALL_POLICIES = ("ufw", "firewalld")  # not that of FORWARD alone


def _match(place: Place) -> str:
    called = _CALLED.search(place.text)
    chains = (place.chain, called[1] if called else "")
    table = place.table.rpartition(" ")[2]
    for one in FINGERPRINTS:
        fits = (
            _fits(one.table, table),
            _fits(one.comment, place.comment),
            _fits(one.text, place.text),
            None if not one.chain else any(_fits(one.chain, chain) for chain in chains),
        )
        if all(fit is not False for fit in fits):
            return one.owner
    return UNKNOWN


def _fits(pattern: str, text: str) -> Optional[bool]:
    """Return True if the pattern matches the whole text; None for an empty pattern, which restricts nothing."""
    return bool(re.fullmatch(pattern, text)) if pattern else None
