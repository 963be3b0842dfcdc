"""The addresses of the throwaway network."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from flanneld_masq.model import FamilyLease
from flanneld_masq.selftest.topology import IPV4, IPV6, addresses_for


def test_in_ipv6_link_local_gets_a_source_of_its_scope() -> None:
    assert IPV6.masqueraded(IPV6.link_local) == IPV6.link_local_node
    assert IPV4.masqueraded(IPV4.link_local) == IPV4.node


def test_the_network_follows_a_lease() -> None:
    lease = FamilyLease((ip_network("10.42.0.0/16"),), ip_network("10.42.0.0/24"), ip_address("10.42.0.1"))
    of = addresses_for(lease)
    assert (of.subnet, of.remote_subnet, of.next_subnet) == tuple(
        ip_network(text) for text in ("10.42.0.0/24", "10.42.1.0/24", "10.42.2.0/24")
    )
    assert str(of.pod) == "10.42.0.5"
    assert of.subnet_lines() == "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\n"
