"""The facts of a node that the checks of `doctor` examine. Nothing here reads or decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

from flanneld_masq.controller.status import Status
from flanneld_masq.doctor.host_network import HostNetwork
from flanneld_masq.doctor.unit_state import UnitState
from flanneld_masq.inputs.saved_rulesets import SavedTable
from flanneld_masq.model import SLOTS, Address, BackendName, Family, Holder, Lease, MarkEvidence, Settings, Survey
from flanneld_masq.packet_path.flows import FlowResult
from flanneld_masq.packet_path.state import Step
from flanneld_masq.ruleset.flannel_effect import Effect
from flanneld_masq.service.service_user import Unreadable

_NOBODY = Holder(False, 0, "")


@dataclass(frozen=True, **SLOTS)
class KubeProxy:
    """The rules of kube-proxy in one family. `places` are those that have its rules for services. `mark` is the one
    that it gives to packets, None for none; `keeps_mark` is True if it masquerades them without taking it off."""

    places: tuple[str, ...] = ()
    mark: Optional[MarkEvidence] = None
    keeps_mark: bool = False


@dataclass(frozen=True, **SLOTS)
class FamilyFacts:
    """The facts of one family that a lease names, or that has rules although no lease names it.

    `unusable` is the reason why no backend can be used, `differs` the difference between the kernel and the wanted
    rules, `unread` the reason why that is not known, `drops` the drop of forwarded packets by backend, `unhelped` the
    drops where no accept can be put; each is empty if there is none. `left` are rules of the daemon that no lease
    names. `both_flavours` is True if iptables-nft and iptables-legacy both hold rules, `protected` if other programs
    cannot change the daemon's nft table.
    """

    family: Family
    unusable: str = ""
    differs: str = ""
    unread: str = ""
    left: str = ""
    drops: Mapping[BackendName, str] = field(default_factory=dict)
    unhelped: tuple[str, ...] = ()
    surveys: Mapping[BackendName, Survey] = field(default_factory=dict)
    effects: Mapping[BackendName, Effect] = field(default_factory=dict)
    both_flavours: bool = False
    kube_proxy: KubeProxy = KubeProxy()
    protected: bool = False


@dataclass(frozen=True, **SLOTS)
class DaemonFacts:
    """The daemon: `holder` shows if it runs, `status` is its own report, `unit` is systemd's report on a service that
    does not run. `unreadable` are the input files that the user of the service may not read; a daemon that runs reports
    that itself. `saved` are the files of nftables.service that hold a table of the daemon."""

    holder: Holder = _NOBODY
    status: Optional[Status] = None
    unit: Optional[UnitState] = None
    unreadable: tuple[Unreadable, ...] = ()
    saved: tuple[SavedTable, ...] = ()


@dataclass(frozen=True, **SLOTS)
class TunnelDrop:
    """A rule that drops the VXLAN packets of other nodes for the interface `device`, here one from `src` to the address
    `dst` of this node. `port` is their UDP port, `family` that of these addresses, `owner` the program of the rule,
    empty if unknown."""

    family: Family
    device: str
    port: int
    src: Address
    dst: Address
    step: Step
    owner: str


@dataclass(frozen=True, **SLOTS)
class PacketFacts:
    """The fate of packets. `flows` are those that pods need. `tunnels` are the rules that drop the packets which carry
    these between nodes. `losing` names tables that are not evaluated, and may drop packets."""

    flows: tuple[FlowResult, ...] = ()
    tunnels: tuple[TunnelDrop, ...] = ()
    losing: tuple[str, ...] = ()


@dataclass(frozen=True, **SLOTS)
class Unread:
    """The reasons why facts cannot be read; each is empty if they were. `rules` is for the rules of the daemon and of
    programs that it knows, `network` for interfaces and routes, `packet_path` for all that decides about a packet."""

    rules: str = ""
    network: str = ""
    packet_path: str = ""


@dataclass(frozen=True, **SLOTS)
class Facts:
    """The facts of a node.

    `troubles` say why subnet files give no lease. `wrong` names the error in the configuration file; all checks that
    need the configuration are then skipped; `net_conf` what is wrong with flannel's. `network` are its interfaces and
    routes; None if they are not needed or not known. `unread` says what cannot be read. `sysctls` are numbers below
    /proc/sys, by path; those that the kernel does not have are missing. `plugins` are the failures of plugins.
    `packets` is what becomes of packets.
    """

    settings: Settings
    leases: tuple[Lease, ...] = ()
    troubles: tuple[str, ...] = ()
    net_conf: str = ""
    wrong: str = ""
    daemon: DaemonFacts = DaemonFacts()
    families: tuple[FamilyFacts, ...] = ()
    unread: Unread = Unread()
    network: Optional[HostNetwork] = None
    sysctls: Mapping[str, int] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    packets: PacketFacts = PacketFacts()
