"""The daemon and libnftables encode the same text alike, and nft prints that text."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Optional

from flanneld_masq_nft import render
from flanneld_masq_nft.backend import NftBackend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flanneld_masq.hookspecs import Host
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_socket import NetlinkSocket
from flanneld_masq.kernel.netlink_wire import attributes, nft_msg_type
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.objects import table_key
from flanneld_masq.model import (
    Desired,
    Family,
    FamilyLease,
    ForwardSettings,
    Group,
    Lease,
    Mark,
    MasqueradeSettings,
    Network,
    Observation,
    Settings,
)
from flanneld_masq.ruleset import policy

from ..common import amount, needs_long_messages
from .conftest import Node

_HANDLES = {  # of the reply to each request; a table that is written again has another one
    uapi.NFT_MSG_GETTABLE: {uapi.NFTA_TABLE_HANDLE},
    uapi.NFT_MSG_GETCHAIN: {uapi.NFTA_CHAIN_HANDLE},
    uapi.NFT_MSG_GETRULE: {uapi.NFTA_RULE_HANDLE, uapi.NFTA_RULE_POSITION},
}


def networks(family: Family) -> st.SearchStrategy[Network]:
    kind = IPv4Network if family is Family.IPV4 else IPv6Network
    width = family.data.width

    def network(bits: int, length: int) -> Network:
        return kind((bits >> (width - length) << (width - length), length))

    return st.builds(network, st.integers(0, 2**width - 1), st.integers(1, width))


def marks() -> st.SearchStrategy[Optional[Mark]]:
    masks = st.integers(1, 2**32 - 1) | st.just(2**32 - 1)
    values = masks.flatmap(lambda mask: st.builds(Mark, st.integers(1, 2**32 - 1).map(mask.__and__), st.just(mask)))
    return st.none() | values


def desires(family: Family) -> st.SearchStrategy[Desired]:
    """Return what a backend must hold for random settings and leases."""

    def desired(
        groups: frozenset[Group],
        leases: list[FamilyLease],
        masquerade: MasqueradeSettings,
        forward: ForwardSettings,
    ) -> Desired:
        named = tuple(
            Lease("file", lease if family is Family.IPV4 else None, lease if family is Family.IPV6 else None)
            for lease in leases
        )
        return policy.desired(Settings(masquerade=masquerade, forward=forward), named, family, groups)

    some = st.lists(networks(family), max_size=3).map(tuple)
    lease = st.builds(
        lambda first, more, subnet: FamilyLease((first, *more), subnet, subnet.network_address),
        *(networks(family), some, networks(family)),
    )
    masquerade = st.builds(
        MasqueradeSettings,
        to_remote_pods=st.booleans(),
        random_fully=st.booleans(),
        non_masquerade_cidrs=some,
        masquerade_link_local=st.booleans(),
        kube_proxy_mark=marks(),
    )
    return st.builds(
        desired,
        st.frozensets(st.sampled_from(Group), min_size=1),
        st.lists(lease, min_size=1, max_size=2),
        masquerade,
        st.builds(ForwardSettings, drop_invalid=st.booleans()),
    )


def dump(family: Family) -> list[list[tuple[int, bytes]]]:
    """Return everything that the kernel tells of the daemon's table, without handles."""
    netlink, key, found = NetlinkSocket(), table_key(render.TABLE), []
    for kind, handles in _HANDLES.items():
        whole = kind != uapi.NFT_MSG_GETTABLE
        for reply in netlink.request("dumping", nft_msg_type(kind), family.data.nfproto, key, dump=whole):
            found.append([(number, value) for number, value in attributes(reply) if number not in handles])
    netlink.close()
    return found


def listed(node: Node, family: Family) -> list[str]:
    lines = node.tool("nft", "-y", "list", "table", family.data.nft, render.TABLE).splitlines()
    return [re.sub(r"(?<=addr )[^ !]\S*|(?<=addr != )\S+", _as_rendered, line) for line in lines]


def _as_rendered(network: re.Match[str]) -> str:
    """nft prints ::8000:0/97 as ::128.0.0.0/97."""
    return str(ip_network(network[0])) if "/" in network[0] else str(ip_address(network[0]))


def write(backend: NftBackend, desired: Desired) -> None:
    assert backend.replace(desired, Observation(), ()) == 1


def test_the_kernel_holds_what_libnftables_makes_of_the_text(node: Node, family: Family) -> None:
    @settings(
        max_examples=amount(150, 30), deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
    )
    @given(desires(family))
    def check(desired: Desired) -> None:
        text = backend.render(desired)
        node.tool("nft", "-f", "-", stdin=f"flush ruleset\n{text}")
        expected = dump(family)
        node.tool("nft", "flush", "ruleset")
        write(backend, desired)
        assert dump(family) == expected
        assert listed(node, family) == text.splitlines()

    with node.entered():
        backend = NftBackend(family, Host(node.run))
        check()


def test_the_read_back_equals_what_was_encoded(node: Node, family: Family) -> None:
    """So a chain that is in order is known by its bytes, and left alone."""
    node.configure("[forward]\ndrop_invalid = true")
    with node.entered():
        backend, netlink = NftBackend(family, Host(node.run)), Nfnetlink()
        desired = policy.desired(node.settings, (node.lease(),), family, frozenset(Group))
        write(backend, desired)
        generation = netlink.generation()
        observed = backend.observe(tuple(Group))
        assert backend.replace(desired, observed, ()) == 0
        assert netlink.generation() == generation


def test_hundreds_of_rules_are_one_transaction(node: Node, family: Family) -> None:
    needs_long_messages()
    base = int(ip_network("198.18.0.0/15").network_address)
    v4 = tuple(IPv4Network((base + 32 * number, 27)) for number in range(2000))
    v6 = tuple(IPv6Network((0x20010DB8 << 96 | number << 80, 48)) for number in range(2000))
    kept: tuple[Network, ...] = (*v4, *v6)
    wanted = Settings(masquerade=MasqueradeSettings(non_masquerade_cidrs=kept))
    with node.entered():
        backend, netlink = NftBackend(family, Host(node.run)), Nfnetlink()
        before = netlink.generation()
        write(backend, policy.desired(wanted, (node.lease(),), family, frozenset(Group)))
        assert netlink.generation() == before + 1
        assert len(netlink.rules(family, render.TABLE)) > 2000


def test_the_probe_starts_no_program_and_leaves_no_trace(node: Node, family: Family) -> None:
    with node.entered():
        backend, netlink = NftBackend(family, Host(node.run)), Nfnetlink()
        before = netlink.generation()
        node.run.stop()  # from here on, starting any program is an error
        probe = backend.probe()
        node.run.resume()
        assert probe.usable, probe.reason
        assert netlink.generation() == before
        assert node.ruleset().strip() == ""
