"""Builds a throwaway network: a pod, a node, a remote node and the outside, each a network namespace.

    pod ---- cni0 [ node ] eth0 ---- outside (and what lies behind it)
                  [      ] flannel.1 ---- remote (and a pod on it)

The process that builds it must have called `netns.enter`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice
from pathlib import Path
from typing import Optional

from flanneld_masq.model import SLOTS, Address, Family, FamilyLease, Network
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.netns import Netns

# ---- who has which address


@dataclass(frozen=True, **SLOTS)
class Addresses:
    """The addresses of one family. Those in a subnet follow from it, as in flannel."""

    family: Family
    networks: tuple[Network, ...]
    subnet: Network
    remote_subnet: Network
    next_subnet: Network  # the node's subnet after a change; its addresses exist from the start
    node: Address
    outside: Address
    prefix: int  # between node and outside
    far: Address  # behind the outside host
    link_local_node: Address
    link_local: Address  # a link-local service for pods, for example a metadata service
    group: Address

    @property
    def gateway(self) -> Address:
        return self.subnet[1]

    @property
    def pod(self) -> Address:
        return self.subnet[5]

    @property
    def next_gateway(self) -> Address:
        return self.next_subnet[1]

    @property
    def next_pod(self) -> Address:
        return self.next_subnet[5]

    @property
    def overlay(self) -> Address:
        return self.subnet[0]

    @property
    def remote_overlay(self) -> Address:
        return self.remote_subnet[0]

    @property
    def remote_pod(self) -> Address:
        return self.remote_subnet[5]

    def masqueraded(self, dst: Address) -> Address:
        """Return the address that the node masquerades with: one of the device that leads to `dst`."""
        if dst in self.remote_subnet:
            return self.overlay
        if dst in self.subnet:
            return self.gateway
        if dst in self.next_subnet:
            return self.next_gateway
        # IPv6 picks an address of the destination's scope, IPv4 the device's first.
        return self.link_local_node if dst.version == 6 and dst.is_link_local else self.node

    def subnet_lines(self, subnet: Optional[Network] = None) -> str:
        """Return the lines that flannel writes into its subnet file for this family."""
        key = "FLANNEL" if self.family is Family.IPV4 else "FLANNEL_IPV6"
        chosen = self.subnet if subnet is None else subnet
        return f"{key}_NETWORK={','.join(map(str, self.networks))}\n{key}_SUBNET={chosen[1]}/{chosen.prefixlen}\n"


IPV4 = Addresses(
    family=Family.IPV4,
    networks=(IPv4Network("10.244.0.0/16"),),
    subnet=IPv4Network("10.244.1.0/24"),
    remote_subnet=IPv4Network("10.244.2.0/24"),
    next_subnet=IPv4Network("10.244.7.0/24"),
    node=IPv4Address("192.0.2.1"),
    outside=IPv4Address("192.0.2.100"),
    prefix=24,
    far=IPv4Address("198.51.100.7"),
    link_local_node=IPv4Address("169.254.0.1"),
    link_local=IPv4Address("169.254.169.254"),
    group=IPv4Address("239.1.2.3"),
)
IPV6 = Addresses(
    family=Family.IPV6,
    networks=(IPv6Network("fd00:10:244::/48"),),
    subnet=IPv6Network("fd00:10:244:1::/64"),
    remote_subnet=IPv6Network("fd00:10:244:2::/64"),
    next_subnet=IPv6Network("fd00:10:244:7::/64"),
    node=IPv6Address("2001:db8:1::1"),
    outside=IPv6Address("2001:db8:1::100"),
    prefix=64,
    far=IPv6Address("2001:db8:2::7"),
    link_local_node=IPv6Address("fe80::1"),
    link_local=IPv6Address("fe80::100"),
    group=IPv6Address("ff15::123"),
)


def families() -> tuple[Family, ...]:
    """Return the families that this kernel has."""
    return tuple(Family) if Path("/proc/net/if_inet6").exists() else (Family.IPV4,)


def default_addresses() -> tuple[Addresses, ...]:
    return tuple(addresses for addresses in (IPV4, IPV6) if addresses.family in families())


def addresses_for(lease: FamilyLease) -> Addresses:
    """Return the addresses with the pods in the subnet of this lease. Its network must hold two more subnets."""
    network = next(network for network in lease.networks if lease.subnet.network_address in network)
    subnets = (subnet for subnet in network.subnets(new_prefix=lease.subnet.prefixlen) if subnet != lease.subnet)
    remote, following = islice(subnets, 2)
    base = IPV4 if lease.subnet.version == 4 else IPV6
    return replace(base, networks=lease.networks, subnet=lease.subnet, remote_subnet=remote, next_subnet=following)


# ---- the network

SYSCTLS = {
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv6/conf/all/disable_ipv6": 0,
    "ipv6/conf/default/disable_ipv6": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/addr_gen_mode": 1,  # no link-local addresses but those below, which exist at once
}
ROUTER = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1, "ipv6/conf/default/forwarding": 1}


def batch(run: ProcessRunner, lines: Sequence[str]) -> None:
    """Run these lines with one `ip -batch`, in the namespace of the calling thread."""
    run(("ip", "-batch", "-"), stdin="".join(f"{line}\n" for line in lines))


def address(device: str, value: Address, length: Optional[int] = None) -> str:
    width = 32 if value.version == 4 else 128
    return f"address add {value}/{width if length is None else length} dev {device}{' nodad' * (value.version == 6)}"


def route(dst: Network, device: str, via: Optional[Address] = None) -> str:
    return f"route add {dst} dev {device}" + (f" via {via} onlink" if via else "")


class Topology:
    """The network, up. `prefix` stands before the names of the namespaces, to keep several topologies apart."""

    def __init__(
        self, addresses: Optional[Sequence[Addresses]] = None, *, prefix: str = "", run: Optional[ProcessRunner] = None
    ) -> None:
        self.addresses = default_addresses() if addresses is None else tuple(addresses)
        self._run = ProcessRunner() if run is None else run
        names = {role: prefix + role for role in ("pod", "node", "remote", "outside")}
        with ExitStack() as undo:
            # If a name is taken, the namespaces of that name belong to another topology: they must not be removed.
            batch(self._run, [f"netns add {name}" for name in names.values()])
            undo.callback(batch, self._run, [f"netns del {name}" for name in names.values()])
            hosts = {}
            for role, name in names.items():
                hosts[role] = Netns(name)
                undo.callback(hosts[role].close)
                hosts[role].sysctl(SYSCTLS)
            self.pod, self.node, self.remote, self.outside = hosts.values()
            self.node.sysctl(ROUTER)
            batch(self._run, [_veth(names, *ends) for ends in _VETHS])
            for role, host in hosts.items():
                with host.entered():
                    batch(self._run, _configuration(role, self.addresses))
            self._undo = undo.pop_all()

    def of(self, family: Family) -> Addresses:
        return next(addresses for addresses in self.addresses if addresses.family is family)

    def close(self) -> None:
        self._undo.close()

    def __enter__(self) -> Topology:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_VETHS = (
    ("pod", "eth0", "node", "cni0"),
    ("node", "flannel.1", "remote", "flannel.1"),
    ("node", "eth0", "outside", "eth0"),
)


def _veth(names: Mapping[str, str], one: str, device: str, other: str, peer: str) -> str:
    return f"link add {device} netns {names[one]} type veth peer name {peer} netns {names[other]}"


def _configuration(role: str, families: Sequence[Addresses]) -> list[str]:
    devices = ["lo"] + [device for ends in _VETHS for owner, device in (ends[:2], ends[2:]) if owner == role]
    lines = [f"link set {device} up" for device in devices]
    for of in families:
        lines += _ROLES[role](of)
    return lines


def _default(of: Addresses) -> Network:
    return IPv4Network("0.0.0.0/0") if of.family is Family.IPV4 else IPv6Network("::/0")


def _link_local(of: Addresses, device: str, last: int) -> list[str]:
    # IPv6 finds no neighbour from a device without a link-local address.
    return [address(device, of.link_local_node + last - 1, 64)] if of.family is Family.IPV6 else []


def _pod(of: Addresses) -> list[str]:
    return [
        *_link_local(of, "eth0", 2),
        address("eth0", of.pod, of.subnet.prefixlen),
        address("eth0", of.next_pod, of.next_subnet.prefixlen),
        route(_default(of), "eth0", of.gateway),
    ]


def _node(of: Addresses) -> list[str]:
    lines = [line for device in ("cni0", "flannel.1", "eth0") for line in _link_local(of, device, 1)]
    lines += [
        address("cni0", of.gateway, of.subnet.prefixlen),
        address("cni0", of.next_gateway, of.next_subnet.prefixlen),
        address("flannel.1", of.overlay),
        address("eth0", of.node, of.prefix),
        route(of.remote_subnet, "flannel.1", of.remote_overlay),
        route(_default(of), "eth0", of.outside),
    ]
    return lines


def _remote(of: Addresses) -> list[str]:
    return [
        *_link_local(of, "flannel.1", 2),
        address("flannel.1", of.remote_overlay),
        address("lo", of.remote_pod),
        route(_default(of), "flannel.1", of.overlay),
    ]


def _outside(of: Addresses) -> list[str]:
    local = [address("eth0", of.link_local, 64)] if of.family is Family.IPV6 else [address("lo", of.link_local)]
    return [
        *local,
        address("eth0", of.outside, of.prefix),
        address("lo", of.far),
        *(route(network, "eth0", of.node) for network in of.networks),
    ]


_ROLES = {"pod": _pod, "node": _node, "remote": _remote, "outside": _outside}
