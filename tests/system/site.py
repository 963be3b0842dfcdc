"""The network that a machine is the node of, and what becomes of real packets in it."""

from __future__ import annotations

from flanneld_masq.inputs import subnet_env
from flanneld_masq.model import Address, Family, Packet, Settings
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest import packet_cases, packets
from flanneld_masq.selftest.netns import Netns
from flanneld_masq.selftest.packet_cases import Case
from flanneld_masq.selftest.report import Sent
from flanneld_masq.selftest.topology import Addresses, Topology, default_addresses

from ..common import patience

SUBNET_FILE = "/run/flannel/subnet.env"


def subnet_file_text() -> str:
    """Return the text of flannel's subnet file; it is the same on every machine."""
    lines = [each.subnet_lines() for each in default_addresses()]
    return "".join(lines) + "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"


class Site:
    """A lab: pod, node (which is the machine), remote node, outside. Both families, forwarding on."""

    def __init__(self, prefix: str, run: ProcessRunner) -> None:
        self.topology = Topology(prefix=prefix, run=run)

    @property
    def node_name(self) -> str:
        """Name of the machine's network namespace."""
        return self.topology.node.name

    def outside_sees(self, family: Family, *, deadline: float = packets.DEADLINE) -> Address:
        """The source of a new UDP flow from the pod, as the outside sees it. Raises PacketError if it sees none."""
        of = self.topology.of(family)
        return packets.udp(
            self.topology.pod, self.topology.outside, Packet(of.pod, of.far), deadline=patience(deadline)
        )

    def assert_masqueraded(self) -> None:
        """The outside sees the node's address, in both families."""
        assert self._seen() == {str(of.family): of.node for of in self.topology.addresses}

    def assert_not_masqueraded(self) -> None:
        """The outside sees the pod's own address, in both families."""
        assert self._seen() == {str(of.family): of.pod for of in self.topology.addresses}

    def wrong_packets(self, settings: Settings = Settings()) -> list[str]:  # noqa: B008  it is frozen
        """Send packets of every class, by UDP and TCP; those that fared otherwise than the policy says."""
        leases = (subnet_env.parse(subnet_file_text().encode(), SUBNET_FILE),)
        sent = [
            self._send(of, case, transport, packet_cases.expect(settings, leases, of, case.packet))
            for of in self.topology.addresses
            for case in packet_cases.cases(of)
            for transport in case.transports
        ]
        return [str(found) for found in sent if not found.ok]

    def close(self) -> None:
        self.topology.close()

    def _seen(self) -> dict[str, Address]:
        return {str(of.family): self.outside_sees(of.family) for of in self.topology.addresses}

    def _send(self, of: Addresses, case: Case, transport: str, expected: packet_cases.Expectation) -> Sent:
        send = packets.udp if transport == "UDP" else packets.tcp
        hosts: dict[str, Netns] = {role: getattr(self.topology, role) for role in ("pod", "node", "remote", "outside")}
        try:
            seen = send(hosts[case.sender], hosts[case.receiver], case.packet, device=case.device)
        except packets.PacketError as error:
            return Sent(case, transport, expected, problem=str(error))
        return Sent(case, transport, expected, seen)
