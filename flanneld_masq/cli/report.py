"""The command `report`: one archive of what is known of this node, for a bug report."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path

from flanneld_masq import __version__
from flanneld_masq.cli import doctor, main
from flanneld_masq.cli.output import print_json
from flanneld_masq.cli.session import Session
from flanneld_masq.errors import ConfigError
from flanneld_masq.inputs import config_files
from flanneld_masq.inputs.path_patterns import expand
from flanneld_masq.packet_path import snapshot as snapshots
from flanneld_masq.packet_path.collect import collect
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.flows import FlowResult, flows
from flanneld_masq.packet_path.snapshot import Snapshot
from flanneld_masq.printable import one_line
from flanneld_masq.process import ProcessRunner
from flanneld_masq.report import gather
from flanneld_masq.report.archive import Archive, new_file
from flanneld_masq.report.flow_data import flow_data
from flanneld_masq.report.gather import Gatherer
from flanneld_masq.report.page import of_flow, page
from flanneld_masq.service.desired_state import OnError

ISSUES = "https://github.com/flanneld-masq/flanneld-masq/issues"
PROBLEMS = "problems.txt"
_MAX_SUBNET_FILES = 32
_MAX_DROP_INS = 32
_Source = tuple[str, Callable[[], str]]  # the name of a part, and what makes it
_ANSWERS = (
    ("status.json", ("status", "--json")),
    ("backends.json", ("backends", "--json")),
)


def report(options: argparse.Namespace) -> int:
    """Write the archive; a part that cannot be had does not end that. Raises MasqError if no file can be written."""
    session = Session.despite(options)
    now = datetime.now(timezone.utc)
    name = f"flanneld-masq-report-{_host()}-{now:%Y%m%dT%H%M%SZ}"
    path = Path(options.file or f"{name}.tar.gz")
    names: list[str] = []
    gatherer = Gatherer(ProcessRunner())
    with new_file(path) as file:
        archive = Archive(file, name)
        made = _Report(gatherer, session, options, f"{_host()}, {now:%Y-%m-%d %H:%M:%S} UTC")
        for member, text in made.parts():
            archive.add(member, text)
            names.append(member)
        archive.close()
    if options.json:
        print_json({"file": str(path), "parts": names, "problems": gatherer.problems})
    else:
        print("\n".join(_told(path, names, gatherer.problems)))
    return 0


def _told(path: Path, names: list[str], problems: list[str]) -> Iterator[str]:
    yield f"{path} holds {', '.join(names)}"
    if problems:
        yield f"{len(problems)} things could not be read; {PROBLEMS} says which"
    yield "Read it before you send it: it holds addresses, rules with their comments, and names of programs and units."
    yield f"Values that look like secrets, and command lines, are left out. tar -xzf {path}; node.html shows the flows."
    yield f"Attach it to an issue: {ISSUES}"
    yield f"Report a vulnerability privately instead: {ISSUES[: -len('issues')]}security/advisories/new"


def _host() -> str:
    """Return the name of the node, as far as it can be part of the name of a file."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", os.uname().nodename)[:64].strip(".-") or "node"


class _Report:
    """The parts of one report, in the order in which they are made. `title` names the node and the time."""

    def __init__(self, gatherer: Gatherer, session: Session, options: argparse.Namespace, title: str) -> None:
        self._gatherer = gatherer
        self._session = session
        self._options = options
        self._title = title
        self._snapshot: Snapshot | None = None
        self._flows: list[FlowResult] = []

    def parts(self) -> Iterator[tuple[str, str]]:
        """Yield name and text of each part that can be had."""
        for name, make in self._sources():
            text = self._gatherer.part(name, make)
            if text:
                yield name, text
        problems = self._gatherer.problems
        yield PROBLEMS, "".join(f"{line}\n" for line in problems) or "everything could be read\n"

    def _sources(self) -> Iterator[_Source]:
        gatherer = self._gatherer
        yield "versions.txt", gatherer.versions
        yield "snapshot.json", self._collected
        yield from ((name, partial(self._answer, name, argv)) for name, argv in _ANSWERS)
        yield from ((name, partial(self._examined, name)) for name in ("doctor.json", "doctor.txt"))
        yield "flows.json", self._evaluated
        yield "node.html", self._page
        yield "sysctls.txt", lambda: gather.sysctls(self._snapshot or Snapshot())
        yield "addresses.txt", gatherer.addresses
        yield "routes.txt", gatherer.routes
        yield "rules.txt", gatherer.rules
        yield "modules.txt", gatherer.modules
        yield "systemd.txt", gatherer.units
        yield "journal.txt", gatherer.journal
        yield from self._files()

    def _collected(self) -> str:
        self._snapshot = snapshot = collect(ProcessRunner(), self._session.root)
        for line in snapshot.unread:
            self._gatherer.problem(f"snapshot.json: {line}")
        return snapshots.to_json(snapshot)

    def _answer(self, name: str, argv: tuple[str, ...]) -> str:
        """Return what another command prints."""
        options = main.parser().parse_args([*_common(self._options), *argv])
        return self._printed(name, lambda: options.function(options))

    def _examined(self, name: str) -> str:
        """Return what `doctor` prints, as JSON or as text."""
        return self._printed(name, lambda: self._findings.print(as_json=name.endswith(".json")))

    @cached_property
    def _findings(self) -> doctor.Answer:
        return doctor.examined(self._session, self._options, self._snapshot)

    def _printed(self, name: str, call: Callable[[], object]) -> str:
        """Return what a call prints. Its warnings are problems."""
        out, errors = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                call()
        finally:
            for line in filter(None, errors.getvalue().split("\n")):
                self._gatherer.problem(f"{name}: {line}")
        return out.getvalue()

    def _evaluated(self) -> str:
        """Return the flows of each lease as JSON, and keep them for the page."""
        self._flows = list(self._of_leases())
        return json.dumps([flow_data(self._node, flow) for flow in self._flows], indent=1)

    @cached_property
    def _node(self) -> Node:
        return Node(self._snapshot or Snapshot())

    def _of_leases(self) -> Iterator[FlowResult]:
        builder = self._session.builder(OnError.KEEP)
        builder.ask_plugins()  # the answer of doctor names what fails
        builder.refresh()
        desired = builder.current()
        if desired is None:
            self._gatherer.problem("flows.json: no flow is known, because no subnet file can be used")
            return
        for lease in desired.leases:
            yield from flows(self._node, lease, desired.settings, exceptions=desired.exceptions)

    def _page(self) -> str:
        about = (self._title, f"flanneld-masq {__version__}, Linux {os.uname().release}")
        lines = list(map(of_flow, self._flows))
        return page(self._node, lines, title=f"The way of packets on {_host()}", about=about)

    def _files(self) -> Iterator[_Source]:
        """Yield the configuration, its drop-ins, net-conf.json and the subnet files, those that are there."""
        settings = self._session.settings
        named = {"config.toml": self._options.config, "net-conf.json": settings.net_conf}
        with contextlib.suppress(ConfigError):
            drop_ins = config_files.drop_ins(Path(self._options.config))
            named.update(
                {f"config.d/{index}.toml": str(path) for index, path in enumerate(drop_ins[:_MAX_DROP_INS], 1)}
            )
        paths = [path for entry in settings.subnet_files for path in expand(entry).files]
        named.update({f"subnet-files/{index}.env": path for index, path in enumerate(paths[:_MAX_SUBNET_FILES], 1)})
        for name, path in named.items():
            if path and Path(path).exists():
                yield name, partial(self._file, Path(path))

    def _file(self, path: Path) -> str:
        """Return the text of a file behind a comment with its name; JSON has no comments. Empty if there is no text."""
        text = self._gatherer.file(path)
        return text if not text or path.suffix == ".json" else f"# {one_line(str(path))}\n{text}"


def _common(options: argparse.Namespace) -> Iterator[str]:
    """Yield the common options as they were given."""
    yield from ("--config", options.config)
    if options.backend:
        yield from ("--backend", options.backend)
    for path in options.subnet_file or ():
        yield from ("--subnet-file", path)
