"""Programs that end well, badly, late or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flanneld_masq import process
from flanneld_masq.errors import MAX_SHOWN_CHARACTERS, CommandError
from flanneld_masq.process import MAX_STDERR, MAX_STDOUT, SYSTEM_PATH, Completed, ProcessRunner, search_path

from ..common import eventually

run = ProcessRunner()


def failed(*argv: str, runner: ProcessRunner = run, **options: object) -> CommandError:
    with pytest.raises(CommandError) as caught:
        runner(argv, **options)  # type: ignore[arg-type]
    assert caught.value.argv == argv
    return caught.value


def test_a_program_that_ends_well() -> None:
    assert run(("sh", "-c", "echo out; echo err >&2")) == Completed(
        ("sh", "-c", "echo out; echo err >&2"), "out\n", "err\n"
    )


def test_its_input() -> None:
    assert run(("cat",), stdin="a\nü\n").stdout == "a\nü\n"


def test_no_input_is_an_empty_one() -> None:
    assert run(("cat",)).stdout == ""


def test_more_input_than_it_reads_is_no_error() -> None:
    assert run(("true",), stdin="x" * 1_000_000).stdout == ""


def test_more_output_than_a_pipe_holds() -> None:
    assert len(run(("head", "-c", "1000000", "/dev/zero")).stdout) == 1_000_000


def test_no_shell() -> None:
    assert run(("echo", "$HOME; `id`", "*")).stdout == "$HOME; `id` *\n"


def test_another_name_for_itself() -> None:
    """As the multi-call binaries of iptables need it."""
    assert run(("some-name", "-c", "echo $0"), executable="/bin/sh").stdout == "some-name\n"


def test_the_lock_file_of_iptables_is_passed_on() -> None:
    run = ProcessRunner(("/usr/bin", "/bin"), {"XTABLES_LOCKFILE": "/run/other.lock", "HOME": "/root"})
    assert "XTABLES_LOCKFILE=/run/other.lock" in run(("env",)).stdout.split()


def test_the_environment_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("XTABLES_LIBDIR", "/tmp")
    output = ProcessRunner(("/usr/bin", "/bin"))((shutil.which("env") or "env",)).stdout
    assert sorted(output.split()) == ["LC_ALL=C", "PATH=/usr/bin:/bin"]


def test_the_directory_too() -> None:
    assert run(("pwd",)).stdout == "/\n"


@pytest.mark.parametrize("status", [1, 2, 127, 255])
def test_exit_status(status: int) -> None:
    error = failed("sh", "-c", f"echo first >&2; echo second >&2; exit {status}")
    assert (error.status, error.stderr) == (status, "first\nsecond")
    assert f"failed with exit status {status}: first" in str(error)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_signal(number: signal.Signals) -> None:
    error = failed("sh", "-c", f"kill -{int(number)} $$")
    assert error.status == -number
    assert f"was ended by {number.name}" in str(error)


@pytest.mark.parametrize("name", ["no-such-program-anywhere", "/no/such/program", "/"])
def test_a_program_that_is_not_there(name: str) -> None:
    error = failed(name, "--version")
    assert error.status is None
    assert f"`{name} --version` could not be started: " in str(error)


def test_a_program_is_looked_for_on_the_given_path_alone(tmp_path: Path) -> None:
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    assert ProcessRunner((str(tmp_path), *SYSTEM_PATH))(("only-here",)).stdout == "found\n"
    failed("only-here", runner=ProcessRunner(SYSTEM_PATH))


def test_timeout() -> None:
    error = failed("sleep", "60", timeout=0.05)
    assert (error.status, error.reason) == (None, "gave no answer within 0.05 s and was ended")


def test_an_interrupt_ends_the_program() -> None:
    runner = ProcessRunner()

    def interrupt() -> None:
        eventually(lambda: runner.running)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            runner(("sleep", "60"))
    finally:
        thread.join()
        signal.signal(signal.SIGALRM, before)
    assert not Path(f"/proc/{runner.started_pids[-1]}").exists()


def test_a_program_that_closes_its_output_and_goes_on() -> None:
    error = failed("sh", "-c", "exec >&- 2>&-; exec sleep 60", timeout=0.2)
    assert error.reason == "gave no answer within 0.2 s and was ended"


def test_a_child_that_keeps_the_output_open_is_not_waited_for() -> None:
    error = failed("sh", "-c", "sleep 60 & exit 0", timeout=0.2)
    assert "gave no answer" in error.reason


def test_input_and_output_at_once() -> None:
    """Neither side may wait for the other, however much is on its way."""
    text = "line\n" * 200_000
    assert run(("cat",), stdin=text).stdout == text


def test_complaints_without_end_are_cut() -> None:
    program = "i=0; while [ $i -lt 20000 ]; do echo complaint number $i; i=$((i + 1)); done >&2; echo out; exit "
    done = run(("sh", "-c", program + "0"))
    assert done.stdout == "out\n"
    assert done.stderr.startswith("complaint number 0\n") and len(done.stderr) == MAX_STDERR
    error = failed("sh", "-c", program + "1")
    assert error.stderr.startswith("complaint number 0\n")
    assert str(error).endswith("...") and len(str(error)) < 2 * MAX_SHOWN_CHARACTERS
    assert "\n" not in str(error)


def test_complaints_for_ever_end_at_the_limit_of_time() -> None:
    error = failed("sh", "-c", "while :; do echo again; done >&2", timeout=0.3)
    assert error.reason == "gave no answer within 0.3 s and was ended"


def test_output_without_end_is_an_error_and_no_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_STDOUT", 1 << 20)
    assert len(run(("head", "-c", str(1 << 20), "/dev/zero")).stdout) == 1 << 20
    error = failed("cat", "/dev/zero")
    assert (error.status, error.reason) == (None, "printed more than 1 MiB and was ended")


def test_the_listing_of_many_rules_is_accepted() -> None:
    rule = "-A KUBE-SVC-0123456789ABCDEF -m comment --comment 'namespace/service:port' -j KUBE-SEP-0123456789ABCDEF"
    assert 50_000 * 10 * len(rule) < MAX_STDOUT


def test_a_command_line_without_end_is_cut() -> None:
    error = failed("sh", "-c", "exit 1", "x" * 100_000)
    assert len(str(error)) < 2 * MAX_SHOWN_CHARACTERS


def test_no_descriptor_is_left_behind() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    run(("true",))
    failed("false")
    failed("sleep", "60", timeout=0.05)
    failed("/no/such/program")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_runs_is_known_meanwhile(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    runner, argv = ProcessRunner(), ("sh", "-c", f"echo > {tmp_path}/fifo; cat {tmp_path}/fifo")
    assert not runner.running
    thread = threading.Thread(target=runner, args=(argv,))
    thread.start()
    (tmp_path / "fifo").read_text()
    eventually(lambda: runner.running == argv)  # the program may be quicker than the thread that started it
    (tmp_path / "fifo").write_text("")
    thread.join(10)
    assert not runner.running


def test_output_that_is_not_text() -> None:
    """A comment of a foreign rule may hold any bytes; they come out as they went in."""
    printed = run(("printf", "\\377")).stdout
    assert printed.encode("utf-8", "surrogateescape") == b"\xff"


def test_stop_ends_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    runner = ProcessRunner()
    errors = []
    os.mkfifo(tmp_path / "started")

    def work() -> None:
        errors.append(failed("sh", "-c", f"echo > {tmp_path}/started; exec sleep 60", runner=runner))

    thread = threading.Thread(target=work)
    thread.start()
    assert (tmp_path / "started").read_text() == "\n"
    runner.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert [error.status for error in errors] == [-signal.SIGKILL]
    assert "was not started: the daemon is stopping" in str(failed("true", runner=runner))
    runner.resume()
    assert runner(("true",)).stdout == ""


def test_no_child_is_left_behind() -> None:
    """This process has no child afterwards, neither running nor a zombie."""
    script = """
import os, sys
from flanneld_masq.errors import CommandError
from flanneld_masq.process import ProcessRunner
for argv in ("true",), ("false",), ("sleep", "60"), ("printf", "\\\\377"), ("no-such-program",):
    try:
        ProcessRunner()(argv, timeout=0.05 if argv[0] == "sleep" else 20)
    except CommandError:
        pass
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("none left")
"""
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("none left\n", "")


class TestSearchPath:
    def test_the_system_s_own_come_last(self) -> None:
        assert search_path({"PATH": "/opt/bin:/usr/bin"}) == (
            *("/opt/bin", "/usr/bin"),
            *(path for path in SYSTEM_PATH if path != "/usr/bin"),
        )

    @pytest.mark.parametrize("environ", [{}, {"PATH": ""}, {"PATH": ":"}])
    def test_without_a_path(self, environ: dict[str, str]) -> None:
        assert search_path(environ) == SYSTEM_PATH

    def test_no_relative_ones(self) -> None:
        assert search_path({"PATH": ".:bin::/opt/bin:../x"}) == ("/opt/bin", *SYSTEM_PATH)
