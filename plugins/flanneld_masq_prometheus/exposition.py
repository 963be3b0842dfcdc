"""Encodes metrics by prometheus-client, with those of the process: memory, CPU time, open files.

Its modules are imported here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Callable, cast

import prometheus_client
from prometheus_client import core
from prometheus_client.exposition import choose_encoder

from flanneld_masq.hookspecs import Metric, MetricKind


class Exposition:
    """All metrics of the process in one document."""

    def __init__(self, metrics: Callable[[], Sequence[Metric]]) -> None:
        self._metrics = metrics
        self._registry = prometheus_client.CollectorRegistry(auto_describe=False)
        self._registry.register(cast("Any", self))
        prometheus_client.ProcessCollector(registry=self._registry)

    def encode(self, accept: str) -> tuple[bytes, str]:
        """Return the document in a format that the client accepts, and the type of its content."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type

    def collect(self) -> Iterator[Any]:
        """Yield the metrics as prometheus-client wants them: it calls this."""
        return map(_converted, self._metrics())


def _converted(metric: Metric) -> Any:
    kinds = {MetricKind.GAUGE: core.GaugeMetricFamily, MetricKind.COUNTER: core.CounterMetricFamily}
    names = [name for name, _ in metric.samples[0].labels] if metric.samples else []
    family = kinds[metric.kind](metric.name, metric.help, labels=names)
    for sample in metric.samples:
        family.add_metric([text for _, text in sample.labels], sample.value)
    return family
