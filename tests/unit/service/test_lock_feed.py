"""Who used the lock of iptables-legacy, as far as events and /proc tell."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from flanneld_masq.controller.log_entry import LogEntry
from flanneld_masq.inputs import lock_events
from flanneld_masq.inputs.processes import Process
from flanneld_masq.service import lock_feed
from flanneld_masq.service.lock_feed import LockFeed

from ...common import until


class Scene:
    """A root directory with a lock file and a /proc of the test's making, and what the feed reports."""

    def __init__(self, root: Path) -> None:
        self.root, self.proc = root, root / "proc"
        self.lock = root / "run/xtables.lock"
        self.lock.parent.mkdir()
        self.proc.mkdir()
        self.lock.touch()
        self.held_by()
        self.last(0)
        self.released: list[list[int]] = []
        self.logged: list[LogEntry] = []

    def lock_released(self, programs: Sequence[Process]) -> None:
        self.released.append([program.pid for program in programs])

    def last(self, pid: int) -> None:
        (self.proc / "loadavg").write_text(f"0.00 0.01 0.05 1/345 {pid}\n")

    def started(self, pid: int, name: str = "iptables-legacy") -> None:
        directory = self.proc / str(pid)
        directory.mkdir()
        (directory / "comm").write_text(f"{name}\n")
        (directory / "cmdline").write_text(f"{name}\0-F\0")
        (directory / "cgroup").write_text("0::/\n")
        self.last(pid)

    def ended(self, pid: int) -> None:
        shutil.rmtree(self.proc / str(pid))

    def held_by(self, *pids: int) -> None:
        status = self.lock.stat()
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        lines = [f"{n}: FLOCK  ADVISORY  WRITE {pid} {place} 0 EOF" for n, pid in enumerate(pids, 1)]
        (self.proc / "locks").write_text("\n".join([*lines, ""]))

    async def turns(self) -> None:
        """Let the feed read what has happened."""
        for _ in range(3):
            await asyncio.sleep(0)


Play = Callable[[Callable[[Scene], Awaitable[None]]], Scene]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    monkeypatch.delenv("XTABLES_LOCKFILE", raising=False)

    def run(act: Callable[[Scene], Awaitable[None]]) -> Scene:
        scene = Scene(tmp_path)

        async def played() -> None:
            feed = LockFeed([scene], scene.logged.append, tmp_path)
            feed.start()
            scene.released.clear()
            try:
                await act(scene)
            finally:
                feed.stop()

        asyncio.run(played())
        return scene

    return run


def test_program_that_ends_with_the_close_is_the_user(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_feed, "LOOK_SECONDS", 0.1)  # on a busy machine some milliseconds pass before it ends

    async def act(scene: Scene) -> None:
        scene.started(40, "iptables")  # goes on: it works on other tables
        scene.started(42)
        with scene.lock.open():
            await scene.turns()
            assert scene.released == []
            scene.ended(42)
        await until(lambda: scene.released)
        assert scene.released[0] == [42]  # a look at /proc/locks that was due may follow with nobody

    play(act)


def test_an_unreaped_program_is_found_after_the_close(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.started(42)
        scene.last(45)
        (scene.proc / "42/cmdline").write_text("")
        scene.lock.open().close()
        await until(lambda: scene.released == [[42]])
        scene.lock.open().close()
        await until(lambda: len(scene.released) == 2)
        assert scene.released[1] == [], "it had its turn"

    play(act)


@pytest.mark.parametrize("name", ["iptables-nft", "xtables-nft-mul", "bash", "iptables-foo"])
def test_other_programs_are_not_suspected(play: Play, name: str) -> None:
    async def act(scene: Scene) -> None:
        scene.started(42, name)
        with scene.lock.open():
            await scene.turns()
            scene.ended(42)
        await until(lambda: scene.released)
        assert not any(scene.released)

    play(act)


def test_holder_that_started_long_ago_is_read_from_proc_locks(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.started(42, "python3")
        scene.last(4000)
        scene.held_by(42)
        with scene.lock.open():
            await asyncio.sleep(0.02)
        scene.held_by()
        await until(lambda: scene.released == [[42]])

    play(act)


def test_release_comes_when_the_last_of_several_is_done(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.started(42)
        scene.started(43)
        scene.held_by(43)
        with scene.lock.open():
            await scene.turns()
            with scene.lock.open():
                await scene.turns()
            await asyncio.sleep(0.02)
            assert scene.released == []
            scene.held_by()
            scene.ended(42)
        await until(lambda: scene.released)
        assert sorted(scene.released[0]) == [42, 43]

    play(act)


def test_lock_file_that_is_made_again_is_followed(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.lock.unlink()
        scene.lock.touch()
        scene.held_by()
        await until(lambda: scene.released)
        scene.released.clear()
        scene.started(42)
        with scene.lock.open():
            await scene.turns()
            scene.ended(42)
        await until(lambda: [42] in scene.released)

    play(act)


def test_file_that_cannot_be_watched_is_reported_once(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_events.LockEvents, "refresh", lambda events: setattr(events, "failure", "no"))

    async def act(scene: Scene) -> None: ...

    (entry,) = play(act).logged
    assert entry.event.message.endswith("xtables.lock: no; changes by iptables-legacy are noticed by polling alone")
    assert entry.once
