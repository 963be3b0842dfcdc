"""The findings of `doctor` as values: a kind with a stable id, and the texts of one case of it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flanneld_masq.model import SLOTS, make_printable
from flanneld_masq.printable import one_line


class Severity(str, enum.Enum):
    """A problem breaks the traffic of pods, or will; a notice is worth knowing; unknown is what cannot be told."""

    PROBLEM = "problem"
    NOTICE = "notice"
    UNKNOWN = "unknown"


class Kind(str, enum.Enum):
    """The kinds of findings. The value is the id: it stays, and docs/troubleshooting.md has a section for each."""

    BACKEND_UNUSABLE = "backend-unusable"
    BRIDGE_ADDRESS_DIFFERS = "bridge-address-differs"
    BRIDGE_HAIRPIN_OFF = "bridge-hairpin-off"
    BRIDGE_MTU_TOO_LARGE = "bridge-mtu-too-large"
    BRIDGE_NETFILTER_MISSING = "bridge-netfilter-missing"
    BRIDGE_NETFILTER_OFF = "bridge-netfilter-off"
    CNI_MASQUERADES = "cni-masquerades"
    CONFIGURATION_INVALID = "configuration-invalid"
    CONNTRACK_FULL = "conntrack-nearly-full"
    DAEMON_CONTENDED = "daemon-contended"
    DAEMON_DEGRADED = "daemon-degraded"
    DAEMON_NOT_RUNNING = "daemon-not-running"
    DAEMON_TROUBLE = "daemon-trouble"
    DAEMON_UNKNOWN = "daemon-unknown"
    DEFAULT_ROUTE_ON_POD_INTERFACE = "default-route-on-pod-interface"
    FLANNEL_ADDRESS_MISSING = "flannel-address-missing"
    FLANNEL_MASQUERADES = "flannel-masquerades"
    FLANNEL_OVERRULES = "flannel-overrules"
    FLANNEL_RULES = "flannel-rules"
    FLANNEL_RULES_RETURN = "flannel-rules-return"
    FLOW_DENIED_BY_POLICY = "flow-denied-by-policy"
    FLOW_DROPPED = "flow-dropped"
    FLOW_MASQUERADED = "flow-masqueraded"
    FLOW_MISROUTED = "flow-misrouted"
    FLOW_NOT_MASQUERADED = "flow-not-masqueraded"
    FLOW_REDIRECTED = "flow-redirected"
    FLOWS_UNKNOWN = "flows-unknown"
    FORWARD_DROPS = "forward-drops"
    FORWARD_DROPS_UNHELPED = "forward-drops-unhelped"
    FORWARDING_OFF = "forwarding-off"
    GATEWAY_ADDRESS_TWICE = "gateway-address-twice"
    INTERFACE_FORWARDING_OFF = "interface-forwarding-off"
    IPTABLES_FLAVOURS_MIXED = "iptables-flavours-mixed"
    IPV6_DEFAULT_ROUTE_EXPIRES = "ipv6-default-route-expires"
    IPV6_DISABLED = "ipv6-disabled"
    KUBE_PROXY_KEEPS_MARK = "kube-proxy-keeps-mark"
    KUBE_PROXY_MARK_DIFFERS = "kube-proxy-mark-differs"
    KUBE_PROXY_MARK_UNUSUAL = "kube-proxy-mark-unusual"
    NET_CONF_UNUSABLE = "net-conf-unusable"
    NETWORK_UNREADABLE = "network-unreadable"
    PLUGIN_FAILED = "plugin-failed"
    POD_INTERFACE_DOWN = "pod-interface-down"
    POD_NETWORK_ON_NODE = "pod-network-on-node"
    POD_ROUTE_ELSEWHERE = "pod-route-elsewhere"
    POD_ROUTE_MISSING = "pod-route-missing"
    REVERSE_PATH_STRICT = "reverse-path-strict"
    RULES_DIFFER = "rules-differ"
    RULES_NOT_FOLLOWED = "rules-not-followed"
    RULES_UNREADABLE = "rules-unreadable"
    RULES_WITHOUT_SUBNET = "rules-without-subnet"
    SAVED_RULESET = "saved-ruleset"
    SERVICE_CANNOT_READ = "service-cannot-read"
    SERVICE_FAILED = "service-failed"
    SUBNET_FILE_OF_ANOTHER_NODE = "subnet-file-of-another-node"
    SUBNET_FILES_OVERLAP = "subnet-files-overlap"
    SUBNET_UNKNOWN = "subnet-unknown"
    TUNNEL_ADDRESS_GONE = "tunnel-address-gone"
    TUNNEL_DROPPED = "tunnel-dropped"
    TUNNEL_MTU_TOO_LARGE = "tunnel-mtu-too-large"
    TUNNEL_PORT_TAKEN = "tunnel-port-taken"
    TUNNEL_TO_ITSELF = "tunnel-to-itself"
    UPLINK_WITHOUT_ADDRESS = "uplink-without-address"


@dataclass(frozen=True, **SLOTS)
class Finding:
    """One finding. `seen` is the evidence, `why` how it breaks pods, `remedy` the command or step that ends it now, and
    `persist` how that survives a reboot; empty if the remedy lasts. `family` is empty for the whole node. `owner` is
    the program that owns the rule, empty for a finding without one."""

    kind: Kind
    severity: Severity
    what: str
    seen: str
    why: str
    remedy: str
    persist: str = ""
    family: str = ""
    owner: str = ""

    def __post_init__(self) -> None:
        for name in ("what", "seen", "why", "remedy", "persist"):
            object.__setattr__(self, name, one_line(getattr(self, name)))
        make_printable(self, "family", "owner")


_COLOURS = {Severity.PROBLEM: "\033[31m", Severity.NOTICE: "\033[33m", Severity.UNKNOWN: "\033[36m"}


def exit_status(findings: Iterable[Finding]) -> int:
    """Return the exit status: 1 if there is a problem, otherwise 2 if a check could not be made, otherwise 0."""
    severities = {finding.severity for finding in findings}
    if Severity.PROBLEM in severities:
        return 1
    return 2 if Severity.UNKNOWN in severities else 0


def data_of(finding: Finding) -> dict[str, Any]:
    """Return the finding for `--json`; the kind is `id`."""
    content = asdict(finding)
    return {"id": content.pop("kind"), **content}


def text_of(findings: Iterable[Finding], *, colour: bool = False) -> Iterator[str]:
    """Yield lines for people."""
    for finding in findings:
        start, end = (_COLOURS[finding.severity], "\033[0m") if colour else ("", "")
        family = f"{finding.family}: " if finding.family else ""
        yield f"{start}{finding.severity.value}:{end} {family}{finding.what} [{finding.kind.value}]"
        names = ("seen", "owner", "why", "remedy", "persist")
        parts = {name: getattr(finding, name) for name in names}
        yield from (f"  {f'{name}:':<8} {text}" for name, text in parts.items() if text)


def listed(texts: Sequence[str], shown: int) -> str:
    """Return the first of these texts, and the number of the others."""
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + more
