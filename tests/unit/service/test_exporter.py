"""Metrics go to plugins from the last status, and each failure of a plugin is logged once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from flanneld_masq import plugin_loader
from flanneld_masq.controller.status import State, Status
from flanneld_masq.errors import KernelError
from flanneld_masq.hookspecs import Metric, hookimpl
from flanneld_masq.model import Settings
from flanneld_masq.service import prometheus
from flanneld_masq.service.exporter import Exporter


class Plugin:
    """Keeps its arguments, and raises the error that a test sets."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.metrics: Callable[[], Sequence[Metric]] = tuple

    @hookimpl
    def flanneld_masq_export(self, settings: Settings, metrics: Callable[[], Sequence[Metric]]) -> None:
        self.metrics = metrics
        if self.error is not None:
            raise self.error

    @hookimpl
    def flanneld_masq_stop(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def plugin() -> Plugin:
    return Plugin()


@pytest.fixture
def exporter(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> Exporter:
    monkeypatch.setattr(plugin_loader, "_entry_points", lambda: iter(()))
    return Exporter(plugin_loader.load({"it": plugin}))


def test_the_metrics_are_those_of_the_last_status(exporter: Exporter, plugin: Plugin) -> None:
    assert exporter.follow(Settings()) == ()
    for state in (State.SYNCED, State.DEGRADED):
        status = Status(state, version="1.2.3")
        exporter.publish(status)
        assert plugin.metrics() == prometheus.metrics(status)


def test_a_failure_is_logged_once_and_stays_until_it_is_over(exporter: Exporter, plugin: Plugin) -> None:
    plugin.error = KernelError("binding", "no")
    (entry,) = exporter.follow(Settings())
    assert entry.event.kind == "plugin-failed"
    assert exporter.follow(Settings()) == ()
    assert exporter.failures == (entry.event.message,)
    plugin.error = None
    assert not exporter.follow(Settings())
    assert not exporter.failures


def test_a_failure_at_the_stop_is_logged(exporter: Exporter, plugin: Plugin) -> None:
    plugin.error = RuntimeError("no luck")
    (entry,) = exporter.stop()
    assert "no luck" in entry.event.message
