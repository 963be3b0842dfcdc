"""Log entries of the daemon for what it reads: subnet files, net-conf.json and the answers of plugins. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from flanneld_masq.controller.log_entry import LogEntry, notice
from flanneld_masq.errors import PluginError
from flanneld_masq.hookspecs import Event
from flanneld_masq.inputs.leases import Change, News
from flanneld_masq.model import Lease
from flanneld_masq.service.desired_state import Refreshed


def input_entries(refreshed: Refreshed, leases: tuple[Lease, ...]) -> Iterator[LogEntry]:
    """Log what a refresh read. `leases` are the good ones now."""
    if refreshed.net_conf:
        yield notice(refreshed.net_conf, logging.WARNING, once=True)
    for item in refreshed.news:
        lease = next((lease for lease in leases if lease.path == item.path), None)
        yield _news_entry(item)
        if item.change is Change.ACCEPTED and lease is not None and lease.ipmasq:
            message = f"{item.path} says FLANNEL_IPMASQ=true: flanneld was started with --ip-masq and masquerades too"
            yield notice(message, once=True)


def plugin_entries(failures: tuple[PluginError, ...]) -> Iterator[LogEntry]:
    """Log the failures of plugins, each once."""
    return (LogEntry(Event("plugin-failed", str(failure)), logging.ERROR, once=True) for failure in failures)


def _news_entry(item: News) -> LogEntry:
    if item.change is Change.REFUSED:
        return LogEntry(Event("lease-refused", item.message), logging.ERROR)
    if item.change is Change.VANISHED:
        return LogEntry(Event("waiting", item.message), logging.WARNING if item.kept else logging.INFO)
    return LogEntry(Event("lease-changed", item.message))
