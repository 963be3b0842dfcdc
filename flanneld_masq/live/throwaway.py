"""A throwaway pod on the node's own bridge, and a throwaway host of the outside. Nothing of them outlives the process.

    pod ---- bridge [ this node ] veth ---- outside (and an address of a remote pod)

Both are network namespaces that only this process has open, so they end with it, and their devices and the routes by
these devices too. No packet can reach another host: every destination is on a device of this process, and a rule drops
what the pod sends if the node's routing rules lead it to another device.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Optional

from flanneld_masq.errors import MasqError
from flanneld_masq.live import addresses, ip_json
from flanneld_masq.live.own_table import guard_table, is_leftover
from flanneld_masq.model import SLOTS, Address, Family, FamilyLease, Network
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.netns import Netns
from flanneld_masq.selftest.topology import SYSCTLS, address, batch, route

_POD, _OUTSIDE = "fmasq-p", "fmasq-w"  # then the pid: at most 14 characters, and a device may have 15
_LOCAL_KINDS = frozenset(("veth", "dummy"))  # of a bridge's ports: neither a cable nor a virtual machine is behind them
_RESERVED = "var/lib/cni/networks"  # host-local keeps a file there for each address, by network
_ARP_SECONDS = 0.3
_EVERYWHERE: dict[Family, Network] = {Family.IPV4: ip_network("0.0.0.0/0"), Family.IPV6: ip_network("::/0")}
_LINK_LOCAL = IPv6Address("fe80::fa54")
_ETH_P_ARP = 0x0806
_ARP = struct.Struct(">HHBBH6s4s6s4s")
_HARDWARE = "fe:ff:ff:%02x:%02x:%02x"  # higher than other ports' addresses, so that the bridge keeps its own


@dataclass(frozen=True, **SLOTS)
class Bridge:
    """The node's bridge for pods, and its address in their subnet."""

    name: str
    gateway: Address
    mtu: int


@dataclass(frozen=True, **SLOTS)
class Hosts:
    """The addresses of the throwaway hosts. `remote` is that of a remote pod; None, and why, if there can be none."""

    pod: Address
    outside: Address
    gateway: Address
    remote: Optional[Address] = None
    why_no_remote: str = ""


class Throwaway:
    """The hosts of one family, up. Raises MasqError if they cannot be made; then nothing of them is left."""

    def __init__(self, lease: FamilyLease, run: ProcessRunner, root: Path = Path("/")) -> None:
        self._run = run
        self._root = root
        self._family = Family.IPV4 if lease.subnet.version == 4 else Family.IPV6
        self._chance = random.SystemRandom()
        remove_leftovers(run)
        self._bridge = find_bridge(run, lease.subnet)
        with ExitStack() as undo:
            self.node = self._opened(undo, Netns.current())
            self.pod = self._opened(undo, Netns.unnamed("the throwaway pod"))
            self.outside = self._opened(undo, Netns.unnamed("the throwaway host outside"))
            self._make_devices(undo)
            self.hosts = self._addressed(lease)
            undo.enter_context(closing(guard_table(self.hosts.pod, tuple(self._device_indexes()))))
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Remove the devices, then the namespaces."""
        self._undo.close()

    def __enter__(self) -> Throwaway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _opened(undo: ExitStack, netns: Netns) -> Netns:
        undo.callback(netns.close)
        return netns

    @property
    def _flag(self) -> str:
        return f"-{self._family.data.version}"

    def _make_devices(self, undo: ExitStack) -> None:
        for name, host, rest in (
            (device_name(_POD), self.pod, f" master {self._bridge.name}"),
            (device_name(_OUTSIDE), self.outside, ""),
        ):
            host.sysctl(SYSCTLS)
            mtu, hardware = f" mtu {self._bridge.mtu}", _HARDWARE % tuple(os.urandom(3))
            peer = f"type veth peer name eth0{mtu} netns {host.path}"
            batch(self._run, [f"link add {name} address {hardware}{mtu} {peer}"])
            undo.callback(_delete, self._run, name)
            self.node.sysctl({f"ipv6/conf/{name}/{key}": 0 for key in ("disable_ipv6", "accept_ra")})
            batch(self._run, [f"link set {name} addrgenmode none", f"link set {name}{rest} up"])
            with host.entered():
                batch(self._run, ["link set lo up", "link set eth0 up"])

    def _addressed(self, lease: FamilyLease) -> Hosts:
        """Give the hosts their addresses and routes."""
        routes = tuple(ip_json.destinations(ip_json.rows(self._run, self._flag, "route", "show", "table", "all")))
        node, outside, length = addresses.free_link(self._family, routes, self._chance)
        pod = addresses.free_pod(lease.subnet, self._taken(), self._answers, self._chance)
        hosts = Hosts(pod, outside, self._bridge.gateway)
        try:
            remote = addresses.unused_remote_pod(lease.networks, lease.subnet, routes, self._chance)
            hosts = replace(hosts, remote=remote)
        except MasqError as error:
            hosts = replace(hosts, why_no_remote=str(error))
        for netns, lines in (
            (self.pod, self._pod_lines(hosts, lease.subnet.prefixlen)),
            (self.outside, self._outside_lines(hosts, node, length)),
            (self.node, self._node_lines(hosts, node, length)),
        ):
            with netns.entered():
                batch(self._run, lines)
        return hosts

    def _pod_lines(self, hosts: Hosts, length: int) -> list[str]:
        default = route(_EVERYWHERE[self._family], "eth0", hosts.gateway)
        return [*self._link_local("eth0", 1), address("eth0", hosts.pod, length), default]

    def _outside_lines(self, hosts: Hosts, node: Address, length: int) -> list[str]:
        default = route(_EVERYWHERE[self._family], "eth0", node)
        lines = [*self._link_local("eth0", 2), address("eth0", hosts.outside, length), default]
        return lines + ([address("lo", hosts.remote)] if hosts.remote else [])

    def _node_lines(self, hosts: Hosts, node: Address, length: int) -> list[str]:
        device = device_name(_OUTSIDE)
        lines = [*self._link_local(device, 3), address(device, node, length)]
        return lines + ([f"route add {hosts.remote} dev {device} via {hosts.outside}"] if hosts.remote else [])

    def _link_local(self, device: str, last: int) -> list[str]:
        # IPv6 finds no neighbour from a device without a link-local address
        return [address(device, _LINK_LOCAL + last, 64)] if self._family is Family.IPV6 else []

    def _taken(self) -> frozenset[Address]:
        """Return the addresses that host-local has given out, and those in the neighbour table of the bridge."""
        known = ip_json.rows(self._run, self._flag, "neigh", "show", "dev", self._bridge.name)
        texts = [ip_json.text(entry, "dst") for entry in known]
        with contextlib.suppress(OSError):
            texts += [path.name for path in (self._root / _RESERVED).glob("*/*")]
        return frozenset((self._bridge.gateway, *ip_json.addresses_in(texts)))

    def _answers(self, candidate: Address) -> bool:
        """Ask by ARP who has the address, as RFC 5227 does. One of so many IPv6 addresses nobody has."""
        if not isinstance(candidate, IPv4Address):
            return False
        with self.pod.entered():
            return arp_answers(candidate)

    def _device_indexes(self) -> Iterator[int]:
        """Yield the devices by which packets of the pod may leave."""
        for name in (self._bridge.name, device_name(_OUTSIDE), "lo"):
            yield socket.if_nametoindex(name)


def find_bridge(run: ProcessRunner, subnet: Network) -> Bridge:
    """Return the bridge with an address in the pod subnet. Raises MasqError if there is none, or if it has a port that
    may lead to another host."""
    for device in ip_json.rows(run, "-d", "addr", "show", "type", "bridge"):
        texts = [ip_json.text(entry, "local") for entry in ip_json.rows_in(device, "addr_info")]
        gateway = next((value for value in ip_json.addresses_in(texts) if value in subnet), None)
        if gateway is not None:
            bridge = Bridge(ip_json.text(device, "ifname"), gateway, ip_json.number(device, "mtu"))
            _insist_on_local_ports(run, bridge)
            return bridge
    raise MasqError(
        f"no bridge of this node has an address of the pod subnet {subnet}; the bridge (cni0, cbr0 or docker0) "
        "gets one when the first pod starts here; on a node without a bridge use `flanneld-masq trace`"
    )


def remove_leftovers(run: ProcessRunner) -> None:
    """Remove devices of runs that have ended. The kernel does so itself, but not at once."""
    for device in ip_json.rows(run, "link", "show", "type", "veth"):
        name = ip_json.text(device, "ifname")
        if is_leftover(name, _POD, _OUTSIDE):
            _delete(run, name)


def device_name(prefix: str) -> str:
    return f"{prefix}{os.getpid()}"


def arp_answers(candidate: IPv4Address) -> bool:
    """Return True if a host on the network of eth0, in the namespace of the calling thread, has the address."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ARP)) as arp:
        arp.bind(("eth0", _ETH_P_ARP))
        own = arp.getsockname()[4]
        request = _ARP.pack(1, 0x0800, 6, 4, 1, own, bytes(4), bytes(6), candidate.packed)
        until = time.monotonic() + _ARP_SECONDS
        arp.sendto(request, ("eth0", _ETH_P_ARP, 0, 0, b"\xff" * 6))
        return any(answer[14:18] == candidate.packed for answer in _received(arp, until))


def _received(arp: socket.socket, until: float) -> Iterator[bytes]:
    """Yield the ARP packets of other hosts until that time."""
    poller = select.poll()
    poller.register(arp, select.POLLIN)
    while (left := until - time.monotonic()) > 0 and poller.poll(left * 1000):
        data, origin = arp.recvfrom(256)
        if origin[2] != 4 and len(data) >= _ARP.size:  # PACKET_OUTGOING
            yield data


def _insist_on_local_ports(run: ProcessRunner, bridge: Bridge) -> None:
    for port in ip_json.rows(run, "-d", "link", "show", "master", bridge.name):
        if ip_json.text(port, "linkinfo", "info_kind") not in _LOCAL_KINDS:
            name = ip_json.text(port, "ifname")
            raise MasqError(f"{name} is a port of {bridge.name} and may lead to other hosts, to which nothing is sent")


def _delete(run: ProcessRunner, name: str) -> None:
    with contextlib.suppress(MasqError):  # the other end has gone, and this one with it
        run(("ip", "link", "delete", name))
