"""Runs the self-test: the real daemon on this kernel and these tools, in namespaces that end with the process.

Each backend gets a topology and a scenario of its own; this module orders them and prints the results.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Optional, TextIO

from flanneld_masq.errors import CommandError, ConfigError
from flanneld_masq.model import Family, Probe, Protection
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest import report
from flanneld_masq.selftest.daemon import Daemon, program
from flanneld_masq.selftest.netns import DIRECTORY, enter
from flanneld_masq.selftest.report import Result
from flanneld_masq.selftest.scenario import Scenario
from flanneld_masq.selftest.speed import Limits, PatientRunner, measure
from flanneld_masq.selftest.topology import Addresses, Topology, default_addresses


def main(backends: Optional[Sequence[str]], families: Collection[Family], json_output: bool, out: TextIO) -> int:
    """Test these backends, or with None every one that a plugin offers. Returns the exit status.

    The process must have a single thread; it stays in private namespaces afterwards.
    """
    progress = _Progress(sys.stderr if json_output else out)
    enter()
    speed = measure(program(), ProcessRunner())
    run = PatientRunner(speed.limits.factor)
    versions = _versions(run)
    progress.line(", ".join(f"{name} {version}" for name, version in versions.items()))
    progress.line(f"speed: {speed}")
    addresses = tuple(entry for entry in default_addresses() if entry.family in families)
    results = _Selftest(addresses, run, speed.limits, progress).run(backends)
    if json_output:
        document = {
            "ok": report.passed(results),
            "versions": versions,
            "speed": speed.document(),
            "results": [result.document() for result in results],
        }
        print(json.dumps(document, indent=2), file=out)
    else:
        progress.line("")
        for line in report.table(results):
            progress.line(line)
    return 0 if report.passed(results) else 1


def _versions(run: ProcessRunner) -> dict[str, str]:
    versions = {"kernel": os.uname().release}
    for name in ("nft", "iptables", "iptables-legacy"):
        try:
            words = run((name, "--version")).stdout.split()
        except CommandError:
            versions[name] = "not there"
        else:
            versions[name] = words[1].lstrip("v") if len(words) > 1 else "unknown"
    return versions


class _Progress:
    """Prints a line for each step, with colours on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colours = stream.isatty() and "NO_COLOR" not in os.environ

    def line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def verdict(self, what: str, ok: bool, detail: str) -> None:
        word = "ok" if ok else "FAILS"
        if self._colours:
            word = f"\033[{32 if ok else 31}m{word}\033[0m"
        self.line(f"{what}: {word}, {detail}" if detail else f"{what}: {word}")


class _Selftest:
    def __init__(
        self, addresses: tuple[Addresses, ...], run: ProcessRunner, limits: Limits, progress: _Progress
    ) -> None:
        self._addresses = addresses
        self._families = tuple(entry.family for entry in addresses)
        self._run = run
        self._limits = limits
        self._progress = progress

    def run(self, names: Optional[Sequence[str]]) -> tuple[Result, ...]:
        probes = self._probes()
        results: list[Result] = []
        for name in dict.fromkeys(probes) if names is None else names:
            if name not in probes:
                raise ConfigError(
                    "command line", "--backend", f"no plugin offers {name}; there are {', '.join(probes)}"
                )
            results += self._results(name, probes[name])
        return tuple(results)

    def _results(self, name: str, probes: Mapping[Family, Probe]) -> list[Result]:
        """Test one backend with the families that it can be used for."""
        results = {family: Result(name, family, probes[family]) for family in self._families}
        usable = tuple(entry for entry in self._addresses if probes[entry.family].usable)
        if usable:
            with Topology(self._addresses, run=self._run) as topology:
                verdict = self._progress.verdict
                scenario = Scenario(name, probes, usable, topology, self._run, self._limits, verdict)
                results.update(scenario.results())
        return list(results.values())

    def _probes(self) -> dict[str, dict[Family, Probe]]:
        """Ask `flanneld-masq backends` in a namespace like those of the tests; return the probes by backend."""
        with Topology(self._addresses, run=self._run) as topology:
            daemon = Daemon(topology.node, DIRECTORY / "backends", self._run, self._limits)
            daemon.configure("auto")
            document = json.loads(daemon.command("backends", "--json"))
        probes: dict[str, dict[Family, Probe]] = {}
        for family in self._families:
            for backend in document["families"][str(family)]["backends"]:
                probes.setdefault(backend["name"], {})[family] = Probe(
                    backend["usable"],
                    backend["reason"],
                    backend["remedy"],
                    tuple(backend["versions"]),
                    protection=None if backend["protection"] is None else Protection(backend["protection"]),
                )
        return probes
