"""Debian's Prometheus in the namespace of a node, scraping the daemon there."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from flanneld_masq.errors import MasqError
from flanneld_masq.model import SLOTS

from ..bench.site import Site
from .dashboard import RULES

UNPACKED = Path(__file__).parents[2] / "build" / "monitoring" / "usr" / "bin"
_ADDRESS = "127.0.0.1:9090"
_CONFIG = """\
global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files:
  - {rules}
scrape_configs:
  - job_name: flanneld-masq
    static_configs:
      - targets: ["127.0.0.1:{port}"]
        labels:
          instance: node-1
"""


@dataclass(frozen=True, **SLOTS)
class Series:
    """A series of an answer: its labels, and its values by Unix time."""

    labels: dict[str, str]
    values: tuple[tuple[float, float], ...]


def program(name: str) -> str:
    """Return the path of a program of the package. Raises MasqError if it is missing."""
    found = shutil.which(name) or shutil.which(name, path=str(UNPACKED))
    if found is None:
        raise MasqError(f"{name} is missing; `scripts/setup-packaging monitoring` fetches it")
    return found


class Prometheus:
    """A server that scrapes every second. It ends with the context."""

    def __init__(self, site: Site, port: int) -> None:
        self._site = site
        self._config = site.directory / "prometheus.yml"
        self._config.write_text(_CONFIG.format(rules=RULES, port=port))
        self._process: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> Prometheus:
        data = self._site.directory / "prometheus"
        argv = (
            program("prometheus"),
            f"--config.file={self._config}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address={_ADDRESS}",
            "--log.level=warn",
        )
        with (self._site.directory / "prometheus.log").open("ab") as log:
            self._process = self._site.spawn(argv, log)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ready(self) -> bool:
        try:
            return bool(self._get("/api/v1/query", query="up"))
        except OSError:
            return False

    def ask(self, query: str, start: float, end: float) -> list[Series]:
        """Return the series of a query from `start` to `end` (Unix times), a value each second."""
        found = self._get("/api/v1/query_range", query=query, start=f"{start}", end=f"{end}", step="1")
        return [Series(one["metric"], tuple((time, float(value)) for time, value in one["values"])) for one in found]

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://{_ADDRESS}{path}?{urllib.parse.urlencode(parameters)}"
        with self._site.entered(), urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]["result"]
