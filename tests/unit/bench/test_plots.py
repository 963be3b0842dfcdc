"""The pictures that the bench makes of what it measured."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from ...bench import plots
from ...bench.record import Record
from ...bench.scale import SIZES


def test_each_mark_stands_on_its_tick() -> None:
    record = Record()
    for subject, value in (("nft", 0.01), ("iptables-nft", 0.02), ("flannel nft", 3.0)):
        for size in SIZES:
            record.add("content-exit", subject, size, "s", [value, value * 2])
    chart = plots.latency(record)
    assert chart is not None
    drawing = ElementTree.fromstring(chart.render())
    space = "{http://www.w3.org/2000/svg}"
    labels = [f"{size:,}" for size in SIZES]
    ticks = {each.get("x") for each in drawing.iter(f"{space}text") if each.text in labels}
    marks = {each.get("cx") for each in drawing.iter(f"{space}circle")} - {None}
    legend = max(marks, key=lambda mark: float(str(mark)))
    assert marks - {legend} == ticks
    assert re.search("Mark: median. The line above it ends at the 99th percentile", chart.render())


def test_no_latency_is_drawn_of_rules_that_cannot_be_removed() -> None:
    record = Record()
    record.add("content-exit", "nft", 0, "s", [0.0] * 10)
    assert plots.latency(record) is None
