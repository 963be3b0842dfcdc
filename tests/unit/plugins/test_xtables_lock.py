"""The lock of iptables-legacy, as /proc/locks shows it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flanneld_masq_iptables import xtables_lock
from flanneld_masq_iptables.xtables_lock import PATIENCE_SECONDS, XtablesLock

from flanneld_masq.lock_files import FlockUsers


class Scene:
    """A lock file in a root directory with a /proc/locks of the test's making, and a clock that sleep moves on."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, 100.0
        (root / "run").mkdir()
        (root / "proc/42").mkdir(parents=True)
        (root / "proc/42/comm").write_text("iptables-restor\n")
        self.file = root / "run/xtables.lock"
        self.file.touch()
        self.opened = contextlib.ExitStack()
        self.held_by()
        self.lock = XtablesLock(root, {}, lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def held_by(self, *pids: int, file: Path | None = None, waiting: bool = False) -> None:
        self.opened.close()
        if pids:
            self.opened.enter_context((file or self.file).open())
        self.list_holders(*pids, file=file, waiting=waiting)

    def list_holders(self, *pids: int, file: Path | None = None, waiting: bool = False) -> None:
        stat = (file or self.file).stat()
        place = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
        lines = [f"{n}: {'-> ' * waiting}FLOCK  ADVISORY  WRITE {pid} {place} 0 EOF" for n, pid in enumerate(pids, 1)]
        other = "9: POSIX  ADVISORY  WRITE 7 00:01:1 0 EOF"
        (self.root / "proc/locks").write_text("\n".join([other, *lines, ""]))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    found = Scene(tmp_path)
    yield found
    found.opened.close()


def test_lock_is_busy_while_a_program_holds_it(scene: Scene) -> None:
    assert not scene.lock.busy()
    scene.held_by(42)
    assert scene.lock.busy()
    assert scene.lock.holder() == "iptables-restor (pid 42)"
    scene.held_by(42, waiting=True)
    assert not scene.lock.busy(), "it waits for another lock"


def test_lock_of_another_file_does_not_count(scene: Scene) -> None:
    other = scene.root / "other"
    other.touch()
    scene.held_by(42, file=other)
    assert not scene.lock.busy()


def test_program_that_holds_it_for_long_is_not_waited_for(scene: Scene) -> None:
    scene.held_by(42)
    scene.lock.wait(lambda: False)
    assert scene.now == pytest.approx(100 + PATIENCE_SECONDS, abs=0.1)
    scene.lock.wait(lambda: False)
    assert scene.now == pytest.approx(100 + PATIENCE_SECONDS, abs=0.1), "only once"
    scene.held_by(43)
    assert scene.lock.busy()
    assert scene.lock.holder() == "pid 43", "it has ended"


def test_the_wait_for_one_program_after_another_is_bounded(scene: Scene) -> None:
    def sleep(seconds: float) -> None:
        scene.now += 1
        scene.held_by(round(scene.now))

    scene.held_by(42)
    XtablesLock(scene.root, {}, lambda: scene.now, sleep).wait(lambda: False)
    assert scene.now == 100 + PATIENCE_SECONDS


def test_wait_ends_when_the_daemon_stops(scene: Scene) -> None:
    scene.held_by(42)
    scene.lock.wait(lambda: True)
    assert scene.now == 100


@pytest.mark.parametrize("missing", ["run/xtables.lock", "proc/locks"])
def test_lock_is_free_where_it_cannot_be_seen(scene: Scene, missing: str) -> None:
    scene.held_by(42)
    (scene.root / missing).unlink()
    assert not scene.lock.busy()
    assert "has ended" in scene.lock.holder()


def test_program_that_opens_it_during_the_look_is_not_forgotten(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def users(*_: object) -> FlockUsers:
        """Another program opens the file, and does not hold the lock yet."""
        second.enter_context(scene.file.open())
        return FlockUsers()

    assert not scene.lock.busy()
    with contextlib.ExitStack() as second:
        with scene.file.open(), monkeypatch.context() as patched:
            patched.setattr(xtables_lock, "flock_users", users)
            assert not scene.lock.busy()
        scene.list_holders(42)
        assert scene.lock.busy(), "the second one has it now"


def test_environment_names_the_file(scene: Scene) -> None:
    named = scene.root / "named"
    named.touch()
    lock = XtablesLock(scene.root, {"XTABLES_LOCKFILE": str(named)})
    scene.held_by(42)
    assert not lock.busy()
    scene.held_by(42, file=named)
    assert lock.busy()


def test_kernel_shows_the_lock(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    lock = XtablesLock(environ={"XTABLES_LOCKFILE": str(file)})
    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        if f":{file.stat().st_ino} 0 EOF" not in Path("/proc/locks").read_text():
            pytest.skip("the locks of this file system have another device number")
        assert lock.busy()
        assert f"(pid {os.getpid()})" in lock.holder()
    assert not lock.busy()
