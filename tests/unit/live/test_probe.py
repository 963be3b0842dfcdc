"""The verdict on a flow, and on all of them; tests/kernel/test_probe.py sends the packets."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from flanneld_masq.cli.probe import exit_status
from flanneld_masq.errors import CommandError, MasqError
from flanneld_masq.live import ip_json
from flanneld_masq.live.probe import Class, Outcome, Result, judged
from flanneld_masq.live.throwaway import find_bridge
from flanneld_masq.model import Family, Packet
from flanneld_masq.process import Completed, ProcessRunner

POD, WORLD, NODE = map(ip_address, ("10.244.1.5", "192.0.2.7", "192.0.2.1"))
SUBNET = ip_network("10.244.1.0/24")
PACKET = Packet(POD, WORLD)


class Printing(ProcessRunner):
    """`ip` prints one text for devices with addresses, and another for the ports of a bridge."""

    def __init__(self, devices: object, ports: object = ()) -> None:
        super().__init__(())
        self._printed = {"addr": devices, "link": ports}

    def __call__(
        self, argv: tuple[str, ...], *, executable: str | None = None, stdin: str = "", timeout: float = 0.0
    ) -> Completed:
        found = next(value for key, value in self._printed.items() if key in argv)
        return Completed(argv, found if isinstance(found, str) else json.dumps(found), "")


def bridge(name: str, *addresses: str) -> dict[str, Any]:
    return {"ifname": name, "mtu": 1450, "addr_info": [{"local": address} for address in addresses]}


def port(name: str, kind: str) -> dict[str, Any]:
    return {"ifname": name, "linkinfo": {"info_kind": kind}}


@pytest.mark.parametrize(
    ("kind", "masquerade", "arrived", "outcome"),
    [
        (Class.WORLD, True, NODE, Outcome.AS_WANTED),
        (Class.WORLD, True, POD, Outcome.NOT_AS_WANTED),
        (Class.WORLD, False, POD, Outcome.AS_WANTED),
        (Class.WORLD, True, None, Outcome.NOT_AS_WANTED),
        (Class.REMOTE_POD, False, NODE, Outcome.NOT_AS_WANTED),
        (Class.NODE, False, None, Outcome.REFUSED),
        (Class.NODE, False, NODE, Outcome.NOT_AS_WANTED),
    ],
)
def test_the_outcome_of_a_flow(kind: Class, masquerade: bool, arrived: Any, outcome: Outcome) -> None:
    assert judged(kind, PACKET, masquerade, arrived) is outcome


@pytest.mark.parametrize(
    ("outcomes", "errors", "asked", "status"),
    [
        ([Outcome.AS_WANTED], 0, False, 0),
        ([Outcome.AS_WANTED, Outcome.REFUSED], 0, False, 0),
        ([Outcome.AS_WANTED, Outcome.UNKNOWN], 0, False, 0),
        ([Outcome.AS_WANTED, Outcome.UNKNOWN], 0, True, 2),
        ([Outcome.AS_WANTED], 1, False, 2),
        ([Outcome.NOT_AS_WANTED, Outcome.AS_WANTED], 1, False, 1),
        ([Outcome.UNKNOWN], 0, False, 2),
        ([], 1, False, 2),
    ],
)
def test_the_exit_status(outcomes: list[Outcome], errors: int, asked: bool, status: int) -> None:
    results = [Result(Class.WORLD, Family.IPV4, outcome) for outcome in outcomes]
    assert exit_status(results, [MasqError("x")] * errors, asked=asked) == status


def test_the_bridge_is_the_one_in_the_pod_subnet() -> None:
    devices = [{}, bridge("br0", "192.0.2.1"), bridge("cni0", "fe80::1", "10.244.1.1")]
    found = find_bridge(Printing(devices, [port("veth1", "veth")]), SUBNET)
    assert (found.name, found.gateway, found.mtu) == ("cni0", ip_address("10.244.1.1"), 1450)


def test_no_bridge_says_what_to_do() -> None:
    with pytest.raises(MasqError, match="when the first pod starts here"):
        find_bridge(Printing([bridge("br0", "192.0.2.1")]), SUBNET)


@pytest.mark.parametrize("kind", ["", "tun", "vlan", "vxlan", "bond"])
def test_a_port_that_may_lead_to_other_hosts_is_refused(kind: str) -> None:
    with pytest.raises(MasqError, match="eth1 is a port of cni0 and may lead to other hosts"):
        find_bridge(Printing([bridge("cni0", "10.244.1.1")], [port("veth1", "veth"), port("eth1", kind)]), SUBNET)


@pytest.mark.parametrize("printed", ["{", '{"a": 1}', "[" * 100_000])
def test_what_is_no_list_is_an_error(printed: str) -> None:
    with pytest.raises(CommandError):
        ip_json.rows(Printing(printed), "addr")


def test_values_of_other_types_are_left_out() -> None:
    row = {"a": 1, "b": {"c": "text"}, "d": [{"e": 1}, 2], "f": "10.0.0.0/33"}
    assert (ip_json.text(row, "a"), ip_json.text(row, "b", "c"), ip_json.text(row, "a", "c")) == ("", "text", "")
    assert (ip_json.number(row, "a"), ip_json.number(row, "b"), list(ip_json.rows_in(row, "d"))) == (1, 0, [{"e": 1}])
    routes = [{"dst": "default"}, {"dst": "10.0.0.0/33"}, {"dst": "10.1.2.3"}, {"dst": "ff00::/8", "type": "multicast"}]
    assert list(map(str, ip_json.destinations(routes))) == ["10.1.2.3/32"]
