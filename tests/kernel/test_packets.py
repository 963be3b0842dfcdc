"""Real packets, and the source address that they arrive with: the one that the policy says, on every backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flanneld_masq import plugin_loader
from flanneld_masq.hookspecs import Host
from flanneld_masq.inputs import config, subnet_env
from flanneld_masq.model import Address, BackendName, Family, Network, Packet, Settings, Verdict
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.ruleset import policy
from flanneld_masq.selftest import packet_cases, packets
from flanneld_masq.selftest.packet_cases import Case
from flanneld_masq.selftest.packets import PacketError, Wire
from flanneld_masq.selftest.topology import Addresses, Topology, families
from flanneld_masq.state_directory import StateDirectory

from ..common import unable
from .conftest import BACKENDS


def reconcilers(state: Path, run: ProcessRunner) -> dict[Family, Reconciler]:
    """Use them in one network namespace only: their sockets belong to the first that they were used in."""
    found = plugin_loader.load()
    return {family: Reconciler(family, found.create(family, Host(run)), StateDirectory(state)) for family in families()}


def insist_on(each: Reconciler, name: str) -> None:
    probe = each.selector.probe(BackendName(name))
    if not probe.usable:
        unable(f"{name} for {each.family}: {probe.reason}; {probe.remedy}")


# ---- the classes of packets, from host to host

FLANNEL = {"flannel by iptables-nft": "iptables-nft", "flannel by iptables-legacy": "iptables-legacy"}
RULESETS = (*BACKENDS, *FLANNEL)
Seen = Mapping[tuple[str, str], str]


def flannel_rules(of: Addresses) -> str:
    """Return the nat table that flannel's iptables mode feeds to iptables-restore (pkg/trafficmngr/iptables)."""
    (cluster,), pods, multicast = of.networks, of.subnet, of.family.data.multicast
    comment = '-m comment --comment "flanneld masq"'
    return f"""\
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING {comment} -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {comment} -j RETURN
-A FLANNEL-POSTRTG -s {pods} -d {cluster} {comment} -j RETURN
-A FLANNEL-POSTRTG -s {cluster} -d {pods} {comment} -j RETURN
-A FLANNEL-POSTRTG ! -s {cluster} -d {pods} {comment} -j RETURN
-A FLANNEL-POSTRTG -s {cluster} ! -d {multicast} {comment} -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} {comment} -j MASQUERADE --random-fully
COMMIT
"""


class Proof:
    """A lab whose node holds one ruleset at a time. What was seen of each is remembered."""

    def __init__(self, topology: Topology, run: ProcessRunner, state: Path) -> None:
        self._topology = topology
        self._run = run
        self._hosts = {
            "pod": topology.pod,
            "node": topology.node,
            "remote": topology.remote,
            "outside": topology.outside,
        }
        self._reconcilers = reconcilers(state, run)
        self._seen: dict[tuple[str, Settings, Family], Seen] = {}
        self.leases = (subnet_env.parse("".join(each.subnet_lines() for each in topology.addresses).encode(), "/lab"),)

    def of(self, family: Family) -> Addresses:
        return self._topology.of(family)

    def seen(self, ruleset: str, wanted: Settings, family: Family) -> Seen:
        """By case and transport: the source that the receiver saw, or why it saw nothing."""
        if (ruleset, wanted, family) not in self._seen:
            with self._topology.node.entered():
                self._install(ruleset, wanted)
            for each in self._topology.addresses:
                self._seen[ruleset, wanted, each.family] = dict(self._send_all(each))
        return self._seen[ruleset, wanted, family]

    def _install(self, ruleset: str, wanted: Settings) -> None:
        for each in self._topology.addresses:
            reconciler = self._reconcilers[each.family]
            insist_on(reconciler, FLANNEL.get(ruleset, ruleset))
            reconciler.remove_everything()
            for tools in FLANNEL.values():
                self._restore(each, tools, "*nat\nCOMMIT\n")
            if ruleset in FLANNEL:
                self._restore(each, FLANNEL[ruleset], flannel_rules(each))
            else:
                reconciler.reconcile(DesiredState(replace(wanted, backend=BackendName(ruleset)), self.leases))

    def _restore(self, of: Addresses, tools: str, text: str) -> None:
        self._run((f"{of.family.data.tools}-{tools.partition('-')[2]}-restore",), stdin=text)

    def _send_all(self, of: Addresses) -> Iterator[tuple[tuple[str, str], str]]:
        for case in packet_cases.cases(of):
            for transport in case.transports:
                yield (case.name, transport), self._send(case, transport)

    def _send(self, case: Case, transport: str) -> str:
        send = packets.udp if transport == "UDP" else packets.tcp
        try:
            return str(send(self._hosts[case.sender], self._hosts[case.receiver], case.packet, device=case.device))
        except PacketError as error:
            return str(error)


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    run = ProcessRunner()
    with Topology(prefix="packets-", run=run) as topology:
        yield Proof(topology, run, tmp_path_factory.mktemp("proof"))


def excepting(of: Addresses) -> Settings:
    """Settings under which pods keep their address on the way to some destinations."""
    text = f'[masquerade]\nnon_masquerade_cidrs = ["{packet_cases.excepted(of)}"]\nmasquerade_link_local = false\n'
    return config.parse(text, "the test")


def expected(proof: Proof, wanted: Settings, family: Family) -> Seen:
    of = proof.of(family)
    return {
        (case.name, transport): str(packet_cases.expect(wanted, proof.leases, of, case.packet).source)
        for case in packet_cases.cases(of)
        for transport in case.transports
    }


@pytest.mark.parametrize("ruleset", RULESETS)
def test_every_class_of_packets_arrives_as_the_policy_says(proof: Proof, ruleset: str, family: Family) -> None:
    assert proof.seen(ruleset, Settings(), family) == expected(proof, Settings(), family)


@pytest.mark.parametrize("ruleset", BACKENDS)
def test_excepted_destinations_see_the_pods_own_address(proof: Proof, ruleset: str, family: Family) -> None:
    wanted = excepting(proof.of(family))
    assert proof.seen(ruleset, wanted, family) == expected(proof, wanted, family)


def test_the_backends_agree_with_each_other_and_with_flannel(proof: Proof, family: Family) -> None:
    seen = {ruleset: proof.seen(ruleset, Settings(), family) for ruleset in RULESETS}
    differing = {
        which: {ruleset: found[which] for ruleset, found in seen.items()}
        for which in seen["nft"]
        if len({found[which] for found in seen.values()}) > 1
    }
    assert not differing


def test_the_cases_reach_every_row_of_the_policy(proof: Proof, family: Family) -> None:
    of = proof.of(family)
    rows = {
        packet_cases.expect(wanted, proof.leases, of, case.packet).row
        for wanted in (Settings(), excepting(of))
        for case in packet_cases.cases(of)
    }
    assert rows >= set("1234567")


# ---- any settings, leases and packets

EXAMPLES = 100
PACKETS = 12  # of each example and family, those left out that the kernel does not send

V4_BASES = [IPv4Address(text) for text in ("10.244.0.0", "172.16.0.0", "192.168.96.0", "100.64.0.0", "169.254.0.0")]
ANYCAST = IPv6Address("fe80::")  # of the wire's routers, so the node itself answers to it
V6_BASES = [IPv6Address(text) for text in ("fd00:10:244::", "2001:db8::", "fe80::", "fc00::ff:0:0")]


@dataclass(frozen=True)
class Situation:
    """The texts of a configuration and of subnet files, and packets for each family that these name."""

    config: str
    subnet_files: tuple[str, ...]
    packets: tuple[Packet, ...]

    def desired_state(self) -> DesiredState:
        leases = (subnet_env.parse(text.encode(), f"/subnet{n}.env") for n, text in enumerate(self.subnet_files))
        return DesiredState(config.parse(self.config, "the test"), tuple(leases))


def network_of(value: int, width: int, length: int) -> Network:
    kind = IPv4Address if width == 32 else IPv6Address
    return ip_network((kind(value), length), strict=False)


@st.composite
def pod_networks(draw: st.DrawFn, family: Family) -> Network:
    """Any that a subnet file may name."""
    width = family.data.width
    base = draw(st.sampled_from(V4_BASES if width == 32 else V6_BASES))
    value = draw(st.one_of(st.just(int(base)), st.integers(0, 2**width - 1)))
    lengths = st.one_of(st.sampled_from((16, 24) if width == 32 else (48, 64)), st.integers(3, width))
    found = network_of(value, width, draw(lengths))
    return network_of(int(base), width, 16) if found.overlaps(family.data.multicast) else found


@st.composite
def subnets(draw: st.DrawFn, network: Network) -> Network:
    """A part of it; the first and the last part are as likely as any other."""
    length = draw(st.one_of(st.just(network.prefixlen), st.integers(network.prefixlen, network.max_prefixlen)))
    last = 2 ** (length - network.prefixlen) - 1
    index = draw(st.one_of(st.sampled_from((0, last)), st.integers(0, last)))
    start = int(network.network_address) + (index << (network.max_prefixlen - length))
    return network_of(start, network.max_prefixlen, length)


@st.composite
def leases_of(draw: st.DrawFn, family: Family) -> tuple[tuple[Network, ...], Network]:
    networks = draw(st.lists(pod_networks(family), min_size=1, max_size=3, unique=True))
    return tuple(networks), draw(subnets(draw(st.sampled_from(networks))))


def subnet_lines(family: Family, networks: tuple[Network, ...], subnet: Network) -> str:
    key = "FLANNEL" if family is Family.IPV4 else "FLANNEL_IPV6"
    return f"{key}_NETWORK={','.join(map(str, networks))}\n{key}_SUBNET={subnet}\n"


def outer(network: Network, bits: int) -> Network:
    return network.supernet(new_prefix=max(1, network.prefixlen - bits))


@st.composite
def exceptions(draw: st.DrawFn, known: list[Network]) -> Network:
    """A range that has to do with those that are known: the same, a part of it, or what it is a part of."""
    near = draw(st.sampled_from(known))
    return draw(st.one_of(st.just(near), subnets(near), st.builds(outer, st.just(near), st.integers(1, 9))))


@st.composite
def marks(draw: st.DrawFn) -> tuple[int, int]:
    mask = draw(st.one_of(st.sampled_from((0x4000, 0xFFFFFFFF, 0x80000000, 1)), st.integers(1, 2**32 - 1)))
    value = mask & draw(st.one_of(st.just(2**32 - 1), st.integers(1, 2**32 - 1)))
    return value or mask, mask


def near(network: Network) -> list[Address]:
    """Its first and last addresses, their neighbours on both sides, and one in the middle."""
    first, last = int(network.network_address), int(network.broadcast_address)
    values = {first - 1, first, first + 1, (first + last) // 2, last - 1, last, last + 1}
    kind = type(network.network_address)
    return [kind(value) for value in sorted(values) if 0 <= value < 2**network.max_prefixlen]


def mark_points(value: int, mask: int) -> list[int]:
    """Marks that a test for `value/mask` may take for another: the same, other bits too, and one bit less or more."""
    low = value & -value
    return [0, value, mask, value | ~mask & 0xFFFFFFFF, value ^ low, value ^ low << 1 & 0xFFFFFFFF, 0xFFFFFFFF]


FAMILIES = ('["ipv4", "ipv6"]', '["ipv4"]', '["ipv6"]')


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    # Each draw costs more than a packet, so packets are pairs from a list of addresses that was made once.
    subnet_files = []
    named: list[Network] = []
    for chosen in draw(st.lists(st.sets(st.sampled_from(families()), min_size=1), min_size=1, max_size=2)):
        text = ""
        for family in sorted(chosen, key=str):
            networks, subnet = draw(leases_of(family))
            named += [*networks, subnet]
            text += subnet_lines(family, networks, subnet)
        subnet_files.append(text)
    named += [found for family in families() for found in (family.data.multicast, family.data.link_local)]
    excepted = draw(st.lists(exceptions(named), max_size=3))
    mark = draw(st.one_of(st.none(), st.just((0x4000, 0x4000)), marks()))
    quoted = ", ".join(f'"{found}"' for found in excepted)
    lines = [
        "[masquerade]",
        f"random_fully = {draw(st.sampled_from(('true', 'false')))}",
        f"non_masquerade_cidrs = [{quoted}]",
        f"masquerade_link_local = {draw(st.sampled_from(('true', 'false')))}",
        f"to_remote_pods = {draw(st.sampled_from(('true', 'true', 'false')))}",
        f"families = {draw(st.sampled_from(FAMILIES))}",
        'kube_proxy_mark = "{:#x}/{:#x}"'.format(*mark) if mark else 'kube_proxy_mark = ""',
        f'position = "{draw(st.sampled_from(("last", "first")))}"',
        "[forward]",
        "enabled = false",
    ]
    sent: list[Packet] = []
    for family in families():
        known = [found for found in (*named, *excepted) if found.version == family.data.version]
        sent += draw(packets_near(family, known, mark or (0x4000, 0x4000)))
    return Situation("\n".join([*lines, ""]), tuple(subnet_files), tuple(sent))


@st.composite
def packets_near(draw: st.DrawFn, family: Family, known: list[Network], mark: tuple[int, int]) -> list[Packet]:
    anywhere = draw(st.integers(0, 2**family.data.width - 1))
    addresses = [type(known[0].network_address)(anywhere), *(found for network in known for found in near(network))]
    each = st.builds(
        Packet,
        st.sampled_from(addresses),
        st.sampled_from(addresses),
        st.sampled_from([0] * 8 + mark_points(*mark)),
    )
    drawn = draw(st.lists(each, min_size=PACKETS, max_size=PACKETS))
    return [packet for packet in drawn if packets.carries(packet) and packet.dst != ANYCAST]


class Wired:
    """A node on a wire, and one backend at work there."""

    def __init__(self, wire: Wire, name: str, state: Path) -> None:
        self._wire = wire
        self._name = BackendName(name)
        self._reconcilers = reconcilers(state, ProcessRunner())
        with wire.node.entered():
            for each in self._reconcilers.values():
                insist_on(each, name)

    def install(self, desired_state: DesiredState) -> None:
        desired_state = replace(desired_state, settings=replace(desired_state.settings, backend=self._name))
        with self._wire.node.entered():
            for each in self._reconcilers.values():
                each.reconcile(desired_state)
                assert each.reconcile(desired_state).repairs == (), f"{self._name}: not in order after its own write"

    def source_of(self, packet: Packet) -> Address:
        return self._wire.observe(packet)

    def node_address(self, family: Family, packet: Packet) -> Address:
        return self._wire.node_address(family, packet.dst)


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Wired]]:
    with ExitStack() as stack:
        wires = {name: stack.enter_context(Wire(prefix=f"{name}-")) for name in BACKENDS}
        yield {name: Wired(wire, name, tmp_path_factory.mktemp(name)) for name, wire in wires.items()}


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(situations())
def test_any_packet_leaves_with_the_source_that_explain_says(wired: Mapping[str, Wired], situation: Situation) -> None:
    desired_state = situation.desired_state()
    for name, node in wired.items():
        node.install(desired_state)
        for packet in situation.packets:
            family = Family.IPV4 if packet.src.version == 4 else Family.IPV6
            rules = next(iter(policy.group_rules(desired_state.settings, desired_state.leases, family)), None)
            rule = policy.decide(rules.rules, packet) if rules else None
            masquerade = rule is not None and rule.verdict is Verdict.MASQUERADE
            wanted = node.node_address(family, packet) if masquerade else packet.src
            assert node.source_of(packet) == wanted, f"{name}: {packet}, decided by {rule}"
