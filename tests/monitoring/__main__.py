"""`python -m tests.monitoring`: has promtool check the alerts and the metrics, and Prometheus answer the dashboard.

Prints what each program says. Exit status 1 if anything is wrong. The picture goes to build/monitoring, with --publish
to docs/monitoring.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from flanneld_masq.errors import MasqError
from flanneld_masq.selftest import netns

from ..bench.clock import until
from ..bench.site import Site
from . import dashboard, picture, scene
from .dashboard import Panel
from .picture import Plot
from .server import Prometheus, program

OUTPUT = Path(__file__).parents[2] / "build" / "monitoring"
PICTURE = "dashboard.svg"
INTERVAL = "15s"  # stands for $__rate_interval
QUIET = frozenset({"Problems"})  # panels that are empty while all is well


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.monitoring", description="Check docs/monitoring against real data.")
    parser.add_argument("--publish", action="store_true", help="write the picture into docs/monitoring")
    options = parser.parse_args(argv)
    try:
        _promtool("check", "rules", str(dashboard.RULES))
        _promtool("test", "rules", str(dashboard.RULES_TEST))
        netns.enter()
        plots, alerts = _measured()
    except MasqError as error:
        print(f"monitoring: {error}", file=sys.stderr)
        return 1
    target = (dashboard.DIRECTORY if options.publish else OUTPUT) / PICTURE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(picture.render(plots, scene.SECONDS, "The dashboard, with real data", scene.WHAT_HAPPENS))
    print(f"alerts that were pending or fired: {', '.join(sorted(alerts))}\nwritten: {target}")
    empty = {plot.title for plot in plots if not plot.series} - QUIET
    if empty:
        print(f"monitoring: no data for {', '.join(sorted(empty))}", file=sys.stderr)
    return int(bool(empty))


def _measured() -> tuple[list[Plot], set[str]]:
    """Play the scene, and ask each query of the dashboard; also which alerts it made."""
    with scene.node() as (site, wire), Prometheus(site, scene.PORT) as prometheus:
        site.start()
        site.until_synced()
        until(prometheus.ready, "Prometheus answers", every=0.1)
        _check_metrics(site)
        start = time.time()
        scene.Scene(site, wire).play()
        end = time.time()
        plots = [_plot(prometheus, panel, start, end) for panel in dashboard.panels()]
        alerts = {one.labels["alertname"] for one in prometheus.ask("ALERTS", start, end)}
    return plots, alerts


def _plot(prometheus: Prometheus, panel: Panel, start: float, end: float) -> Plot:
    series = {}
    for query in panel.queries:
        scene.progress(f"{panel.title}: {query.expression}")
        for one in prometheus.ask(query.filled(instance=".*", __rate_interval=INTERVAL), start, end):
            series[query.named(one.labels)] = tuple((at - start, value) for at, value in one.values)
    return Plot(panel.title, panel.kind, panel.unit, series)


def _check_metrics(site: Site) -> None:
    """Let promtool say if the endpoint follows the conventions of Prometheus."""
    with site.entered(), urllib.request.urlopen(f"http://127.0.0.1:{scene.PORT}/metrics", timeout=30) as answer:
        text = answer.read()
    _promtool("check", "metrics", data=text)


def _promtool(*arguments: str, data: bytes = b"") -> None:
    argv = (program("promtool"), *arguments)
    done = subprocess.run(argv, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    print(f"$ promtool {' '.join(arguments)}\n{done.stdout.decode()}", flush=True)
    if done.returncode:
        raise MasqError(f"promtool {arguments[0]} {arguments[1]} ended with status {done.returncode}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
