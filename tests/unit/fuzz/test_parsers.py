"""Whatever its input is, a parser returns or raises an error that it documents, within a second.

Inputs are the files of the corpus, mutations of these, and raw bytes. `LONG=1` gives 100,000 of them to each parser;
`make fuzz INPUTS=100000` does the same and prints a line for each.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ...common import amount, lasting
from . import inputs, runner
from .inputs import CORPUS, MAX_BYTES, TAPE_BYTES, Tape, derive, files
from .runner import Fault, Run, check, fuzz
from .targets import TARGETS, Target

INPUTS = int(lasting(amount(200, quick=20), 100_000))
MAX_CORPUS_BYTES = 300_000
each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)

# calls by which a module takes bytes or text apart
SIGNS = frozenset(
    (
        *("unpack", "unpack_from", "from_bytes", "fromhex", "loads", "fromisoformat", "decode", "split", "splitlines"),
        *("partition", "rpartition", "match", "fullmatch", "search", "finditer", "findall", "int"),
        *("ip_network", "ip_address", "ip_interface"),
    )
)
MAYBE_CALL = re.compile(rf"\b(?:{'|'.join(sorted(SIGNS))})\(")  # quicker than to parse a module that has none
# modules that take something apart, and why it is nothing that another program wrote, or cannot be wrong
EXEMPT = {
    "flanneld_masq.cli.command_options": "options of the command line, which argparse refuses",
    "flanneld_masq.cli.main": "options of the command line, which argparse refuses",
    "flanneld_masq.cli.report": "lines of warnings that other commands print",
    "flanneld_masq.controller.surveyor": "places that backends made",
    "flanneld_masq.doctor.flow_checks": "settings of the kernel as packet_path names them",
    "flanneld_masq.doctor.flow_remedies": "places that packet_path made",
    "flanneld_masq.doctor.host_reader": "numbers of /proc/sys in 64 bytes; whatever is wrong with one, it is not known",
    "flanneld_masq.doctor.tunnel_checks": "addresses and lengths of prefixes that host_network parsed",
    "flanneld_masq.hookspecs": "only joins the lines again",
    "flanneld_masq.inputs.file_watch": "paths of the settings",
    "flanneld_masq.inputs.lock_watch": "seconds of the event loop's clock",
    "flanneld_masq.inputs.path_patterns": "patterns of the settings; names of files are compared with them",
    "flanneld_masq.inputs.path_steps": "splits the targets of symbolic links at each slash",
    "flanneld_masq.live.addresses": "documented networks, and addresses that it makes itself",
    "flanneld_masq.live.legacy_log": "takes any bytes of a file of /proc/sys",
    "flanneld_masq.model": "compares a comment with one pattern",
    "flanneld_masq.plugin_loader": "compares a name with one pattern",
    "flanneld_masq.printable": "takes any text; tests/unit/test_printable.py tests more",
    "flanneld_masq.process": "decodes with surrogateescape, which takes any bytes",
    "flanneld_masq.report.gather": "takes the first word or line, or all that is behind a sign, and shows it",
    "flanneld_masq.selftest": "reads what its own programs print in namespaces of its own",
    "flanneld_masq.service.fd_store": "names and numbers that systemd sets; others stand for no socket",
    "flanneld_masq.service.prometheus": "numbers of the status",
    "flanneld_masq.service.sd_notify": "numbers that systemd sets; others stand for no watchdog",
    "flanneld_masq.testing": "constants",
    "flanneld_masq_iptables.base": "places that the backend made",
    "flanneld_masq_nft.netlink_ports": "lines of /proc; one that is not as expected names no socket",
}


@each_target
def test_the_corpus_is_read_or_refused(target: Target) -> None:
    run = Run()
    for data in files(target.corpus):
        check(target, data, run)
    assert run.accepted, "a parser that refuses all of its corpus is hardly tested"


@each_target
@settings(max_examples=amount(100, quick=10))
@given(tape=st.binary(min_size=TAPE_BYTES, max_size=TAPE_BYTES))
def test_mutated_input_is_read_or_refused(target: Target, tape: bytes) -> None:
    check(target, derive(Tape(tape), files(target.corpus), target.words))


@each_target
def test_many_inputs_are_read_or_refused(target: Target) -> None:
    fuzz(target, INPUTS, random.randrange(1 << 32))


def test_the_corpus_is_small_and_in_use() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {target.corpus for target in TARGETS}
    assert sum(path.stat().st_size for path in CORPUS.glob("*/*")) < MAX_CORPUS_BYTES


def parsing_modules() -> Iterator[str]:
    """Yield the modules of the project that call a function of SIGNS."""
    for package in (
        "flanneld_masq",
        "flanneld_masq_iptables",
        "flanneld_masq_ipmasqagent",
        "flanneld_masq_nft",
        "flanneld_masq_prometheus",
    ):
        top = Path(str(importlib.import_module(package).__file__)).parent
        for path in sorted(top.rglob("*.py")):
            if not MAYBE_CALL.search(path.read_text()):
                continue
            called = {
                node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call)
            }
            if called & SIGNS:
                yield ".".join(path.relative_to(top.parent).with_suffix("").parts)


def exempt(module: str) -> str:
    """Return the module, or the package of it that needs no target."""
    return next((name for name in EXEMPT if f"{module}.".startswith(f"{name}.")), module)


def test_every_module_that_parses_has_a_target() -> None:
    covered = {module for target in TARGETS for module in target.modules}
    assert all(importlib.util.find_spec(module) for module in covered)
    without = set(map(exempt, set(parsing_modules()) - covered))
    assert without == EXEMPT.keys(), "name the target of a module, or why it needs none"


class TestInputs:
    def test_a_tape_of_zeros_is_a_file_as_it_is(self) -> None:
        assert derive(Tape(bytes(TAPE_BYTES)), [b"one", b"two"]) == b"one"

    @given(tape=st.binary(min_size=TAPE_BYTES, max_size=TAPE_BYTES), data=st.binary(max_size=20))
    def test_inputs_are_bounded_and_repeatable(self, tape: bytes, data: bytes) -> None:
        derived = {derive(Tape(tape), [data, b"other"], [b"word"]) for _ in range(2)}
        assert len(derived) == 1
        assert len(derived.pop()) <= MAX_BYTES

    def test_most_inputs_differ(self) -> None:
        source = random.Random(1)
        tapes = [source.getrandbits(8 * TAPE_BYTES).to_bytes(TAPE_BYTES, "big") for _ in range(1000)]
        derived = [derive(Tape(tape), [bytes(range(200))]) for tape in tapes]
        assert len(set(derived)) > 700
        assert max(map(len, derived)) == MAX_BYTES


class TestRunner:
    """The runner finds what is wrong."""

    @pytest.fixture(autouse=True)
    def corpus(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(inputs, "CORPUS", tmp_path)
        directory = tmp_path / "fake"
        directory.mkdir()
        (directory / "one").write_bytes(b"harmless")
        files.cache_clear()
        return directory

    def test_an_undocumented_error_is_kept_as_a_small_input(self, corpus: Path) -> None:
        def parse(data: bytes) -> None:
            if b"a" in data and b"s" in data:
                raise ValueError
            raise KeyError

        target = Target("fake", "fake", parse, (KeyError,), ())
        with pytest.raises(Fault, match=r"input \d+ of seed 7"):
            fuzz(target, 100, 7)
        (kept,) = corpus.glob("found-*")
        assert sorted(kept.read_bytes()) == sorted(b"as")

    def test_a_parser_that_never_ends_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def parse(data: bytes) -> None:
            while True:
                with contextlib.suppress(Exception):
                    len(data)

        monkeypatch.setattr(runner, "MAX_SECONDS", 0.01)
        with pytest.raises(Fault, match="takes longer than"):
            check(Target("fake", "fake", parse, (), ()), b"")

    def test_documented_errors_are_counted_as_refusals(self) -> None:
        run = fuzz(Target("fake", "fake", int, (ValueError,), ()), 50, 1)
        assert (run.inputs, run.accepted) == (50, 0)
