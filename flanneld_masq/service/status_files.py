"""Writes the daemon's status to status.json, and to the metrics file if the settings name one."""

from __future__ import annotations

import contextlib
from pathlib import Path

from flanneld_masq.controller import authors
from flanneld_masq.controller.status import Status, stopped, to_json
from flanneld_masq.errors import MasqError, StateError
from flanneld_masq.model import Family
from flanneld_masq.process import ExitHook
from flanneld_masq.service import prometheus
from flanneld_masq.state_directory import StateDirectory, replace_file


class MetricsFile:
    """The file for node_exporter's textfile collector.

    A process that is killed cannot say that it ended. So the text that then holds is kept ready beside the file, and
    a waiting shell moves it into place when the process ends without `close`.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._hook: ExitHook | None = None

    def write(self, path: str, status: Status) -> None:
        """Replace the file. It says that the daemon stopped if the process ends. Raises StateError, CommandError."""
        if self._path != Path(path):
            self.remove()
        self._path = Path(path)
        ready = ready_path(self._path)
        replace_file(self._path, prometheus.exposition(status))
        replace_file(ready, prometheus.exposition(stopped(status)))
        if self._hook is not None and not self._hook.waits:
            self._hook.cancel()
            self._hook = None
        if self._hook is None:
            self._hook = ExitHook(("mv", "-f", "--", str(ready), str(self._path)))

    def remove(self) -> None:
        """Remove the file: the settings no longer name it, so nothing would keep it up to date."""
        path = self._path
        self.close()
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink()

    def close(self) -> None:
        """Leave the file as it is, also after the end of the process."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                ready_path(self._path).unlink()
        if self._hook is not None:  # last: a process that is killed in between leaves nothing beside the file
            self._hook.cancel()
        self._hook = self._path = None


def ready_path(path: Path) -> Path:
    """Return where the text for the end of the daemon is kept. node_exporter reads only names that end in .prom."""
    return path.with_name(f".{path.name}.stopped")


def write_stopped(path: Path, status: Status) -> None:
    """Replace the metrics by those of a daemon that stopped, for one that was killed. Raises StateError."""
    replace_file(path, prometheus.exposition(stopped(status)))
    ready_path(path).unlink(missing_ok=True)


class StatusFiles:
    """Both files. A status is written if anything in it is new, or if the written time of a verification is old."""

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory
        self._metrics = MetricsFile()
        self._metrics_failure = ""
        self._written: Status | None = None
        self._told: tuple[str, ...] = ()  # the failures at the last call of `news`

    @property
    def failures(self) -> tuple[str, ...]:
        """Reasons why the last write of a file failed, or why the state directory cannot be used."""
        return tuple(filter(None, (self._metrics_failure, self._directory.trouble)))

    def news(self) -> tuple[tuple[str, ...], bool]:
        """Return the failures that are new since the last call, and whether all have passed meanwhile."""
        before, self._told = self._told, self.failures
        return tuple(failure for failure in self._told if failure not in before), bool(before) and not self._told

    def is_due(self, status: Status, resync_seconds: float) -> bool:
        """Return True if the status must be written. What could not be written is always due."""
        if self._metrics_failure or status != self._written:
            return True
        return any(
            _age(self._written, status, family) >= resync_seconds / 2
            for family in status.families  # half, because the time of a pass varies a little
        )

    def write_again(self) -> None:
        """Have the next status written in any case: the settings may want it in another place."""
        self._written = None

    def write_metrics(self, status: Status, textfile: str) -> None:
        """Write the metrics, or remove them if `textfile` is empty. `failures` has the problem, if any."""
        try:
            if textfile:
                self._metrics.write(textfile, status)
            else:
                self._metrics.remove()
        except MasqError as error:
            self._metrics_failure = str(error)
        else:
            self._metrics_failure = ""

    def write_status(self, status: Status) -> None:
        """Write status.json, and what root alone may know of it. `failures` has the problem, if any."""
        with contextlib.suppress(StateError):
            self._directory.write_authors(authors.to_json(status))
        with contextlib.suppress(StateError):
            self._directory.write_status(to_json(status))
            self._written = status

    def close(self) -> None:
        self._metrics.close()


def _age(before: Status, now: Status, family: Family) -> float:
    """Return how many seconds the verification in one status is older than that in another."""
    old = before.families[family].verified if family in before.families else None
    new = now.families[family].verified
    if new is None:
        return 0.0
    return float("inf") if old is None else abs((new - old).total_seconds())
