"""Writes the commands that let packets of pods pass, in the terms of the program that owns the rule. Pure.

`DROPS` and `MASQUERADES` are data. Where they have no command, the remedy is an accept right before the rule that
decides, in the same chain: there it helps against that rule, and stands ahead of no other. Before a rule that changes
the destination it is a return, so that the chains which called this one still see the packet.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flanneld_masq.model import SLOTS, Family
from flanneld_masq.packet_path.owners import BUILT_IN, OURS
from flanneld_masq.packet_path.rules import DESTINATION_NAT, Hook, Place
from flanneld_masq.packet_path.snapshot import XTABLES
from flanneld_masq.packet_path.state import Effect, Step

NO_RULE = ("sysctl", "routing")  # what stands for a table where the kernel drops without a rule
_LEGACY = "legacy "
_ANSWERS = "RELATED,ESTABLISHED"
_DROPS_ALL = re.compile(
    r"(?:log )?(?:drop|reject(?: with .*)?)"
    r"|-A \S+ (?:-m comment --comment (?:\"[^\"]*\"|\S+) )?-j (?:DROP|REJECT)(?: .*)?"
)
_OF_IPTABLES = frozenset(f"{family.data.nft} {table}" for family in Family for table in XTABLES)
_COMMENT = "pods-of-flannel"  # in FORWARD, where flannel's own accepts look like these but for it


@dataclass(frozen=True, **SLOTS)
class Traffic:
    """Packets that must pass, by source and destination; empty for any. With `answers`, those of connections alone,
    with `udp_port` those to that port alone. With `icmpv6` those of ICMPv6 alone; a rule then accepts it from anywhere,
    because the uplink needs it as well."""

    source: str = ""
    destination: str = ""
    answers: bool = False
    udp_port: int = 0
    icmpv6: bool = False

    @property
    def shape(self) -> str:
        return "between" if self.source and self.destination else "from" if self.source else "to"


@dataclass(frozen=True, **SLOTS)
class Remedy:
    """The commands, and how they survive a reboot."""

    command: str
    persist: str = ""


@dataclass(frozen=True, **SLOTS)
class Program:
    """The way to have a program leave packets alone: a command for each shape of traffic, or `persist` alone if only an
    accept before its rule helps at once. The fields are `source`, `destination`, `address` (the first of both that is),
    `tool` and `device`."""

    commands: Mapping[str, str]
    persist: str


def _any(command: str) -> Mapping[str, str]:
    return dict.fromkeys(("from", "to", "between"), command)


_FIREWALLD = "firewall-cmd --zone=trusted --add-source={address}"
_DOCKER_POLICY = Program(
    _any("{tool} -P FORWARD ACCEPT"),
    '`"ip-forward-no-drop": true` in /etc/docker/daemon.json with docker 28 or later (an earlier one does not start '
    "with it); otherwise forwarding in /etc/sysctl.d, for docker sets the policy only if it turns that on",
)
_DOCKER_NFT = Program(
    {},
    'docker makes its table again at each start: `"bridge-accept-fwmark": "0x100000/0x100000"` in '
    "/etc/docker/daemon.json, and a chain of your own (type filter hook forward priority -10) in the file that the "
    "nftables service loads, which sets that mark for the same packets; or give docker a bridge other than flannel's",
)
_SHARED = "a connection with ipv4.method shared makes it: `nmcli connection modify NAME ipv4.method auto`"
# ufw leaves a rule where it is that has the same ends, and what is added behind a deny does not help.
_UFW = "ufw route delete {{denies}} {ends}; ufw route prepend allow {ends}"
DROPS: Mapping[str, Program] = {
    "firewalld": Program(_any(_FIREWALLD), "the same with --permanent: `{command_permanent}`"),
    "ufw": Program(
        {
            "from": _UFW.format(ends="from {source}"),
            "to": _UFW.format(ends="to {destination}"),
            "between": _UFW.format(ends="from {source} to {destination}"),
        },
        "",
    ),
    "docker": Program(
        {
            "from": "{tool} -I DOCKER-USER -s {source} -j ACCEPT",
            "to": "{tool} -I DOCKER-USER -d {destination} -j ACCEPT",
            "between": "{tool} -I DOCKER-USER -s {source} -d {destination} -j ACCEPT",
        },
        "docker keeps what DOCKER-USER has until a reboot: run the command from a unit that is ordered "
        "After=docker.service",
    ),
    "libvirt": Program({}, "the command in /etc/libvirt/hooks/network, for libvirt makes its rules again"),
    "NetworkManager": Program({}, _SHARED),
    "tailscale": Program({}, "`tailscale set --netfilter-mode=nodivert` and rules of your own"),
}
INPUT_DROPS: Mapping[str, Program] = {
    "firewalld": DROPS["firewalld"],
    "ufw": Program({"from": "ufw prepend allow from {source}"}, ""),
}
MASQUERADES: Mapping[str, Program] = {
    "docker": Program(
        {},
        '`"ip-masq": false` in /etc/docker/daemon.json, or for its network the option '
        "com.docker.network.bridge.enable_ip_masquerade=false",
    ),
    "firewalld": Program(
        _any("firewall-cmd --zone=trusted --change-interface={device}"),
        "the same with --permanent: `{command_permanent}`",
    ),
    "libvirt": Program({}, "`virsh net-edit NETWORK`: <forward mode='route'/> or another network instead of nat"),
    "NetworkManager": Program({}, _SHARED),
    "systemd-networkd": Program({}, "`IPMasquerade=no` in the .network file, then `networkctl reload`"),
    "tailscale": Program({}, "`tailscale set --snat-subnet-routes=false`"),
    "ip-masq-agent": Program({}, "the pod network in nonMasqueradeCIDRs of its configuration"),
    "netavark": Program({}, "give podman a network outside of flannel's"),
}
PORTS: Mapping[str, str] = {
    "firewalld": "firewall-cmd --add-port={port}/udp",
    "ufw": "ufw prepend allow {port}/udp",
}
# Nobody edits the daemon's rules: it replaces them, and its tables may be protected.
_SETTINGS = Remedy(
    "the rule is the daemon's own: `flanneld-masq explain` says why it is there; change the settings, then "
    "`systemctl reload flanneld-masq`"
)
_FILES = "the same in the file of the nftables service (/etc/nftables.conf, RHEL: /etc/sysconfig/nftables.conf)"
_SAVED = "`netfilter-persistent save` (RHEL: `service {tools} save`), or the command in the script that makes the rules"


def remedy(
    step: Step,
    owner: str,
    family: Family,
    traffic: Iterable[Traffic],
    device: str = "",
    answers: Iterable[Traffic] = (),
) -> Remedy:
    """Return how to let the packets pass a rule. `device` is the one by which they leave. `answers` must pass too where
    the remedy is an accept; programs with commands of their own let answers pass by themselves."""
    if owner == OURS:
        return _SETTINGS
    traffic = tuple(dict.fromkeys(traffic))
    program = _program(step, owner)
    if program is not None and program.commands:
        fields = [_fields(one, step, family, device) for one in traffic]
        commands = [program.commands[one.shape].format(**named) for one, named in zip(traffic, fields)]
        command = _joined(commands)
        return Remedy(command, program.persist.format(command_permanent=_permanent(command)))
    verdict = "return" if _redirects(step) else "accept"
    command = _joined(shlex.join(_accept(step.place, one, family, verdict)) for one in (*traffic, *answers))
    return Remedy(command, program.persist if program is not None else _persist(step.place, family))


def tunnel(step: Step, owner: str, family: Family, port: int) -> Remedy:
    """Return how to let UDP packets to a port of the node pass a rule."""
    if owner == OURS:
        return _SETTINGS
    command = PORTS.get(owner, "").format(port=port)
    if command:
        return Remedy(command, f"`{_permanent(command)}`" if command != _permanent(command) else "")
    command = shlex.join(_accept(step.place, Traffic(udp_port=port), family))
    return Remedy(command, _persist(step.place, family))


def _program(step: Step, owner: str) -> Program | None:
    if step.effect is Effect.TRANSLATED:
        return None if _redirects(step) else MASQUERADES.get(owner)
    if owner == "docker" and not is_xtables(step.place) and step.place.number:
        return _DOCKER_NFT
    if owner == "docker" and not step.place.number:
        return _DOCKER_POLICY
    return {Hook.FORWARD: DROPS, Hook.INPUT: INPUT_DROPS}.get(step.hook, {}).get(owner)


def _redirects(step: Step) -> bool:
    """Return True for a rule that changes the destination."""
    return step.effect is Effect.TRANSLATED and step.hook in DESTINATION_NAT


def _joined(commands: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(commands))


def _permanent(command: str) -> str:
    return command.replace("firewall-cmd ", "firewall-cmd --permanent ")


def _fields(one: Traffic, step: Step, family: Family, device: str) -> Mapping[str, str]:
    return {
        "denies": "reject" if step.effect is Effect.REJECTED else "deny",
        "source": one.source,
        "destination": one.destination,
        "address": one.source or one.destination,
        "tool": _tool(step.place, family),
        "device": device,
    }


def drops_all(step: Step) -> bool:
    """Return True for a policy that drops, and for a rule that drops or rejects every packet that reaches it."""
    if step.effect not in (Effect.DROPPED, Effect.REJECTED):
        return False
    return not step.place.number or bool(_DROPS_ALL.fullmatch(step.place.text))


def is_xtables(place: Place) -> bool:
    """Return True for a rule that iptables wrote, of either flavour, and for a policy in one of its tables.

    A rule of nft in such a table, for example one with `ct state`, makes iptables-nft refuse the table.
    """
    policy = not place.number and place.chain in BUILT_IN and place.table in _OF_IPTABLES
    return policy or place.table.startswith(_LEGACY) or place.text.startswith("-A ")


def _tool(place: Place, family: Family) -> str:
    return f"{family.data.tools}-{'legacy' if place.table.startswith(_LEGACY) else 'nft'}"


def _accept(place: Place, one: Traffic, family: Family, verdict: str = "accept") -> list[str]:
    """Return the command that accepts packets right before a rule, or at the end of a chain before its policy."""
    one = Traffic(icmpv6=True) if one.icmpv6 else one
    if is_xtables(place):
        table = place.table.rpartition(" ")[2]
        where = ["-I", place.chain, str(place.number)] if place.number else ["-A", place.chain]
        ends = [word for key, end in (("-s", one.source), ("-d", one.destination)) if end for word in (key, end)]
        state = ["-m", "conntrack", "--ctstate", _ANSWERS] if one.answers else []
        named = [] if table == "filter" else ["-t", table]
        port = ["-p", "udp", "--dport", str(one.udp_port)] if one.udp_port else []
        kind = ["-p", "ipv6-icmp"] if one.icmpv6 else port
        comment = ["-m", "comment", "--comment", _COMMENT] if _is_forward(place) else []
        return [_tool(place, family), *named, *where, *ends, *kind, *state, *comment, "-j", verdict.upper()]
    at = ["handle", str(place.handle)] if place.number and place.handle else []
    ip = family.data.nft
    ends = [word for key, end in (("saddr", one.source), ("daddr", one.destination)) if end for word in (ip, key, end)]
    state = ["ct", "state", _ANSWERS.lower()] if one.answers else []
    port = ["udp", "dport", str(one.udp_port)] if one.udp_port else []
    kind = ["meta", "l4proto", "ipv6-icmp"] if one.icmpv6 else port
    verb = "insert" if place.number else "add"
    comment = ["comment", _COMMENT] if _is_forward(place) else []
    return ["nft", verb, "rule", *place.table.split(" ", 1), place.chain, *at, *ends, *kind, *state, verdict, *comment]


def _is_forward(place: Place) -> bool:
    return place.table.endswith(" filter") and place.chain == "FORWARD"


def _persist(place: Place, family: Family) -> str:
    return _SAVED.format(tools=family.data.tools) if is_xtables(place) else _FILES
