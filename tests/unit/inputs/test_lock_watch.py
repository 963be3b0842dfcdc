"""Opens and closes of a lock file that exists, or is made later."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from flanneld_masq.inputs import lock_events, lock_watch
from flanneld_masq.inputs.lock_events import LockEvents, LockState, Use, uses_in
from flanneld_masq.inputs.lock_watch import LockWatch

from ...common import until

OPEN, CLOSE, LOST = Use.OPENED, Use.CLOSED, Use.UNKNOWN
Scene = Callable[[list[Use]], Awaitable[None]]


def play(path: Path, scene: Scene) -> None:
    async def watched() -> None:
        seen: list[Use] = []
        watch = LockWatch(LockEvents(path), seen.extend)
        watch.start()
        try:
            await scene(seen)
        finally:
            watch.stop()

    asyncio.run(watched())


@pytest.mark.parametrize("kind", ["a", "r"])
def test_open_and_close_are_reported(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    path.touch()

    async def scene(seen: list[Use]) -> None:
        with path.open(kind):
            await until(lambda: seen == [OPEN])
        await until(lambda: seen == [OPEN, CLOSE])

    play(path, scene)


def test_file_made_later_or_again_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    async def scene(seen: list[Use]) -> None:
        for _ in range(2):
            seen.clear()
            path.touch()
            await until(lambda: LOST in seen)
            seen.clear()
            path.open("a").close()
            await until(lambda: CLOSE in seen)
            path.unlink()
        seen.clear()
        (tmp_path / "new").touch()
        (tmp_path / "new").rename(path)
        await until(lambda: LOST in seen)
        path.open("a").close()
        await until(lambda: CLOSE in seen)

    play(path, scene)


def test_close_of_a_file_that_was_replaced_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()

    async def scene(seen: list[Use]) -> None:
        with path.open():
            path.unlink()
            path.touch()
            await until(lambda: LOST in seen)
            seen.clear()
        await until(lambda: CLOSE in seen)

    play(path, scene)


def test_other_files_are_not_reported(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()

    async def scene(seen: list[Use]) -> None:
        (tmp_path / "other").touch()
        path.open("a").close()
        await until(lambda: CLOSE in seen)
        assert seen == [OPEN, CLOSE]

    play(path, scene)


def test_directory_that_is_made_later_is_watched_after_a_refresh(tmp_path: Path) -> None:
    path = tmp_path / "none" / "lock"
    events = LockEvents(path)
    assert not events.failure, "there may be a file later"
    assert not events.watching
    path.parent.mkdir()
    path.touch()
    assert events.read() == ()
    events.refresh()
    path.open("a").close()
    assert events.read() == (OPEN, CLOSE)
    events.close()
    assert not events.watching


def test_what_follows_a_full_buffer_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    events = LockEvents(path)
    for _ in range(2048):
        path.open("a").close()
    with path.open("a"):
        assert events.read()[-1] is LOST
        assert events.read() == (OPEN,)
    events.close()


def test_file_that_may_not_be_watched_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, path: bytes, mask: int) -> int:
        ctypes.set_errno(13)
        return -1

    monkeypatch.setattr(lock_events._libc, "inotify_add_watch", refused)
    with contextlib.closing(LockEvents(tmp_path / "lock")) as events:
        assert events.failure == "Permission denied"
        assert not events.watching


def test_storm_of_opens_is_read_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_watch, "MAX_READS_PER_SECOND", 1)
    path = tmp_path / "lock"
    path.touch()

    async def scene(seen: list[Use]) -> None:
        path.open().close()
        await until(lambda: seen == [OPEN, CLOSE])
        path.open().close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen == [OPEN, CLOSE], "the next read is for the next second"
        await until(lambda: seen == [OPEN, CLOSE] * 2)

    play(path, scene)


@pytest.mark.parametrize("uses", [(), (OPEN, CLOSE)])
def test_state_is_not_known_at_first(uses: tuple[Use, ...]) -> None:
    state = LockState()
    for use in uses:
        state.note(use)
    assert (state.free, state.known) == (False, False)


@pytest.mark.parametrize(
    ("uses", "free", "known"),
    [
        ((), True, True),
        ((OPEN,), False, True),
        ((OPEN, CLOSE), True, True),
        ((OPEN, CLOSE, OPEN, CLOSE), True, True),
        ((OPEN, OPEN), False, False),
        ((OPEN, OPEN, CLOSE), False, False),
        ((OPEN, OPEN, CLOSE, CLOSE), False, False),
        ((CLOSE,), False, False),
        ((LOST,), False, False),
        ((OPEN, LOST, CLOSE), False, False),
    ],
)
def test_state_of_a_file_that_was_free(uses: tuple[Use, ...], free: bool, known: bool) -> None:
    state = LockState()
    state.found_free()
    for use in uses:
        state.note(use)
    assert (state.free, state.known) == (free, known)
    state.found_free()
    assert state.free


def event(mask: int, name: bytes = b"") -> bytes:
    return struct.pack("iIII", 1, mask, 0, len(name)) + name


@pytest.mark.parametrize(
    ("events", "uses"),
    [
        (event(0x20) + event(0x10) + event(0x20) + event(0x8), [OPEN, CLOSE, OPEN, CLOSE]),
        (event(0x100, b"lock\0\0\0\0"), [LOST]),
        (event(0x80, b"lock\0\0\0\0") + event(0x20), [LOST, OPEN]),
        (event(0x100, b"lock2\0\0\0"), []),
        (event(0x4000), [LOST]),
        (event(0x8000), []),
        (event(0x20)[:-1], []),
        (b"", []),
    ],
)
def test_events_of_the_kernel(events: bytes, uses: list[Use]) -> None:
    assert list(uses_in(events, b"lock")) == uses
