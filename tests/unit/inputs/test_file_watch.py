"""Which changes of the file system are told, and which are not. Real inotify, in a directory of the test."""

from __future__ import annotations

import errno
import queue
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from watchdog.observers.inotify_c import Inotify

from flanneld_masq.inputs.file_watch import Directory, FileWatch, directories

SECONDS = 5.0
QUIET = 0.02


class Watched:
    """A file that is watched for, as the daemon does it: each call is followed by `refresh`.

    One change is told several times; what is told within QUIET seconds of each other is one.
    """

    def __init__(self, *paths: Path) -> None:
        self.paths = tuple(map(str, paths))
        self.calls: queue.Queue[None] = queue.Queue()
        self.complaints: list[str] = []
        self.watch = FileWatch(lambda: self.calls.put(None), self.complaints.append)
        self.watch.start(self.paths)

    def told(self) -> bool:
        called = self.called(SECONDS)
        self.settle()
        return called

    def settle(self) -> None:
        """Move the watches to what exists now, until no call comes any more."""
        self.watch.refresh()
        while self.called():
            self.watch.refresh()

    def called(self, seconds: float = QUIET) -> bool:
        try:
            self.calls.get(timeout=seconds)
        except queue.Empty:
            return False
        return True


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def file(run: Path) -> Path:
    return run / "flannel" / "subnet.env"


@pytest.fixture
def watched(file: Path) -> Iterator[Watched]:
    watched = Watched(file)
    yield watched
    watched.watch.stop()


def write(path: Path, text: str = "x") -> None:
    """As flannel does: beside it, then by rename."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(".new")
    temporary.write_text(text)
    temporary.replace(path)


@pytest.fixture
def present(file: Path) -> None:
    write(file)


@pytest.mark.usefixtures("present")
class TestAFileThatIsThere:
    def test_written_in_place(self, file: Path, watched: Watched) -> None:
        file.write_text("y")
        assert watched.told()

    def test_replaced_by_rename_again_and_again(self, file: Path, watched: Watched) -> None:
        for text in "abc":
            write(file, text)
            assert watched.told()

    def test_removed_and_back(self, file: Path, watched: Watched) -> None:
        file.unlink()
        assert watched.told()
        write(file)
        assert watched.told()

    def test_replaced_from_another_directory(self, file: Path, run: Path, watched: Watched) -> None:
        (run.parent / "elsewhere").write_text("y")
        (run.parent / "elsewhere").replace(file)
        assert watched.told()

    def test_reading_is_not_told(self, file: Path, watched: Watched) -> None:
        for _ in range(3):
            file.read_text()
            list(file.parent.iterdir())
        assert not watched.called()
        write(file)
        assert watched.told()

    def test_its_directory_removed_and_made_again(self, file: Path, watched: Watched) -> None:
        for text in "ab":
            shutil.rmtree(file.parent)
            assert watched.told()
            write(file, text)
            assert watched.told()
            file.write_text("in place")
            assert watched.told(), "the new directory is watched"

    def test_its_directory_replaced_by_rename(self, file: Path, run: Path, watched: Watched) -> None:
        (run / "other").mkdir()
        (run / "other" / "subnet.env").write_text("other")
        file.parent.rename(run / "old")
        (run / "other").rename(file.parent)
        assert watched.told()
        file.write_text("in place")
        assert watched.told(), "the new directory is watched"


class TestADirectoryThatIsNotThereYet:
    def test_appears_later_and_the_file_in_it(self, file: Path, watched: Watched) -> None:
        file.parent.mkdir()
        assert watched.told()
        write(file)
        assert watched.told()

    def test_appears_with_the_file_in_it(self, file: Path, run: Path, watched: Watched) -> None:
        (run / "made").mkdir()
        (run / "made" / "subnet.env").write_text("x")
        (run / "made").rename(file.parent)
        assert watched.told()

    def test_nor_are_those_above_it(self, tmp_path: Path) -> None:
        file = tmp_path / "a" / "b" / "c" / "subnet.env"
        watched = Watched(file)
        try:
            for parent in reversed(list(file.parents)[:3]):
                parent.mkdir()
                assert watched.told(), parent
            file.write_text("x")
            assert watched.told()
        finally:
            watched.watch.stop()

    def test_all_at_once(self, tmp_path: Path) -> None:
        file = tmp_path / "a" / "b" / "c" / "subnet.env"
        watched = Watched(file)
        try:
            file.parent.mkdir(parents=True)
            file.write_text("x")
            assert watched.told()
            file.write_text("y")
            assert watched.told(), "the watch moved down to the file's own directory"
        finally:
            watched.watch.stop()


def test_what_others_do_above_is_not_told(file: Path, run: Path, watched: Watched) -> None:
    """/run is busy; only the next step on the way down to the file is of interest there."""
    busy = run / "busy"
    busy.write_text("x")
    busy.write_text("y")
    busy.replace(run / "busier")
    (run / "flannel2").mkdir()
    (run / "flannel2" / "subnet.env").write_text("x")
    (run / "busier").unlink()
    shutil.rmtree(run / "flannel2")
    assert not watched.called()
    file.parent.mkdir()
    assert watched.told()


def test_nor_when_the_file_is_there(file: Path, run: Path, present: None, watched: Watched) -> None:
    (run / "busy").write_text("x")
    (run / "busy").unlink()
    assert not watched.called()
    write(file)
    assert watched.told()


def test_following_another_file(file: Path, present: None, watched: Watched, tmp_path: Path) -> None:
    other = tmp_path / "other" / "subnet.env"
    write(other)
    watched.watch.follow((str(other),))
    watched.settle()
    write(file)
    assert not watched.called()
    write(other)
    assert watched.told()


class TestWhatCannotBeWatched:
    """The kernel allows so many watches and instances of inotify; a busy node has none left."""

    @pytest.fixture
    def limit(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[OSError]]:
        """What inotify fails with, as long as it is in here."""
        errors: list[OSError] = []
        usual: Callable[..., Any] = Inotify._add_watch

        def add(*arguments: Any) -> Any:
            if errors:
                raise errors[0]
            return usual(*arguments)

        monkeypatch.setattr(Inotify, "_add_watch", add)
        yield errors

    @pytest.mark.parametrize(
        ("number", "setting"), [(errno.ENOSPC, "max_user_watches"), (errno.EMFILE, "max_user_instances")]
    )
    def test_is_said_once_with_what_to_do(
        self, number: int, setting: str, file: Path, present: None, limit: list[OSError]
    ) -> None:
        limit.append(OSError(number, "inotify limit reached"))
        watched = Watched(file)
        try:
            watched.watch.refresh()
            assert sorted(message.split(": ")[0] for message in watched.complaints) == [
                f"{file.parents[1]} cannot be watched",
                f"{file.parent} cannot be watched",
            ]
            assert all(
                f"inotify limit reached; changes there are found at the resync only; raise it with sysctl, "
                f"fs.inotify.{setting}, then" in message
                for message in watched.complaints
            )
            limit.clear()
            watched.watch.follow(watched.paths)
            watched.settle()
            file.write_text("y")
            assert watched.told(), "a reload tries again"
            assert len(watched.complaints) == 2
        finally:
            watched.watch.stop()

    @pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR])
    def test_a_directory_just_gone_is_tried_again_in_silence(
        self, number: int, file: Path, present: None, limit: list[OSError]
    ) -> None:
        limit.append(OSError(number, "gone"))
        watched = Watched(file)
        try:
            limit.clear()
            watched.settle()
            file.write_text("y")
            assert watched.told(), "the next refresh tries again"
            assert watched.complaints == []
        finally:
            watched.watch.stop()


class TestDirectories:
    def named(self, *paths: Path) -> dict[str, frozenset[str] | None]:
        return {directory.path: directory.only for directory in directories(map(str, paths))}

    def test_its_own_and_the_one_above(self, file: Path, run: Path, present: None) -> None:
        assert self.named(file) == {str(file.parent): None, str(run): frozenset((str(file.parent),))}

    def test_the_nearest_that_exists(self, run: Path) -> None:
        assert self.named(run / "a" / "b" / "c") == {str(run): frozenset((str(run / "a"),))}

    def test_several_files_share_their_directories(self, run: Path) -> None:
        named = self.named(run / "a" / "x", run / "b" / "x", run / "y")
        assert named[str(run)] is None
        assert named[str(run.parent)] == frozenset((str(run),))
        assert set(named) == {str(run), str(run.parent)}

    def test_a_directory_made_anew_is_another(self, run: Path) -> None:
        before = directories([str(run / "x")])
        run.rename(run.with_name("old"))
        run.mkdir()
        assert directories([str(run / "x")]) != before

    def test_a_file_in_the_root_directory(self) -> None:
        status = Path("/").stat()
        assert directories(["/subnet.env"]) == {Directory("/", (status.st_dev, status.st_ino), None)}

    def test_a_file_where_a_directory_should_be(self, run: Path) -> None:
        (run / "flannel").write_text("")
        assert self.named(run / "flannel" / "subnet.env") == {str(run): frozenset((str(run / "flannel"),))}
