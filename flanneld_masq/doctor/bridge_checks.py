"""Examines the bridge of the pods: its address and MTU against the subnet file, and whether rules see its packets."""

from __future__ import annotations

from collections.abc import Iterator

from flanneld_masq.doctor.catalog import finding
from flanneld_masq.doctor.facts import Facts
from flanneld_masq.doctor.findings import Finding, Kind, listed
from flanneld_masq.doctor.host_network import HostNetwork, Link
from flanneld_masq.doctor.interfaces import BRIDGES, DOCKER, of_family, pod_links, with_gateway
from flanneld_masq.inputs.text import Interface
from flanneld_masq.model import Family, FamilyLease, Lease
from flanneld_masq.packet_path.flow_cases import Flow

_SHOWN = 3  # ports


def call_sysctl(family: Family) -> str:
    """Return the switch below /proc/sys that has packets on bridges pass the rules of the family."""
    return f"net/bridge/bridge-nf-call-{family.data.tools}"


def of_another_node(facts: Facts) -> Iterator[Finding]:
    """Yield bridges whose pods are not those of any subnet file, unless another interface has the file's address.

    flannel gives its own interface an address of the node's subnet, which tells as much where no bridge is.
    """
    for family in Family if facts.network is not None else ():
        leases = of_family(facts.leases, family)
        if not leases or any(_gateway(link, leases) for link in _links(facts)):
            continue
        bridges = [(link, one) for link in _links(facts) for one in _strange(link, leases, family)]
        strange = bridges or _of_flannel(_links(facts), leases, family)
        for link, address in strange:
            seen = f"{link.name} has {address}; {'; '.join(_said(facts.leases, family))}"
            yield finding(Kind.SUBNET_FILE_OF_ANOTHER_NODE, seen, family, bridge=link.name)


def prefix_length(facts: Facts) -> Iterator[Finding]:
    for family in Family:
        leases = of_family(facts.leases, family)
        for link in _links(facts):
            address = _gateway(link, leases)
            lengths = {lease.subnet.prefixlen for lease in leases if address and lease.gateway == address.ip}
            if link.kind == "bridge" and address and address.network.prefixlen not in lengths:
                seen = f"{link.name} has {address}; {'; '.join(_said(facts.leases, family))}"
                yield finding(Kind.BRIDGE_ADDRESS_DIFFERS, seen, family, bridge=link.name)


def same_gateway(facts: Facts) -> Iterator[Finding]:
    """Yield a bridge that has the gateway's address beside another one. Plugins give it to one bridge alone."""
    for family in Family:
        leases = of_family(facts.leases, family)
        found = {link.name: _gateway(link, leases) for link in _links(facts) if link.kind == "bridge"}
        bridges = {name: address for name, address in found.items() if address is not None}
        if len(set(bridges.values())) < len(bridges):
            seen = ", ".join(f"{name} has {address}" for name, address in bridges.items())
            other = next((name for name in bridges if name not in BRIDGES), list(bridges)[-1])
            yield finding(Kind.GATEWAY_ADDRESS_TWICE, seen, family, other=other)


def mtu(facts: Facts) -> Iterator[Finding]:
    """Yield bridges whose ports have a greater MTU than the subnet file allows. An empty bridge always has 1500."""
    network = facts.network or HostNetwork()
    for lease in facts.leases:
        for link in with_gateway(network, (lease,)):
            large = [port for port in network.ports(link.name) if lease.mtu and port.mtu > lease.mtu]
            if large:
                ports = listed([f"{port.name} ({port.mtu})" for port in large], _SHOWN)
                seen = f"ports of {link.name}: {ports}; {lease.path} says FLANNEL_MTU={lease.mtu}"
                yield finding(Kind.BRIDGE_MTU_TOO_LARGE, seen, port=large[0].name, mtu=lease.mtu)


def netfilter(facts: Facts) -> Iterator[Finding]:
    """Yield bridges whose packets kube-proxy's rules do not see."""
    network = facts.network or HostNetwork()
    bridges = [link for link in pod_links(network, facts.leases) if link.kind == "bridge"]
    for family in (one.family for one in facts.families if one.kube_proxy.places):
        key = call_sysctl(family)
        for link in bridges:
            fields: dict[str, object] = {"device": link.name, "key": key.replace("/", "."), "value": 1}
            if key in facts.sysctls and not facts.sysctls[key] and family not in link.calls:
                yield finding(Kind.BRIDGE_NETFILTER_OFF, f"{fields['key']} = 0", family, **fields)
            elif key not in facts.sysctls and not network.br_netfilter:
                yield finding(Kind.BRIDGE_NETFILTER_MISSING, f"/proc/sys/{key} is missing", family, **fields)


def hairpin(facts: Facts) -> Iterator[Finding]:
    """Yield bridges by which kube-proxy's rules lead packets to a pod of this node, but not back to their sender.

    Without a bridge's call of the rules, the node itself translates and sends the packets, which needs no hairpin mode.
    A promiscuous bridge may hand them to the node. Source: br_netfilter_hooks.c and br_input.c of the kernel.
    """
    network = facts.network or HostNetwork()
    for family in Family:
        called = facts.sysctls.get(call_sysctl(family))
        for link in pod_links(network, facts.leases):
            ports = [port for port in network.ports(link.name) if port.kind == "veth"]
            off = bool(ports) and all(port.hairpin is False for port in ports)
            pod = _pod_of_service(facts, family, link.name)
            if pod and off and not link.promiscuous and (called or family in link.calls):
                names = listed([port.name for port in ports], _SHOWN)
                seen = f"hairpin is off on the ports of {link.name}: {names}; a service leads to {pod}"
                yield finding(Kind.BRIDGE_HAIRPIN_OFF, seen, family, device=link.name)


def _pod_of_service(facts: Facts, family: Family, device: str) -> str:
    """Return a pod behind a device to which kube-proxy's rules lead packets to a service; empty if none is known."""
    results = [one.result for one in facts.packets.flows if (one.flow, one.family) == (Flow.POD_TO_SERVICE, family)]
    outcomes = (outcome for result in results if result is not None for outcome in result.outcomes)
    found = [outcome.dst for outcome in outcomes if outcome.delivered and outcome.device == device]
    subnets = [lease.subnet for lease in of_family(facts.leases, family)]
    return next((str(pod) for pod in found if any(pod.address in subnet for subnet in subnets)), "")


def _links(facts: Facts) -> tuple[Link, ...]:
    return facts.network.links if facts.network is not None else ()


def _gateway(link: Link, leases: tuple[FamilyLease, ...]) -> Interface | None:
    """Return the address of the link that is a lease's gateway."""
    return next((one for one in link.addresses if any(one.ip == lease.gateway for lease in leases)), None)


def _strange(link: Link, leases: tuple[FamilyLease, ...], family: Family) -> Iterator[Interface]:
    """Yield the addresses of a bridge of pods that are in no lease's subnet."""
    addresses = link.addresses_of(family) if link.name in (*BRIDGES, DOCKER) else ()
    if any(one.ip in lease.subnet for one in addresses for lease in leases):
        return
    networks = [network for lease in leases for network in lease.networks]
    yield from (one for one in addresses if link.name != DOCKER or any(one.ip in network for network in networks))


def _of_flannel(
    links: tuple[Link, ...], leases: tuple[FamilyLease, ...], family: Family
) -> list[tuple[Link, Interface]]:
    """Return flannel's interfaces with their addresses, if none of these is in a lease's subnet."""
    found = [(link, one) for link in links if link.is_flannel for one in link.addresses_of(family)]
    return [] if any(one.ip in lease.subnet for _, one in found for lease in leases) else found


def _said(leases: tuple[Lease, ...], family: Family) -> Iterator[str]:
    for lease in leases:
        found = lease.of(family)
        if found is not None:
            networks = ",".join(map(str, found.networks))
            yield f"{lease.path} says {found.gateway}/{found.subnet.prefixlen} in {networks}"
