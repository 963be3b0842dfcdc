"""Defines the values that the other modules take and return. Nothing here reads, writes or decides.

Addresses are `ipaddress` objects, sequences are tuples, and all classes are frozen (and slotted from
Python 3.10 on, where `dataclass` can do it).
"""

from __future__ import annotations

import enum
import re
import sys
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal, NewType, Optional, Union

from flanneld_masq.printable import printable

SLOTS: dict[str, bool] = {"slots": True} if sys.version_info >= (3, 10) else {}

Address = Union[IPv4Address, IPv6Address]
LOOPBACK: Address = IPv4Address("127.0.0.1")
Network = Union[IPv4Network, IPv6Network]
BackendName = NewType("BackendName", str)

AUTO = BackendName("auto")


def make_printable(value: object, *names: str) -> None:
    """Make these texts of a frozen value printable, in its `__post_init__`."""
    for name in names:
        object.__setattr__(value, name, printable(getattr(value, name)))


COMMENT_PREFIX = "flanneld-masq:"
TAG_LENGTH = 12  # hexadecimal digits
_OUR_COMMENT = re.compile(f"{COMMENT_PREFIX}([0-9a-f]{{{TAG_LENGTH}}})")


@dataclass(frozen=True, **SLOTS)
class FamilyData:
    """The data in which the families differ; code reads it from here instead of having a branch per family.

    `nft`, `nfproto` and `tools` are nft's and the kernel's names for the family, and the stem of its iptables tools.
    `width` is the length of an address in bits. `legacy_names` and `proc` are below /, `forwarding` below /proc/sys.
    """

    version: int
    nft: str
    nfproto: int
    tools: str
    multicast: Network
    link_local: Network
    width: int
    legacy_names: str
    proc: str
    forwarding: str


class Family(enum.Enum):
    """An address family. The value is the name that users see."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"

    @property
    def data(self) -> FamilyData:
        return _FAMILIES[self]

    def __str__(self) -> str:
        return self.value


_FAMILIES = {
    Family.IPV4: FamilyData(
        version=4,
        nft="ip",
        nfproto=2,
        tools="iptables",
        multicast=IPv4Network("224.0.0.0/4"),
        link_local=IPv4Network("169.254.0.0/16"),
        width=32,
        legacy_names="proc/thread-self/net/ip_tables_names",
        proc="proc/sys/net/ipv4",
        forwarding="net/ipv4/ip_forward",
    ),
    Family.IPV6: FamilyData(
        version=6,
        nft="ip6",
        nfproto=10,
        tools="ip6tables",
        multicast=IPv6Network("ff00::/8"),
        link_local=IPv6Network("fe80::/10"),
        width=128,
        legacy_names="proc/thread-self/net/ip6_tables_names",
        proc="proc/sys/net/ipv6",
        forwarding="net/ipv6/conf/all/forwarding",
    ),
}


def family_of(value: Address | Network) -> Family:
    return Family.IPV4 if value.version == 4 else Family.IPV6


def tag_of(comment: str) -> str:
    """Return the tag of a comment that this program wrote; empty for any other, also one that merely begins alike."""
    tagged = _OUR_COMMENT.fullmatch(comment)
    return tagged[1] if tagged else ""


class Group(enum.Enum):
    """The two groups of rules; each may be in a backend of its own."""

    MASQUERADE = "masquerade"
    FORWARD = "forward"

    def __str__(self) -> str:
        return self.value


class Verdict(enum.Enum):
    """The verdict of a rule."""

    RETURN = "return"
    ACCEPT = "accept"
    DROP = "drop"
    MASQUERADE = "masquerade"


class Protection(str, enum.Enum):
    """The flags that keep other programs from changing a table of nf_tables. The value is shown to users.

    OWNER: the table belongs to a socket of the daemon, and ends with it. PERSIST: it stays when that socket ends, and
    the next daemon adopts it (Linux 6.9).
    """

    NONE = "none"
    OWNER = "owner"
    PERSIST = "owner and persist"

    def __str__(self) -> str:
        return self.value


class Position(enum.Enum):
    """The place of the daemon's jump among foreign rules. AUTO, for the forward group alone, is immediately before the
    first rule that drops every packet, and last if there is none."""

    FIRST = "first"
    LAST = "last"
    AUTO = "auto"


@dataclass(frozen=True, **SLOTS)
class Mark:
    """A packet mark test: `mark & mask == value`, both 32 bits."""

    value: int
    mask: int

    def __str__(self) -> str:
        return f"{self.value:#x}/{self.mask:#x}"


DEFAULT_KUBE_PROXY_MARK = Mark(0x4000, 0x4000)  # kube-proxy's --iptables-masquerade-bit 14


@dataclass(frozen=True, **SLOTS)
class MarkEvidence:
    """The mark of the packets that kube-proxy masquerades itself. `where` names the chain that says so."""

    mark: Mark
    where: str


@dataclass(frozen=True, **SLOTS)
class Packet:
    """The parts of a packet that a rule matches: addresses of one family, the mark (0 to 2**32-1), and what connection
    tracking says of it: `invalid` is True if it belongs to no connection and begins none."""

    src: Address
    dst: Address
    mark: int = 0
    invalid: bool = False


@dataclass(frozen=True, **SLOTS)
class Flow:
    """A tracked connection that has seen no reply, as far as a masquerade rule decides it. `dst` is the address behind
    destination NAT, which the rules see. `source_nat` and `destination_nat` are True if the kernel rewrites it so."""

    src: Address
    dst: Address
    source_nat: bool = False
    destination_nat: bool = False


@dataclass(frozen=True, **SLOTS)
class Rule:
    """One rule: if every test that is set holds, the verdict applies.

    `row` is the row of the design's table ("1" to "7", "forward-src", "forward-dst", "forward-invalid-src",
    "forward-invalid-dst"); `tag` is the chained hash that its comment carries, filled in by `policy`. If `invalid`, it
    matches only packets that connection tracking calls invalid.
    """

    row: str
    why: str
    verdict: Verdict
    src: Optional[Network] = None
    dst: Optional[Network] = None
    dst_not: Optional[Network] = None
    mark: Optional[Mark] = None
    fully_random: bool = False
    tag: str = ""
    invalid: bool = False

    def matches(self, packet: Packet) -> bool:
        if self.mark is not None and packet.mark & self.mark.mask != self.mark.value:
            return False
        if self.invalid and not packet.invalid:
            return False
        if self.src is not None and packet.src not in self.src:
            return False
        if self.dst is not None and packet.dst not in self.dst:
            return False
        return self.dst_not is None or packet.dst not in self.dst_not

    @property
    def comment(self) -> str:
        return COMMENT_PREFIX + self.tag


@dataclass(frozen=True, **SLOTS)
class GroupRules:
    """The rules of one group, in order. `jump_tag` is for the jump, if a backend needs one."""

    group: Group
    rules: tuple[Rule, ...]
    jump_tag: str = ""

    @property
    def jump_comment(self) -> str:
        return COMMENT_PREFIX + self.jump_tag


@dataclass(frozen=True, **SLOTS)
class Desired:
    """Everything that one backend must hold for one family. Without groups it must hold no object of flanneld-masq.

    `position` is the place of the jump to the masquerade group, `forward_position` that of the jump to the forward
    group. `protection` is for backends whose probe offers any.
    """

    family: Family
    groups: tuple[GroupRules, ...] = ()
    position: Position = Position.LAST
    forward_position: Position = Position.AUTO
    protection: Protection = Protection.NONE

    def position_of(self, group: Group) -> Position:
        return self.forward_position if group is Group.FORWARD else self.position

    def rules_of(self, group: Group) -> Optional[GroupRules]:
        return next((rules for rules in self.groups if rules.group is group), None)


@dataclass(frozen=True, **SLOTS)
class FamilyLease:
    """One family of a lease: the pod networks of the cluster, and this node's subnet within them.

    `subnet` has its host bits cleared; `gateway` is the address as it was written, host bits and all.
    """

    networks: tuple[Network, ...]
    subnet: Network
    gateway: Address


@dataclass(frozen=True, **SLOTS)
class Lease:
    """The content of one subnet file. `mtu` is in bytes; None stands for a key that the file lacks."""

    path: str
    ipv4: Optional[FamilyLease] = None
    ipv6: Optional[FamilyLease] = None
    mtu: Optional[int] = None
    ipmasq: Optional[bool] = None

    def of(self, family: Family) -> Optional[FamilyLease]:
        return self.ipv4 if family is Family.IPV4 else self.ipv6


@dataclass(frozen=True, **SLOTS)
class MasqueradeSettings:
    """The table [masquerade] of the configuration file.

    `families` are those whose packets are masqueraded, of the families that a lease names. `to_remote_pods` is False if
    packets to pods of other nodes keep their source address (no row 7). `ip_masq_agent_files` are paths and patterns of
    files, which the plugin ipmasqagent reads. `kube_proxy_mark` "auto" stands for the mark in
    kube-proxy's own rules.
    """

    enabled: bool = True
    families: tuple[Family, ...] = tuple(Family)
    to_remote_pods: bool = True
    random_fully: bool = True
    non_masquerade_cidrs: tuple[Network, ...] = ()
    masquerade_link_local: bool = True
    ip_masq_agent_files: tuple[str, ...] = ()
    kube_proxy_mark: Union[Mark, Literal["auto"], None] = "auto"
    position: Position = Position.LAST


@dataclass(frozen=True, **SLOTS)
class ForwardSettings:
    """The table [forward] of the configuration file."""

    enabled: bool = True
    backend: BackendName = AUTO
    position: Position = Position.AUTO
    drop_invalid: bool = False


@dataclass(frozen=True, **SLOTS)
class ReconcileSettings:
    """The intervals of the full verify and of the poll of legacy iptables, in seconds."""

    resync_seconds: float = 60.0
    legacy_poll_seconds: float = 5.0


@dataclass(frozen=True, **SLOTS)
class Settings:
    """The configuration file, with a default for everything. Paths are absolute.

    It is one class because the file is one: a key of a table without a class of its own is the field `table_key`.
    """

    backend: BackendName = AUTO
    subnet_files: tuple[str, ...] = ("/run/flannel/subnet.env",)
    net_conf: str = "/etc/kube-flannel/net-conf.json"
    state_directory: str = "/run/flanneld-masq"
    nft_protect: Union[bool, Literal["auto"]] = "auto"
    masquerade: MasqueradeSettings = MasqueradeSettings()
    forward: ForwardSettings = ForwardSettings()
    reconcile: ReconcileSettings = ReconcileSettings()
    conntrack_heal: bool = True
    takeover_remove_flannel_rules: bool = False
    stop_remove_rules: bool = False
    dbus_enabled: bool = True
    metrics_textfile: str = ""
    metrics_address: Address = LOOPBACK
    metrics_port: int = 0
    log_level: str = "info"

    @property
    def exports_metrics(self) -> bool:
        """True if metrics go to a file or to a port."""
        return bool(self.metrics_textfile or self.metrics_port)


@dataclass(frozen=True, **SLOTS)
class Probe:
    """The result of a probe: if a backend can be used for a family here, and what it supports.

    If it cannot be used, `reason` says why and `remedy` what to do about it. `versions` is for people. `protection` is
    the best that the kernel offers for the tables of the backend; None if it has no table of its own.
    """

    usable: bool
    reason: str = ""
    remedy: str = ""
    versions: tuple[str, ...] = ()
    random_fully: bool = True
    protection: Optional[Protection] = None

    def __post_init__(self) -> None:
        make_printable(self, "reason", "remedy")
        object.__setattr__(self, "versions", tuple(map(printable, self.versions)))


class ItemKind(str, enum.Enum):
    """The kind of an object in the kernel. The value is what users and state files see."""

    TABLE = "table"
    CHAIN = "chain"
    JUMP = "jump"
    RULE = "rule"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, **SLOTS)
class Item:
    """One object of flanneld-masq in the kernel, or a foreign one in its place.

    `place` is where it is ("ip nat FLANNELD-MASQ"), `text` is for people once a `Change` has made it printable.
    `raw` is compared: everything that the kernel holds of the object, except handles and counters. `handle` serves to
    remove it and is not compared; 0 if there is none.
    """

    kind: ItemKind
    place: str
    text: str
    raw: str = ""
    tag: str = ""
    handle: int = 0


@dataclass(frozen=True, **SLOTS)
class Blocker:
    """The first foreign rule in the chain of the daemon's jump that drops every packet that reaches it.

    `index` counts the foreign rules ahead of it; a write inserts the daemon's jump as the rule of that `number`, or
    before the rule with that `handle` if the kernel gives handles.
    """

    index: int
    number: int
    handle: int = 0


@dataclass(frozen=True, **SLOTS)
class Neighbours:
    """The foreign rules around the daemon's jump in `place`, each as a digest, in order. Without a jump all are in
    `before`; a digest that was not read is empty.

    `jump` is the handle of that jump, if the kernel gives one: a rule keeps it as long as it is not moved. Without
    handles, `hits` are the packets that each rule of `before` and `after` has counted, as far as they are known.
    `blocker` is looked for in the place of the forward group alone. `bare` is True if the jump is missing and the whole
    table is known to hold no rule.
    """

    place: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    jump: int = 0
    blocker: Optional[Blocker] = None
    hits: tuple[int, ...] = ()
    bare: bool = False


@dataclass(frozen=True, **SLOTS)
class Stranger:
    """A chain or table with one of the daemon's names, but without a tag of the daemon in it or in a jump to it:
    `items[0]`.

    `items` has its rules too. `empty` is True if there is nothing in it that would be lost with it.
    """

    items: tuple[Item, ...]
    empty: bool


@dataclass(frozen=True, **SLOTS)
class Observation:
    """The objects that a backend found in the kernel, in order.

    `strangers` are not among `items`: only the verified state tells if they belong to flanneld-masq.

    `obstacle`, if not empty, names the reason why a write cannot work (a dormant foreign table, an owner, a base chain
    with the daemon's name) and the remedy.
    """

    items: tuple[Item, ...] = ()
    neighbours: tuple[Neighbours, ...] = ()
    obstacle: str = ""
    strangers: tuple[Stranger, ...] = ()

    def __post_init__(self) -> None:
        make_printable(self, "obstacle")


@dataclass(frozen=True, **SLOTS)
class Survey:
    """Foreign objects in a backend that affect masquerading.

    `flannel` are objects that flannel wrote, in an order in which they can be removed. `cni_masquerade` is the place
    where the CNI bridge plugin masquerades, empty for none. `flannel_nat` are flannel's masquerade rules that packets
    reach, in the order in which they reach them; their text is a line of iptables-save, or nft's words for it.
    """

    flannel: tuple[Item, ...] = ()
    cni_masquerade: str = ""
    flannel_nat: tuple[Item, ...] = ()

    def __post_init__(self) -> None:
        make_printable(self, "cni_masquerade")


@dataclass(frozen=True, **SLOTS)
class Traffic:
    """The packets and bytes that rules have counted since they were written. A nat rule sees the first packet of each
    connection alone, so `packets` are connections."""

    packets: int
    bytes: int

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.packets + other.packets, self.bytes + other.bytes)


@dataclass(frozen=True, **SLOTS)
class VerifiedState:
    """The read-back of a write by flanneld-masq, with the fingerprint of the rules that were wanted then."""

    fingerprint: str
    items: tuple[Item, ...]
    neighbours: tuple[Neighbours, ...] = ()


class ChangeKind(str, enum.Enum):
    """How the kernel differs from the desired state. The value is what users see, in JSON and on D-Bus."""

    MISSING = "missing"
    EXTRA = "extra"
    CHANGED = "changed"
    MOVED = "moved"
    UNVERIFIED = "unverified"
    FLANNEL = "flannel's"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, **SLOTS)
class Change:
    """One difference. `found` is in the kernel, `wanted` should be; either may be empty. The texts are for people:
    printable, whatever another program wrote into a rule.

    `item` is the kind of the object, for people, and is not compared; None if it is not known.
    """

    kind: ChangeKind
    place: str
    wanted: str = ""
    found: str = ""
    item: Optional[ItemKind] = field(default=None, compare=False)

    def __post_init__(self) -> None:
        make_printable(self, "place", "wanted", "found")


@dataclass(frozen=True, **SLOTS)
class Plan:
    """The changes that bring one backend to the desired state of one family."""

    family: Family
    backend: BackendName
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, **SLOTS)
class Holder:
    """Tells if a daemon holds a state directory: `runs` is None if that cannot be found out. `pid` is 0 if unknown.
    `why` says where the answer comes from, or why there is none. `elsewhere` is True if the daemon runs in another pid
    namespace, as in a container: its pid is not known here."""

    runs: Optional[bool]
    pid: int
    why: str
    elsewhere: bool = False
