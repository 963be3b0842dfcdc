"""The command line: its commands and options, and the exit status."""

from __future__ import annotations

from flanneld_masq import hangup  # noqa: F401  isort: skip  first of all, for SIGHUP may come any time
import argparse
import os
import sys
from collections.abc import Sequence

from flanneld_masq import footprint  # noqa: F401  isort: skip  before what imports hashlib
from flanneld_masq import __version__
from flanneld_masq.cli import check as check_command
from flanneld_masq.cli import commands, live_options, status
from flanneld_masq.cli import explain as explain_command
from flanneld_masq.cli import metrics as metrics_command
from flanneld_masq.cli import wait as wait_command
from flanneld_masq.errors import MasqError

DEFAULT_CONFIG = "/etc/flanneld-masq/config.toml"
_EPILOG = """\
exit status:
  0  done, or in sync
  1  failed
  2  wrong usage or configuration
  3  plan: the rules in the kernel differ from the wanted rules
  doctor: 0 healthy, 1 a problem, 2 a check could not be made
  status --check: 0 in sync, or waiting for a first subnet file; 1 degraded, contended or starting; 2 not running

files:
  /etc/flanneld-masq/config.toml   configuration; everything has a default
  /etc/flanneld-masq/config.d/     drop-ins, *.toml; the last file that names a key counts
  /run/flannel/subnet.env          the node's subnet, written by flannel
  /run/flanneld-masq/              the rules that were written last, and the daemon's status

A node usually needs no more than `systemctl enable --now flanneld-masq`; `flanneld-masq plan` shows what is
wrong, `flanneld-masq apply` fixes it once, `flanneld-masq selftest` tests this kernel and these tools.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Print each MasqError as one line."""
    options = parser().parse_args(argv)
    try:
        exit_status = int(options.function(options))
        sys.stdout.flush()  # while it can still be told that nobody reads
        return exit_status
    except MasqError as error:
        print(f"flanneld-masq: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of the output has gone; Python flushes what is left of it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands and options. The common ones are taken before and after the command alike."""
    top = argparse.ArgumentParser(
        prog="flanneld-masq",
        description="Keeps the masquerade rules of a flannel node right, whatever else changes its firewall.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"flanneld-masq {__version__}")
    _add_common(top, top_level=True)
    commands_of = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, function: commands.Command, text: str, *, json: bool = True) -> argparse.ArgumentParser:
        command = commands_of.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        _add_common(command, top_level=False)
        if json:
            command.add_argument("--json", action="store_true", help="print JSON, for machines")
        command.set_defaults(function=function, json=False)
        return command

    add(
        "run",
        commands.run,
        "run the daemon, which keeps the rules right until SIGTERM; SIGHUP reloads the configuration",
        json=False,
    )
    add(
        "plan",
        commands.plan,
        "show what a reconcile would change, without changing it; exit status 3 if there is a difference",
    )
    add("apply", commands.apply, "reconcile once")
    shown = add("status", status.status, "show the state of the daemon, the backends, the lease and the last repair")
    how = shown.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="print the status again after each change, until Ctrl-C")
    how.add_argument(
        "--check",
        action="store_true",
        help="exit status 0 if the rules are in sync or the daemon waits for a first subnet file, 1 if degraded or "
        "contended, 2 if no daemon runs",
    )
    wait_command.add_options(
        add("wait", wait_command.wait, "wait until the daemon reports a state; exit status 1 after the timeout")
    )
    check_command.add_options(
        add("check", check_command.check, "validate the configuration; needs neither a kernel nor root")
    )
    add("render", commands.render, "print the ruleset for a backend; needs neither a kernel nor root")
    live_options.add_explain(
        add(
            "explain",
            explain_command.explain,
            "show what this node does with a packet, and which rule of which program decides that",
        )
    )
    add("backends", commands.backends, "list every backend, if it can be used or why not, and the chosen one")
    add(
        "selftest",
        commands.selftest,
        "test the backends on this kernel with real packets, in throwaway network namespaces",
    )
    live_options.add_doctor(
        add(
            "doctor",
            commands.doctor,
            "check the node for faults that break the traffic of pods, and name each remedy; exit status 1 for a "
            "problem, 2 if a check could not be made",
        )
    )
    live_options.add_trace(
        add(
            "trace",
            live_options.trace,
            "follow real packets of a flow live through the rules of every program; exit status 1 if it saw none",
        )
    )
    live_options.add_probe(
        add(
            "probe",
            live_options.probe,
            "send packets from a throwaway pod through the node's own rules; exit status 1 if one does not arrive as "
            "required, 2 if the result is not known",
        )
    )
    report = add(
        "report",
        commands.report,
        "write one archive for a bug report: rules, routes, status, findings, flows, journal, and an HTML page",
    )
    report.add_argument(
        "file",
        nargs="?",
        default=None,
        metavar="FILE",
        help="file to write (default flanneld-masq-report-HOST-DATE.tar.gz); an existing file is not replaced",
    )
    add(
        "monitor",
        commands.monitor,
        "print the daemon's D-Bus signals as they arrive, one per line, until Ctrl-C: repairs with the program that "
        "caused them, changes of state, lease and backends",
    )
    metrics = add(
        "metrics",
        metrics_command.metrics,
        "print the metrics of the daemon in the text format of Prometheus",
        json=False,
    )
    metrics.add_argument(
        "--write",
        action="store_true",
        help="replace the file of metrics.textfile, if no daemon runs; the service does so after the daemon has ended",
    )
    cleanup = add("cleanup", commands.cleanup, "remove the rules of flanneld-masq from every backend, and nothing else")
    cleanup.add_argument(
        "--flannel",
        action="store_true",
        help="also remove the rules that any release of flannel left; while the daemon runs, remove only these",
    )
    return top


def _add_common(target: argparse.ArgumentParser, *, top_level: bool) -> None:
    def default(value: object) -> object:
        return value if top_level else argparse.SUPPRESS

    group = target.add_argument_group("common options")
    group.add_argument(
        "--config",
        metavar="FILE",
        default=default(DEFAULT_CONFIG),
        help=f"configuration file (default {DEFAULT_CONFIG}; a missing file counts as empty); the drop-ins "
        "config.d/*.toml beside it are read too",
    )
    group.add_argument(
        "--backend", metavar="NAME", default=default(None), help="use this backend, whatever the configuration says"
    )
    group.add_argument(
        "--subnet-file",
        metavar="FILE",
        action="append",
        default=default(None),
        help="read this subnet file instead of the configured ones; may be given more than once",
    )
