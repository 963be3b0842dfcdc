"""The command line: its commands and options, and the exit status."""

from __future__ import annotations

from flanneld_masq import hangup  # noqa: F401  isort: skip  first of all, for SIGHUP may come any time
import argparse
import importlib
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence

from flanneld_masq import footprint  # noqa: F401  isort: skip  before what imports hashlib
from flanneld_masq import __version__
from flanneld_masq.cli import command_options
from flanneld_masq.errors import MasqError

DEFAULT_CONFIG = "/etc/flanneld-masq/config.toml"
_COMMANDS: Mapping[str, str] = {
    "run": "run the daemon, which keeps the rules right until SIGTERM; SIGHUP reloads the configuration",
    "plan": "show what a reconcile would change, without changing it; exit status 3 if there is a difference",
    "apply": "reconcile once",
    "status": "show the state of the daemon, the backends, the lease and the last repair",
    "wait": "wait until the daemon reports a state; exit status 1 after the timeout",
    "check": "validate the configuration; needs neither a kernel nor root",
    "render": "print the ruleset for a backend; needs neither a kernel nor root",
    "explain": "show what this node does with a packet, and which rule of which program decides that",
    "backends": "list every backend, if it can be used or why not, and the chosen one",
    "selftest": "test the backends on this kernel with real packets, in throwaway network namespaces",
    "doctor": "check the node for faults that break the traffic of pods, and name each remedy; exit status 1 for a "
    "problem, 2 if a check could not be made",
    "trace": "follow real packets of a flow live through the rules of every program; exit status 1 if it saw none",
    "probe": "send packets from a throwaway pod through the node's own rules; exit status 1 if one does not arrive as "
    "required, 2 if the result is not known",
    "report": "write one archive for a bug report: rules, routes, status, findings, flows, journal, and an HTML page",
    "monitor": "print the daemon's D-Bus signals as they arrive, one per line, until Ctrl-C: repairs with the program "
    "that caused them, changes of state, lease and backends",
    "metrics": "print the metrics of the daemon in the text format of Prometheus",
    "cleanup": "remove the rules of flanneld-masq from every backend, and nothing else",
}
_WITHOUT_JSON = ("run", "metrics")
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
    words = sys.argv[1:] if argv is None else argv
    options = parser(words).parse_args(words)
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


def parser(words: Collection[str] | None = None) -> argparse.ArgumentParser:
    """All commands and options. The common ones are taken before and after the command alike.

    With the `words` of a command line, a command that is not among them gets no options: it will not be parsed.
    """
    top = argparse.ArgumentParser(
        prog="flanneld-masq",
        description="Keeps the masquerade rules of a flannel node right, whatever else changes its firewall.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"flanneld-masq {__version__}")
    _add_common(top, top_level=True)
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if words is None or name in words:
            _add_options(name, command)
    return top


def _add_options(name: str, command: argparse.ArgumentParser) -> None:
    _add_common(command, top_level=False)
    if name not in _WITHOUT_JSON:
        command.add_argument("--json", action="store_true", help="print JSON, for machines")
    command.set_defaults(function=_function(name), json=False)
    command_options.add(name, command)


def _function(name: str) -> Callable[[argparse.Namespace], int]:
    """Return the function of a command. It is in the module of that name, which is imported when it is called: what the
    other commands need takes longer to import than most commands run."""

    def call(options: argparse.Namespace) -> int:
        return int(getattr(importlib.import_module(f"flanneld_masq.cli.{name}"), name)(options))

    return call


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
