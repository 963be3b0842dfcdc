"""Metrics over HTTP: what is asked for, what is answered, and that no client can hold the others up."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address

import pytest
from flanneld_masq_prometheus import Exporter, endpoint, requests
from flanneld_masq_prometheus.endpoint import Endpoint, RateLimit
from flanneld_masq_prometheus.requests import Refused, Request

from flanneld_masq.errors import MasqError
from flanneld_masq.hookspecs import Metric, MetricKind, Sample
from flanneld_masq.model import LOOPBACK, Settings

from ...common import eventually, patience, unable

METRICS = (
    Metric("flanneld_masq_state", MetricKind.GAUGE, "The state.", (Sample(1, (("state", 'a "b"\\'),)),)),
    Metric("flanneld_masq_repairs_total", MetricKind.COUNTER, "Repairs.", (Sample(2.0, (("family", "ipv4"),)),)),
    Metric("flanneld_masq_none_total", MetricKind.COUNTER, "No sample."),
)
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n"
BLANKS = b"GET /metrics HTTP/1.1\r\naccept:" + b" " * 8000 + b"\x01\r\n\r\n"
OPEN_METRICS = SCRAPE.replace(b"\r\n\r\n", b"\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n")


@pytest.fixture(autouse=True)
def library() -> None:
    if not endpoint.importlib.util.find_spec(endpoint.LIBRARY):  # type: ignore[attr-defined]
        unable("prometheus-client is not installed")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(endpoint, "ANSWERS_PER_SECOND", 1000.0)
    found = Endpoint(LOOPBACK, 0, lambda: METRICS)
    yield found
    found.close()


def connected(to: Endpoint) -> socket.socket:
    return socket.create_connection((str(to.place[0]), to.port), timeout=patience(10))


def received(client: socket.socket) -> bytes:
    """Return everything until the server closes."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def answer(to: Endpoint, data: bytes = SCRAPE) -> tuple[str, str, str]:
    """Return status, type of the content, and body."""
    with closing(connected(to)) as client:
        client.sendall(data)
        head, _, body = received(client).partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    return status, dict(field.split(": ", 1) for field in fields)["Content-Type"], body.decode()


class TestRequests:
    @pytest.mark.parametrize(
        ("data", "wanted"),
        [
            (SCRAPE, Request()),
            (b"GET /metrics?a=b HTTP/1.0\n\n", Request()),
            (b"HEAD /metrics HTTP/1.1\r\n\r\n", Request(body_wanted=False)),
            (b"GET /metrics HTTP/1.1\r\nACCEPT:text/plain \r\nAccept: */*\r\n\r\n", Request("text/plain,*/*")),
            (BLANKS, Request()),  # in linear time: the pattern of a value must not match its blanks in several ways
        ],
    )
    def test_it_is_read(self, data: bytes, wanted: Request) -> None:
        assert requests.is_whole(data, 1)
        assert requests.parse(data) == wanted

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", "404"),
            (b"GET /metrics/../x HTTP/1.1\r\n\r\n", "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "400"),
            (b"GET /metrics HTTP/2\r\n\r\n", "400"),
            (b"\r\n\r\n", "400"),
            (b"", "431"),
            (b"GET /metrics HTTP/1.1\r\n", "431"),
            (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * requests.MAX_BYTES + b"\r\n\r\n", "431"),
        ],
    )
    def test_it_is_refused(self, data: bytes, status: str) -> None:
        with pytest.raises(Refused, match=status):
            requests.parse(data)


class TestEndpoint:
    def test_it_serves_the_text_format(self, served: Endpoint) -> None:
        status, kind, body = answer(served)
        assert (status, kind.split(";")[0]) == ("HTTP/1.1 200 OK", "text/plain")
        assert 'flanneld_masq_state{state="a \\"b\\"\\\\"} 1.0\n' in body
        assert '# TYPE flanneld_masq_repairs_total counter\nflanneld_masq_repairs_total{family="ipv4"} 2.0\n' in body
        assert "# TYPE flanneld_masq_none_total counter\n" in body
        assert re.search(r"^process_resident_memory_bytes \d", body, re.MULTILINE)

    def test_it_serves_open_metrics(self, served: Endpoint) -> None:
        status, kind, body = answer(served, OPEN_METRICS)
        assert (status, kind.split(";")[0]) == ("HTTP/1.1 200 OK", "application/openmetrics-text")
        assert "# TYPE flanneld_masq_repairs counter\n" in body
        assert body.endswith("# EOF\n")

    def test_other_requests_are_refused(self, served: Endpoint) -> None:
        assert answer(served, b"GET / HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 404 Not Found"
        assert answer(served, b"\x16\x03\x01\r\n\r\n")[0] == "HTTP/1.1 400 Bad Request"
        assert answer(served, SCRAPE.replace(b"GET", b"HEAD"))[2] == ""

    def test_silent_clients_do_not_hold_a_scrape_up(self, served: Endpoint) -> None:
        silent = [connected(served) for _ in range(2 * endpoint.MAX_CONNECTIONS)]
        try:
            assert answer(served)[0] == "HTTP/1.1 200 OK"
            assert silent[0].recv(1) == b"", "the oldest connection was dropped"
        finally:
            for client in silent:
                client.close()

    def test_a_client_that_sends_in_many_pieces_is_refused(self, served: Endpoint) -> None:
        with closing(connected(served)) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with pytest.raises(OSError):
                eventually(lambda: client.send(b"X") == 0)

    def test_a_late_client_is_dropped(self, served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint, "REQUEST_SECONDS", 0.05)
        with closing(connected(served)) as client:
            client.sendall(b"GET /metrics")
            assert received(client) == b""

    def test_an_error_is_answered_and_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        def fail() -> tuple[Metric, ...]:
            raise RuntimeError("a bug")

        with closing(Endpoint(LOOPBACK, 0, fail)) as broken:
            assert answer(broken)[0] == "HTTP/1.1 500 Internal Server Error"
            assert "metrics cannot be encoded" in caplog.text
            assert broken.failure == ""

    def test_its_thread_ends_with_it(self) -> None:
        before = threading.enumerate()  # the thread of another test may be about to end
        ended = Endpoint(LOOPBACK, 0, lambda: METRICS)
        ended.close()
        ended.join()
        assert [thread.name for thread in threading.enumerate() if thread not in before] == []
        assert not ended.failure

    def test_its_port_is_free_at_once(self) -> None:
        first = Endpoint(LOOPBACK, 0, lambda: METRICS)
        first.close()  # its thread may still load the library
        with closing(Endpoint(LOOPBACK, first.port, lambda: METRICS)) as second:
            assert answer(second)[0] == "HTTP/1.1 200 OK"
        first.join()
        assert not first.failure

    def test_ipv6(self) -> None:
        try:
            found = Endpoint(ip_address("::1"), 0, lambda: METRICS)
        except MasqError as error:
            unable(str(error))
        with closing(found):
            assert answer(found)[0] == "HTTP/1.1 200 OK"


def test_the_rate_is_limited() -> None:
    now = 0.0
    limit = RateLimit(2.0, 3, lambda: now)
    for _ in range(3):
        assert limit.wait() == 0.0
        limit.take()
    assert limit.wait() == 0.5
    now = 0.5
    assert limit.wait() == 0.0
    now = 1000.0
    limit.wait()
    for _ in range(3):
        limit.take()
    assert limit.wait() > 0.0, "no more than the burst is saved up"


def test_a_client_that_asks_without_end_has_to_wait() -> None:
    more = 3
    with closing(Endpoint(LOOPBACK, 0, lambda: METRICS)) as limited:
        started = time.monotonic()
        for _ in range(endpoint.BURST + more):
            assert answer(limited)[0] == "HTTP/1.1 200 OK"
        assert time.monotonic() - started >= (more - 1) / endpoint.ANSWERS_PER_SECOND


def test_nothing_of_it_is_loaded_without_a_port() -> None:
    program = (
        "import sys; from flanneld_masq import plugin_loader; from flanneld_masq.model import Settings\n"
        "plugins = plugin_loader.load(); assert plugins.export(Settings(), tuple) == ()\n"
        "assert 'flanneld_masq_prometheus' in sys.modules\n"
        "print({name.split('.')[0] for name in sys.modules} & {'prometheus_client'} or '',\n"
        "      'flanneld_masq_prometheus.endpoint' in sys.modules)"
    )
    run = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, timeout=patience(30))
    assert run.stdout.split() == ["False"], run.stdout + run.stderr


class TestExporter:
    def test_no_port_opens_nothing(self) -> None:
        exporter = Exporter()
        exporter.flanneld_masq_export(Settings(), lambda: METRICS)
        assert exporter._endpoint is None
        exporter.flanneld_masq_stop()

    def test_it_follows_the_settings(self) -> None:
        exporter, settings = Exporter(), Settings(metrics_port=_free_port())
        exporter.flanneld_masq_export(settings, lambda: METRICS)
        first = exporter._endpoint
        exporter.flanneld_masq_export(settings, lambda: METRICS)
        assert first is not None
        assert exporter._endpoint is first
        assert answer(first)[0] == "HTTP/1.1 200 OK"
        exporter.flanneld_masq_export(replace(settings, metrics_port=0), lambda: METRICS)
        assert exporter._endpoint is None
        exporter.flanneld_masq_export(settings, lambda: METRICS)
        exporter.flanneld_masq_stop()

    def test_a_port_in_use_is_an_error_until_it_is_free(self) -> None:
        exporter = Exporter()
        with socket.create_server((str(LOOPBACK), 0)) as other:
            settings = Settings(metrics_port=other.getsockname()[1])
            for _ in range(2):
                with pytest.raises(
                    MasqError, match=r"metrics cannot be served on 127\.0\.0\.1:\d+: Address already in"
                ):
                    exporter.flanneld_masq_export(settings, lambda: METRICS)
        exporter.flanneld_masq_export(settings, lambda: METRICS)
        exporter.flanneld_masq_stop()

    def test_a_missing_library_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint, "LIBRARY", "no_such_library")
        with pytest.raises(MasqError, match="install python3-prometheus-client"):
            Exporter().flanneld_masq_export(Settings(metrics_port=1), lambda: METRICS)

    def test_a_thread_that_ended_stays_an_error(self) -> None:
        exporter, settings = Exporter(), Settings(metrics_port=_free_port())
        exporter.flanneld_masq_export(settings, lambda: METRICS)
        assert exporter._endpoint is not None
        exporter._endpoint.failure = "it ended"
        with pytest.raises(MasqError, match="it ended"):
            exporter.flanneld_masq_export(settings, lambda: METRICS)
        exporter.flanneld_masq_stop()


def _free_port() -> int:
    with socket.create_server((str(LOOPBACK), 0)) as found:
        return int(found.getsockname()[1])
