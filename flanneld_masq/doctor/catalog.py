"""The texts of each kind of finding, as data. Fields in braces are filled in for the case at hand. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from flanneld_masq.doctor.findings import Finding, Kind, Severity
from flanneld_masq.model import SLOTS, Family

PROBLEM, NOTICE, UNKNOWN = Severity.PROBLEM, Severity.NOTICE, Severity.UNKNOWN
_SYSCTL = "a line `{key} = {value}` in /etc/sysctl.d/90-flannel.conf"
_UNMANAGED = (
    "NetworkManager: `unmanaged-devices=interface-name:cni*;interface-name:flannel*;interface-name:veth*` in "
    "/etc/NetworkManager/conf.d; systemd-networkd: `Unmanaged=yes` for these names"
)
_JOURNAL = "`journalctl -u flanneld-masq -x` names the cause and what to do"


@dataclass(frozen=True, **SLOTS)
class Text:
    """The texts of a kind; see `Finding` for the fields."""

    severity: Severity
    what: str
    why: str
    remedy: str
    persist: str = ""


TEXTS: Mapping[Kind, Text] = {
    Kind.CONFIGURATION_INVALID: Text(
        PROBLEM,
        "the configuration file is invalid; a running daemon keeps its previous settings, a new one will not start",
        "the next start of the service fails; then nothing repairs the rules, and the first flush cuts the pods off",
        "correct the file, then `systemctl reload-or-restart flanneld-masq`, and run doctor again for the rest",
    ),
    Kind.SUBNET_UNKNOWN: Text(
        PROBLEM,
        "no subnet is known for this node's pods",
        "without a subnet it is not known which packets to masquerade, so pods of a new node do not reach the world",
        "read flannel's log: flannel writes the file when it starts; if it writes another file, name that in "
        "`subnet_files`",
    ),
    Kind.RULES_WITHOUT_SUBNET: Text(
        NOTICE,
        "no subnet file names these rules any more, and they are still in force",
        "they masquerade addresses that may belong to another network by now",
        "if flannel is gone for good: `systemctl disable --now flanneld-masq`, then `flanneld-masq cleanup --flannel`; "
        "otherwise start flannel, and the rules follow its file",
    ),
    Kind.SUBNET_FILES_OVERLAP: Text(
        PROBLEM,
        "two subnet files name overlapping networks, and different subnets for this node",
        "the rules treat the subnet that is not this node's as local pods, so packets to it keep their source address",
        "keep the file that flannel writes now in `subnet_files` and no other, then `systemctl reload flanneld-masq`",
    ),
    Kind.SUBNET_FILE_OF_ANOTHER_NODE: Text(
        PROBLEM,
        "the subnet file is not that of the pods on this node: it is another node's, another cluster's, or an old one",
        "the rules do not match the packets of these pods, so the pods do not reach the world, or their "
        "packets to other pods are masqueraded",
        "compare with flannel's log and `ip route`; name the right file in `subnet_files`, or delete the copied file "
        "and restart flannel; if the file is right and {bridge} old: `ip link delete {bridge}`, then make new pods",
        "flannel writes the file at each start: remove the program or script that overwrites it",
    ),
    Kind.BRIDGE_ADDRESS_DIFFERS: Text(
        PROBLEM,
        "the bridge of the pods has the prefix length of another network",
        "the node treats pods of other nodes as neighbours on the bridge, and its packets to them are lost",
        "`ip link delete {bridge}`, then make the pods again: the CNI plugin makes the bridge as the subnet file says",
        'the delegate of the flannel CNI configuration must not set "subnet" or a gateway itself',
    ),
    Kind.BRIDGE_MTU_TOO_LARGE: Text(
        NOTICE,
        "pods send larger packets than flannel's network carries",
        "where the messages `fragmentation needed` are filtered, connections to pods of other nodes hang",
        "`ip link set {port} mtu {mtu}`; the flannel CNI plugin gives new pods the MTU of the subnet file",
        'no other "mtu" in the delegate of the flannel CNI configuration (docker: --mtu={mtu}), then make new pods',
    ),
    Kind.BRIDGE_HAIRPIN_OFF: Text(
        PROBLEM,
        "no port of the pods' bridge has hairpin mode",
        "a pod that calls a service and is chosen to answer it loses these packets: kube-proxy's rules translate them "
        "on the bridge, and a port without that mode does not send them back to where they came from",
        "for port in /sys/class/net/{device}/brif/*; do echo 1 >$port/hairpin_mode; done",
        '"hairpinMode": true in the delegate of the flannel CNI configuration (ConfigMap kube-flannel-cfg, or '
        "/etc/cni/net.d), which is for new pods",
    ),
    Kind.POD_NETWORK_ON_NODE: Text(
        PROBLEM,
        "the node has a network of its own inside flannel's pod network",
        "the rules treat hosts of that network as pods: packets of pods to them are not masqueraded and their "
        "answers are "
        "lost, or they never leave the node",
        "move {device} to addresses outside {network}, or give flannel another Network in net-conf.json (ConfigMap "
        "kube-flannel-cfg), which needs new pods on all nodes; an address that nobody needs: `ip address delete "
        "ADDRESS dev {device}`",
        "the network configuration of the node (netplan, /etc/network/interfaces, `nmcli connection modify`, the VPN)",
    ),
    Kind.POD_ROUTE_ELSEWHERE: Text(
        PROBLEM,
        "packets to pods leave by another interface than flannel's route says",
        "a policy rule or a more specific route takes them, so pods do not reach each other",
        "find it with `ip rule` and `ip route get {address}`, and remove it there, or exclude {network} from it "
        "(tailscale: `tailscale set --accept-routes=false`)",
        "the configuration of the program that owns the route or rule",
    ),
    Kind.POD_INTERFACE_DOWN: Text(
        PROBLEM,
        "{device}, which carries packets of pods, is switched off",
        "its routes are gone with it, so {direction} are lost or leave by another interface",
        "ip link set {device} up; {after}",
        _UNMANAGED,
    ),
    Kind.GATEWAY_ADDRESS_TWICE: Text(
        PROBLEM,
        "two bridges have the address of the pods' gateway",
        "the node has two routes to its own pods and takes the first, which may lead to the bridge without them",
        "give {other} another address or delete the one that no pod is on: `ip link delete {other}`",
        'docker: another network than flannel\'s in /etc/docker/daemon.json (`"bip": "172.17.0.1/16"`), and no '
        "--bip=FLANNEL_SUBNET",
    ),
    Kind.DEFAULT_ROUTE_ON_POD_INTERFACE: Text(
        PROBLEM,
        "the default route leads to {device}, which carries packets of pods",
        "packets to the world go into the network of pods and are lost there; a DHCP client that manages every "
        "interface makes such a route",
        "ip {option} route delete default dev {device}",
        "dhcpcd: `denyinterfaces cni* flannel* veth*` in /etc/dhcpcd.conf; otherwise " + _UNMANAGED,
    ),
    Kind.IPV6_DEFAULT_ROUTE_EXPIRES: Text(
        PROBLEM,
        "the default route by {device} came from a router's advertisement, and the kernel accepts no other one",
        "an interface that forwards ignores advertisements unless accept_ra is 2: the route expires, and pods and the "
        "node lose the world over IPv6",
        "sysctl -w {key}={value}",
        _SYSCTL,
    ),
    Kind.POD_ROUTE_MISSING: Text(
        PROBLEM,
        "the route to the pods of another node is missing, although flannel knows that node",
        "packets to these pods take the default route and are lost; flannel writes a route again only when it starts, "
        "or after some time",
        "ip {option} route add {network} via {address} dev {device} onlink",
        _UNMANAGED + "; `ManageForeignRoutes=no` in /etc/systemd/networkd.conf; restart flannel after the network",
    ),
    Kind.FLANNEL_ADDRESS_MISSING: Text(
        PROBLEM,
        "{device} has no address, which flannel gives it",
        "packets of the node itself to pods of other nodes leave with an address to which the answers take another "
        "way, and flannel's routes by that address are refused",
        "ip address add {address} dev {device}",
        _UNMANAGED,
    ),
    Kind.TUNNEL_ADDRESS_GONE: Text(
        PROBLEM,
        "{device} sends from an address that the node no longer has",
        "the packets of pods to other nodes are lost, and other nodes send to an address that is not this node's",
        "restart flannel on this node (k3s: `systemctl restart k3s` or k3s-agent): it makes the interface again and "
        "tells the other nodes",
        "a fixed address for the node, or a lease that the DHCP server reserves",
    ),
    Kind.TUNNEL_MTU_TOO_LARGE: Text(
        NOTICE,
        "{device} has a greater MTU than {under} leaves for it",
        "the largest packets of pods are cut in pieces, and where pieces are filtered, connections to pods of other "
        "nodes hang",
        "ip link set {device} mtu {mtu}",
        'no greater "MTU" in the Backend of net-conf.json; restart flannel after the MTU of {under} has changed, then '
        "make new pods",
    ),
    Kind.TUNNEL_DROPPED: Text(
        PROBLEM,
        "a rule {verb} what other nodes send to {device}{by}",
        "flannel carries packets between pods of different nodes in UDP packets to port {port} of the node itself, so "
        "none arrives",
        "{remedy}",
        "{persist}",
    ),
    Kind.TUNNEL_PORT_TAKEN: Text(
        PROBLEM,
        "{device} is switched off, and {other} has its UDP port {port}",
        "the kernel refuses to switch {device} on (Address already in use), so pods do not reach other nodes",
        "ip link delete {other}; ip link set {device} up; then restart flannel",
        "remove the other network plugin from the node for good, or give flannel another Port in net-conf.json",
    ),
    Kind.TUNNEL_TO_ITSELF: Text(
        PROBLEM,
        "{device} sends packets for pods of another node to this node itself",
        "flannel chose an interface whose address is the same on several nodes, as that of VirtualBox's NAT: pods of "
        "different nodes do not reach each other",
        "start flanneld with --iface=INTERFACE (k3s: --flannel-iface and --node-ip), one that joins the nodes; if this "
        "node had another name before, `kubectl delete node OLD-NAME` instead",
        "in flannel's DaemonSet or unit, on each node",
    ),
    Kind.UPLINK_WITHOUT_ADDRESS: Text(
        PROBLEM,
        "{device}, by which packets of pods leave for the world, has no address of its own",
        "the kernel masquerades them with the address of another interface, which lies inside the pod network, so no "
        "answer comes back",
        "`ip address add ADDRESS dev {device}`, or dev lo if {device} is to have none: an address that the "
        "world has a route to",
        "the network configuration of the node (netplan, /etc/network/interfaces, `nmcli connection modify`); for "
        "addresses from IPv6 routers net.ipv6.conf.{device}.accept_ra = 2 in /etc/sysctl.d",
    ),
    Kind.FLANNEL_MASQUERADES: Text(
        NOTICE,
        "flanneld was started with --ip-masq and masquerades too{state}",
        "both sets of rules may stand; flannel-overrules names each packet that they treat differently",
        "{none}to leave it to flanneld-masq alone, start flanneld with --ip-masq=false",
    ),
    Kind.NET_CONF_UNUSABLE: Text(
        PROBLEM,
        "flannel's net-conf.json cannot be used, and flannel may refuse it too",
        "if flannel refuses it, the node gets no subnet, and it is not known which rules flannel writes",
        "correct its source, usually the ConfigMap kube-flannel-cfg; `net_conf` names another file",
    ),
    Kind.DAEMON_UNKNOWN: Text(
        UNKNOWN,
        "it is not known whether the daemon runs",
        "without it nothing repairs the rules after another program changed them",
        "run this as root, or systemctl status flanneld-masq",
    ),
    Kind.DAEMON_NOT_RUNNING: Text(
        PROBLEM,
        "the daemon does not run, so nothing repairs the rules",
        "the next program that flushes or reorders rules cuts the pods off",
        "systemctl start flanneld-masq",
        "systemctl enable flanneld-masq",
    ),
    Kind.SERVICE_FAILED: Text(
        PROBLEM,
        "the daemon does not run: its service has failed",
        "the next program that flushes or reorders rules cuts the pods off",
        "`journalctl -u flanneld-masq -b -x` names the cause; then `systemctl restart flanneld-masq`",
        "systemctl enable flanneld-masq",
    ),
    Kind.SERVICE_CANNOT_READ: Text(
        PROBLEM,
        "the service may not read a file that it needs",
        "the daemon does not start, or learns of no subnet",
        "{remedy}",
        "a default ACL on its directory (`setfacl -d -m ...`), because a program that replaces the file drops its ACL",
    ),
    Kind.DAEMON_TROUBLE: Text(
        PROBLEM,
        "the daemon reports a trouble",
        "it keeps the last good rules, which may not be those that are wanted now",
        "`journalctl -u flanneld-masq -x` explains it; the daemon tries again by itself, at each resync",
    ),
    Kind.PLUGIN_FAILED: Text(
        PROBLEM,
        "a plugin fails",
        "its backend or its networks are missing from the rules",
        "repair, update or remove the distribution that is named, then `systemctl restart flanneld-masq`",
    ),
    Kind.DAEMON_DEGRADED: Text(
        PROBLEM,
        "the daemon is degraded",
        "a tool, the kernel or a plugin refused, so the rules may be missing",
        _JOURNAL,
    ),
    Kind.DAEMON_CONTENDED: Text(
        PROBLEM,
        "the daemon is contended",
        "another program keeps removing the rules, and until each repair packets of pods keep their source address",
        "have the program that the daemon names leave these rules alone; `journalctl -u flanneld-masq -x` has its unit",
    ),
    Kind.FLANNEL_RULES_RETURN: Text(
        PROBLEM,
        "flannel's rules are not removed, as takeover.remove_flannel_rules asks for",
        "flanneld writes them again, and they masquerade what the settings except",
        "start flanneld with the options that the daemon names, then `systemctl reload flanneld-masq`",
        "in flannel's DaemonSet or unit",
    ),
    Kind.CONNTRACK_FULL: Text(
        PROBLEM,
        "connection tracking is nearly full, and new connections will be dropped",
        "each masqueraded connection needs an entry",
        "`sysctl -w {key}={value}`, or find what opens so many: `conntrack -S`",
        _SYSCTL,
    ),
    Kind.FORWARDING_OFF: Text(
        PROBLEM,
        "the kernel forwards no packets",
        "packets of pods end on this node",
        "sysctl -w {key}={value}",
        _SYSCTL,
    ),
    Kind.INTERFACE_FORWARDING_OFF: Text(
        PROBLEM,
        "the kernel forwards no packets that come in on {device}",
        "it forwards elsewhere, but not {direction}",
        "sysctl -w {key}={value}",
        "{networkd}" + _SYSCTL,
    ),
    Kind.IPV6_DISABLED: Text(
        PROBLEM,
        "IPv6 is switched off on {device}",
        "the subnet file names IPv6 pods, and {device} carries none of their packets",
        "sysctl -w {key}={value}",
        _SYSCTL + "; the interface lost its IPv6 addresses: make the pods again, and restart flannel",
    ),
    Kind.REVERSE_PATH_STRICT: Text(
        PROBLEM,
        "the kernel drops packets of pods that come in on {device}: its reverse path filter is strict",
        "the way back to their source leads through another interface",
        "sysctl -w {key}={value}",
        _SYSCTL + "; the kernel takes the greater value of net.ipv4.conf.all and that of the interface",
    ),
    Kind.BRIDGE_NETFILTER_OFF: Text(
        PROBLEM,
        "packets between pods on {device} bypass kube-proxy's rules",
        "a pod does not reach a service whose pod is on the same node: the answer is bridged past the translation",
        "sysctl -w {key}={value}",
        _SYSCTL + ", and `br_netfilter` in /etc/modules-load.d/br_netfilter.conf",
    ),
    Kind.BRIDGE_NETFILTER_MISSING: Text(
        PROBLEM,
        "packets between pods on {device} bypass kube-proxy's rules: the module br_netfilter is not loaded",
        "a pod does not reach a service whose pod is on the same node: the answer is bridged past the translation",
        "modprobe br_netfilter",
        "a line `br_netfilter` in /etc/modules-load.d/br_netfilter.conf",
    ),
    Kind.NETWORK_UNREADABLE: Text(
        UNKNOWN,
        "the interfaces and routes of the node cannot be read",
        "the bridge of the pods, routes into the pod network and switches of interfaces are not examined",
        "install iproute2, and check the output of `ip -j -d address`",
    ),
    Kind.BACKEND_UNUSABLE: Text(
        PROBLEM,
        "no backend can be used",
        "no rule can be written, so pods do not reach the world",
        "`flanneld-masq backends` lists each remedy",
    ),
    Kind.RULES_DIFFER: Text(
        PROBLEM,
        "the rules in the kernel differ from the wanted rules",
        "packets of pods keep their source address, or get one where they must not",
        "{remedy}",
    ),
    Kind.RULES_NOT_FOLLOWED: Text(
        NOTICE,
        "doctor does not follow the rules of this table, some of which drop packets",
        "packets on a bridge or a device, or ARP, may be lost to them, and no other finding says so",
        "`nft list table {table}` shows the rules; `flanneld-masq probe` sends real packets from a pod through them",
    ),
    Kind.RULES_UNREADABLE: Text(
        UNKNOWN,
        "the rules in the kernel cannot be read, neither the daemon's nor those of other programs",
        "only root may read the kernel's rules; without them most checks cannot be made",
        "{remedy}",
    ),
    Kind.CNI_MASQUERADES: Text(
        PROBLEM,
        "the CNI bridge plugin masquerades too, and so hides the addresses of pods from each other",
        "network policies and logs see the node instead of the pod",
        'set "ipMasq": false in the delegate of the flannel CNI configuration, then make the pods again',
        "the delegate is in the ConfigMap kube-flannel-cfg (cni-conf.json), or in /etc/cni/net.d",
    ),
    Kind.FLANNEL_OVERRULES: Text(
        PROBLEM,
        "{conflict}",
        "a return in one chain does not keep a later chain from masquerading",
        "start flanneld with --ip-masq=false, then run `flanneld-masq cleanup --flannel`; the flannel of k3s always "
        "masquerades",
        "--ip-masq=false in flannel's DaemonSet or unit",
    ),
    Kind.FLANNEL_RULES: Text(
        NOTICE,
        "flannel's own rules are there, {count} objects{rest}",
        "a flanneld that runs with --ip-masq=false, or that is gone, no longer maintains them",
        "if flanneld runs with --ip-masq=false now, or is gone, `flanneld-masq cleanup --flannel` removes them",
    ),
    Kind.FLOW_DROPPED: Text(
        PROBLEM,
        "a rule {verb} packets of pods{by}",
        "a packet that one table drops is lost, and an accept in another table, such as flanneld-masq's, cannot help",
        "{remedy}",
        "{persist}",
    ),
    Kind.FLOW_DENIED_BY_POLICY: Text(
        NOTICE,
        "the network policies{by} deny packets of every pod that was tried",
        "if no policy is meant to deny them, pods lose these connections",
        "compare with `kubectl get networkpolicy --all-namespaces`, and see the log of {owner}",
    ),
    Kind.FLOW_MASQUERADED: Text(
        PROBLEM,
        "another rule masquerades packets that must keep their source address{by}",
        "network policies and logs see the node instead of the pod, and answers may take another way",
        "{remedy}",
        "{persist}",
    ),
    Kind.FLOW_NOT_MASQUERADED: Text(
        PROBLEM,
        "packets of pods leave the node with a source address to which no answer comes{by}",
        "hosts outside the cluster have no route to pods, so pods do not reach them",
        "{remedy}",
        "{persist}",
    ),
    Kind.FLOW_REDIRECTED: Text(
        PROBLEM,
        "a rule sends packets of pods to another address{by}",
        "they, or the answers to them, do not arrive where they should",
        "{remedy}",
        "{persist}",
    ),
    Kind.FLOW_MISROUTED: Text(
        PROBLEM,
        "a route or a setting of the kernel misroutes packets of pods",
        "they do not arrive, although no rule drops them",
        "compare `ip rule`, `ip route get {dst} from {src} iif DEVICE` and the setting that is named with a node that "
        "works; `flanneld-masq trace` follows real packets",
        "the configuration of the program that owns the route or rule, or a line in /etc/sysctl.d for a setting",
    ),
    Kind.FLOWS_UNKNOWN: Text(
        UNKNOWN,
        "the packets of pods cannot be evaluated",
        "without all rules and routes it is not known which packets other programs drop or masquerade",
        "apply the remedy in the message, for example install the program that is named, and run doctor again",
    ),
    Kind.IPTABLES_FLAVOURS_MIXED: Text(
        NOTICE,
        "programs use both iptables-legacy and iptables-nft, and neither sees the rules of the other",
        "a packet must pass both, so that an accept in one does not help against a drop in the other",
        "have all use one (update-alternatives --config iptables), then reboot or flush the other",
    ),
    Kind.SAVED_RULESET: Text(
        PROBLEM,
        "a saved ruleset holds a table of the daemon, so loading the file fails while the daemon runs",
        "only the daemon can change its tables, and the kernel refuses the whole file (Operation not permitted); "
        "a reload of nftables.service leaves the old ruleset in force",
        "remove each table {table} from {path}, and save a ruleset without it; or set nft.protect = false",
    ),
    Kind.FORWARD_DROPS: Text(
        PROBLEM,
        "forwarded packets are dropped",
        "the forward group, which would accept those of pods, is switched off",
        "set forward.enabled = true, or accept the pods' traffic there yourself",
    ),
    Kind.FORWARD_DROPS_UNHELPED: Text(
        PROBLEM,
        "FORWARD drops pods' packets, and this node has no usable program to add an accept there",
        "only an accept in the same table helps against a drop",
        "apply the remedy in the message, then `systemctl reload flanneld-masq`; or accept the pods' traffic there "
        "yourself",
    ),
    Kind.KUBE_PROXY_MARK_DIFFERS: Text(
        PROBLEM,
        "masquerade.kube_proxy_mark is not the mark that kube-proxy gives to packets",
        "the rules treat packets that kube-proxy masquerades as packets of pods: a service answers from some pods only",
        'set masquerade.kube_proxy_mark = "auto" (or "{mark}"), then `systemctl reload flanneld-masq`',
    ),
    Kind.KUBE_PROXY_MARK_UNUSUAL: Text(
        NOTICE,
        'kube-proxy marks packets with {mark}, which masquerade.kube_proxy_mark = "auto" follows',
        "programs that expect 0x4000/0x4000, flanneld's own rules among them, masquerade these packets once more",
        "none is needed for flanneld-masq",
    ),
    Kind.KUBE_PROXY_KEEPS_MARK: Text(
        PROBLEM,
        "kube-proxy masquerades packets with mark {mark} and does not take the mark off",
        "the kernel keeps the mark when flannel's VXLAN encapsulates the packet, so the outer packet is masqueraded "
        "again: wrong checksums on older kernels (services answer after 63 s), colliding ports on all",
        "use kube-proxy 1.19, 1.18.6, 1.17.9 or 1.16.13, or later ones (kubernetes pull request 92035); "
        'masquerade.kube_proxy_mark = "auto" keeps following its mark',
    ),
}


def finding(kind: Kind, seen: str, family: Optional[Family] = None, **fields: object) -> Finding:
    """Return a finding of that kind. `fields` fill the braces of its texts; `owner` is also a field of the finding."""
    text = TEXTS[kind]
    texts = (text.what, text.why, text.remedy, text.persist)
    what, why, remedy, persist = (each.format(**fields) for each in texts)
    of_family = "" if family is None else str(family)
    return Finding(kind, text.severity, what, seen, why, remedy, persist, of_family, str(fields.get("owner", "")))
