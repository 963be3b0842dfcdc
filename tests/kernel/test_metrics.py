"""The metrics of a real daemon, scraped over HTTP while its rules are damaged and real packets pass them."""

from __future__ import annotations

import re
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from flanneld_masq.model import BackendName, Family, Packet
from flanneld_masq.selftest.packets import Wire

from ..common import eventually
from .conftest import Daemon, Node
from .test_daemon import damage

pytest.importorskip("prometheus_client")

PORT = 9817
METRICS = f"[metrics]\nport = {PORT}\n"
POD, WORLD = ip_address("10.244.1.5"), ip_address("192.0.2.9")
_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def wire(node: Node) -> Iterator[Wire]:
    """A wire whose node is the one that the daemon runs on. Its loopback interface is up."""
    with Wire(prefix="metrics-") as found:
        own, node.netns = node.netns, found.node
        yield found
        node.netns = own


def scrape(node: Node, host: str = "127.0.0.1") -> Samples:
    """Return the samples by name and labels; empty if nothing answers."""
    try:
        with node.entered(), urllib.request.urlopen(f"http://{host}:{PORT}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:  # refused, or reset because the port was closed meanwhile
        return {}
    found = {}
    for line in (line for line in text.splitlines() if not line.startswith("#")):
        match = _SAMPLE.fullmatch(line)
        assert match is not None, line
        found[match[1].removeprefix("flanneld_masq_"), frozenset(_LABEL.findall(match[2] or ""))] = float(match[3])
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return the value of a sample; -1.0 if there is none."""
    return samples.get((name, frozenset(labels.items())), -1.0)


def reached(node: Node, least: float, name: str, **labels: str) -> Samples:
    """Scrape until a sample is as large as that; return all samples. Five scrapes a second are answered."""
    found: Samples = {}

    def is_reached() -> bool:
        found.clear()
        found.update(scrape(node))
        return value(found, name, **labels) >= least

    eventually(is_reached)
    return found


@contextmanager
def running(node: Node, backend: BackendName, text: str = "") -> Iterator[Daemon]:
    node.configure(f"[reconcile]\nresync_seconds = 1\n{METRICS}{text}", backend=backend)
    with node.running() as daemon:
        daemon.reached("synced")
        yield daemon


def test_repairs_gaps_and_packets_are_counted(node: Node, wire: Wire, backend_name: BackendName) -> None:
    traffic = {"family": "ipv4", "backend": backend_name}
    with running(node, backend_name) as daemon:
        found = reached(node, 1, "state", state="synced")
        assert value(found, "repairs_total", family="ipv4") == 0
        assert value(found, "rules", family="ipv4", group="masquerade", backend=backend_name) == 5
        damage(node, Family.IPV4, backend_name)
        found = reached(node, 1, "repairs_total", family="ipv4")
        (author,) = {dict(labels)["author"] for name, labels in found if name == "repairs_by_author_total"}
        assert value(found, "repairs_by_author_total", **traffic, cause="missing", author=author) == 1
        assert 0 < value(found, "gap_seconds_total", family="ipv4") < 60
        assert value(found, "contentions_total", family="ipv4") == 0
        if backend_name != "nft":
            wire.observe(Packet(POD, WORLD))
            found = reached(node, 1, "masqueraded_packets_total", **traffic)
            assert value(found, "masqueraded_packets_total", **traffic) == 1
            assert value(found, "masqueraded_bytes_total", **traffic) > 28
        assert daemon.status()["troubles"] == []


def test_nothing_listens_until_a_reload_sets_a_port(node: Node, wire: Wire) -> None:
    with running(node, BackendName("nft")) as daemon:
        eventually(lambda: scrape(node))
        node.configure("", backend="nft")
        daemon.signal(signal.SIGHUP)
        eventually(lambda: not scrape(node))
        node.configure(METRICS, backend="nft")
        daemon.signal(signal.SIGHUP)
        eventually(lambda: scrape(node))
        assert daemon.stop() == 0
        assert not scrape(node)


def test_another_address_is_told_until_it_can_be_used(node: Node, wire: Wire) -> None:
    with running(node, BackendName("nft"), 'address = "192.0.2.77"\n') as daemon:
        (trouble,) = eventually(lambda: daemon.status()["troubles"])
        assert "metrics cannot be served on 192.0.2.77:9817: Cannot assign requested address" in trouble
        assert len(daemon.lines("ERROR", "192.0.2.77")) == 1
        node.tool("ip", "address", "add", "192.0.2.77/32", "dev", "lo")
        eventually(lambda: daemon.status()["troubles"] == [])
        assert scrape(node, "192.0.2.77")
        assert not scrape(node)


def test_the_textfile_has_the_same_metrics(node: Node, wire: Wire) -> None:
    textfile = node.directory / "metrics.prom"
    with running(node, BackendName("nft"), f'textfile = "{textfile}"\n') as daemon:
        eventually(lambda: scrape(node))
        scraped = {name for name, _ in scrape(node) if not name.startswith(("process_", "python_"))}
        written = set(re.findall(r"^flanneld_masq_(\w+)", textfile.read_text(), re.MULTILINE))
        assert scraped == written
        assert daemon.stop() == 0
