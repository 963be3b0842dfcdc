"""Opens of a file that another program made, or makes later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Callable

import pytest

from flanneld_masq.inputs.open_watch import opened

from ...common import until

Scene = Callable[[list[int]], Awaitable[None]]


def play(path: Path, scene: Scene) -> None:
    async def watched() -> None:
        calls: list[int] = []
        with opened(path, lambda: calls.append(1)):
            await scene(calls)

    asyncio.run(watched())


@pytest.mark.parametrize("there", [True, False])
def test_each_open_is_told(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "lock"
    if there:
        path.touch()

    async def scene(calls: list[int]) -> None:
        for _ in range(2):
            seen = len(calls)
            path.open("a").close()
            await until(lambda: len(calls) > seen)
        path.unlink()
        seen = len(calls)
        path.touch()
        await until(lambda: len(calls) > seen)

    play(path, scene)


def test_other_files_are_not(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()

    async def scene(calls: list[int]) -> None:
        (tmp_path / "other").touch()
        await asyncio.sleep(0.05)
        assert calls == []

    play(path, scene)


def test_without_a_directory_nothing_happens(tmp_path: Path) -> None:
    async def scene(calls: list[int]) -> None:
        await asyncio.sleep(0.01)
        assert calls == []

    play(tmp_path / "none" / "lock", scene)
