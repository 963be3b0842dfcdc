"""The daemon's metrics over HTTP, encoded by prometheus-client.

Off unless `metrics.port` names a port: the library, which takes 6 MB, and the server are loaded only then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable, Optional

from flanneld_masq.errors import MasqError
from flanneld_masq.hookspecs import Metric, hookimpl
from flanneld_masq.model import Settings

if TYPE_CHECKING:
    from flanneld_masq_prometheus.endpoint import Endpoint


class Exporter:
    """Has one endpoint at most, at the address of the settings."""

    def __init__(self) -> None:
        self._endpoint: Optional[Endpoint] = None

    @hookimpl
    def flanneld_masq_export(self, settings: Settings, metrics: Callable[[], Sequence[Metric]]) -> None:
        place = (settings.metrics_address, settings.metrics_port)
        if self._endpoint is not None and self._endpoint.place == place:
            if self._endpoint.failure:
                raise MasqError(self._endpoint.failure)
            return
        self._close()
        if settings.metrics_port:
            from flanneld_masq_prometheus.endpoint import Endpoint

            self._endpoint = Endpoint(*place, metrics)

    @hookimpl
    def flanneld_masq_stop(self) -> None:
        endpoint = self._close()
        if endpoint is not None:
            endpoint.join()

    def _close(self) -> Optional[Endpoint]:
        """Close the endpoint and return it; None if there is none."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            endpoint.close()
        return endpoint


PLUGIN = Exporter()
