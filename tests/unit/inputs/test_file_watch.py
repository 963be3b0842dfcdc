"""Which changes of the file system are told, and which are not. Real inotify, in a directory of the test."""

from __future__ import annotations

import errno
import itertools
import os
import queue
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from watchdog.observers import Observer
from watchdog.observers.api import ObservedWatch
from watchdog.observers.inotify_c import Inotify

from flanneld_masq.inputs import file_watch
from flanneld_masq.inputs.file_watch import MAX_DIRECTORIES, Directory, FileWatch, directories
from flanneld_masq.inputs.path_steps import MAX_LINKS

from ...common import patience

SECONDS = 5.0
QUIET = 0.02


class Watched:
    """A file that is watched for, as the daemon does it: each call is followed by `refresh`.

    The kernel reports one change several times; reports within QUIET seconds of each other are one.
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


def mkdir(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


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


class TestPatterns:
    """Entries that stand for several files; each step is reported, and so are later changes of the new files."""

    @pytest.mark.parametrize("entry", ["flannel", "flannel/*.env", "fl*/*.env", "*/subnet.env"])
    def test_files_appear_change_and_vanish(self, run: Path, file: Path, entry: str) -> None:
        watched = Watched(run / entry)
        try:
            file.parent.mkdir()
            assert watched.told()
            write(file)
            assert watched.told()
            file.write_text("in place")
            assert watched.told()
            file.unlink()
            assert watched.told()
            shutil.rmtree(file.parent)
            assert watched.told()
            write(file)
            assert watched.told()
        finally:
            watched.watch.stop()

    def test_another_directory_that_matches(self, run: Path, file: Path, present: None) -> None:
        watched = Watched(run / "*/subnet.env")
        try:
            write(run / "other" / "subnet.env")
            assert watched.told()
            (run / "other" / "subnet.env").write_text("in place")
            assert watched.told()
        finally:
            watched.watch.stop()

    @pytest.mark.parametrize("entry", ["flannel", "flannel/*.env"])
    def test_file_that_is_a_link_to_another_directory(self, run: Path, file: Path, entry: str) -> None:
        target = run / "elsewhere" / "lease"
        write(target)
        file.parent.mkdir()
        file.symlink_to(target)
        watched = Watched(run / entry)
        try:
            target.write_text("in place")
            assert watched.told()
        finally:
            watched.watch.stop()


class TestSameInode:
    """A file system may give a new directory the inode of the one that was removed just before."""

    @pytest.fixture(autouse=True)
    def one_inode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def same(paths: Iterable[str]) -> frozenset[Directory]:
            return frozenset(replace(found, identity=(0, 0)) for found in directories(paths))

        monkeypatch.setattr(file_watch, "directories", same)

    @pytest.mark.parametrize("prune", [True, False])
    def test_a_directory_made_again_is_watched(self, prune: bool, file: Path) -> None:
        file.parent.mkdir(parents=True)
        watched = Watched(file)
        try:
            for text in "abc":
                file.write_text(text)
                assert watched.called(SECONDS)
                shutil.rmtree(file.parent)
                file.parent.mkdir()
                while watched.called(0.1):
                    watched.watch.refresh(prune=prune)
                file.write_text("again")
                assert watched.called(SECONDS), "the kernel ended the watch with the directory"
                while watched.called():
                    watched.watch.refresh(prune=prune)
        finally:
            watched.watch.stop()


class TestWhatCannotBeWatched:
    """The kernel allows so many watches and instances of inotify; a busy node has none left."""

    @pytest.fixture
    def limit(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[OSError]]:
        """Return a list. While it holds an error, inotify fails with it."""
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

    def test_threads_that_are_used_up_are_no_error(
        self, file: Path, present: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> None:
            raise RuntimeError("can't start new thread")

        watched = Watched(file)
        monkeypatch.setattr(watched.watch._observer, "schedule", refuse)
        watched.watch.follow((str(file.with_name("other")), str(file.parents[1] / "third")))
        watched.watch.stop()
        assert all("cannot be watched: can't start new thread; changes" in line for line in watched.complaints)
        assert watched.complaints

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


class TestLinks:
    """Symbolic links on the way to the file: each change of where they lead is reported."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> Path:
        target = tmp_path / "elsewhere" / "flannel" / "subnet.env"
        target.parent.mkdir(parents=True)
        write(target)
        return target

    @pytest.fixture(params=["file", "directory", "parent"])
    def linked(self, request: pytest.FixtureRequest, run: Path, target: Path) -> tuple[Path, Path, Path]:
        """The path to the file, the link on that path, and what the link leads to."""
        if request.param == "file":
            (run / "flannel").mkdir()
            return run / "flannel" / "subnet.env", run / "flannel" / "subnet.env", target
        if request.param == "directory":
            return run / "flannel" / "subnet.env", run / "flannel", target.parent
        return run / "up" / "flannel" / "subnet.env", run / "up", target.parents[1]

    @pytest.fixture(params=["relative", "absolute"])
    def watched_link(
        self, request: pytest.FixtureRequest, linked: tuple[Path, Path, Path]
    ) -> Iterator[tuple[Watched, Path, Path]]:
        file, link, target = linked
        link.symlink_to(os.path.relpath(target, link.parent) if request.param == "relative" else target)
        watched = Watched(file)
        yield watched, link, target
        watched.watch.stop()

    def test_the_file_behind_it_changes(self, watched_link: tuple[Watched, Path, Path], target: Path) -> None:
        watched, _, _ = watched_link
        target.write_text("in place")
        assert watched.told()
        write(target, "by rename")
        assert watched.told()
        target.unlink()
        assert watched.told()
        write(target, "back")
        assert watched.told()

    def test_it_is_pointed_elsewhere(self, watched_link: tuple[Watched, Path, Path], tmp_path: Path) -> None:
        watched, link, target = watched_link
        other = mkdir(tmp_path / "other") / target.name
        (shutil.copytree if target.is_dir() else shutil.copy)(target, other)
        link.with_name("new").symlink_to(other)
        link.with_name("new").replace(link)
        assert watched.told()
        Path(watched.paths[0]).write_text("in place")
        assert watched.told(), "the new target is watched"
        link.unlink()
        link.symlink_to(target)
        assert watched.told()

    def test_it_dangles_until_its_target_appears(
        self, linked: tuple[Path, Path, Path], tmp_path: Path, target: Path
    ) -> None:
        file, link, goal = linked
        link.symlink_to(goal)
        (tmp_path / "elsewhere").rename(tmp_path / "away")
        watched = Watched(file)
        try:
            target.parent.mkdir(parents=True)
            assert watched.told()
            write(target)
            assert watched.told()
            target.write_text("in place")
            assert watched.told()
        finally:
            watched.watch.stop()

    def test_what_it_led_to_before_is_not_watched(self, run: Path, target: Path, tmp_path: Path) -> None:
        other = mkdir(tmp_path / "other")
        write(other / "subnet.env")
        (run / "flannel").symlink_to(target.parent)
        watched = Watched(run / "flannel" / "subnet.env")
        try:
            (run / "new").symlink_to(other)
            (run / "new").replace(run / "flannel")
            assert watched.told()
            target.write_text("in place")
            assert not watched.called()
        finally:
            watched.watch.stop()

    def test_no_watch_ends_before_the_rules_follow(
        self, watched_link: tuple[Watched, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The kernel takes 15 ms for each."""
        watched, link, target = watched_link
        other = mkdir(tmp_path / "other") / target.name
        (shutil.copytree if target.is_dir() else shutil.copy)(target, other)
        ended: list[ObservedWatch] = []
        observers: Any = Observer  # whose type differs between releases of watchdog
        end: Callable[[Any, ObservedWatch], None] = observers.unschedule

        def noting(observer: Any, watch: ObservedWatch) -> None:
            ended.append(watch)
            end(observer, watch)

        monkeypatch.setattr(Observer, "unschedule", noting)
        link.with_name("new").symlink_to(other)
        link.with_name("new").replace(link)
        assert watched.called(SECONDS)
        watched.watch.refresh(prune=False)
        assert ended == []
        Path(watched.paths[0]).write_text("in place")
        assert watched.told(), "the new target is watched"
        assert ended

    def test_watches_that_are_kept_are_few(self, run: Path, tmp_path: Path) -> None:
        (run / "flannel").symlink_to(mkdir(tmp_path / "first"))
        watched = Watched(run / "flannel" / "subnet.env")
        try:
            for number in range(3 * MAX_DIRECTORIES):
                (run / "new").symlink_to(mkdir(tmp_path / str(number)))
                (run / "new").replace(run / "flannel")
                watched.watch.refresh(prune=False)
                assert len(watched.watch._watches) <= MAX_DIRECTORIES + 4
        finally:
            watched.watch.stop()

    def test_a_config_map_is_swapped(self, run: Path) -> None:
        """As the kubelet does: the file is a link through the link `..data`, which is replaced by rename."""

        def swap(generation: str) -> None:
            write(mkdir(run / generation) / "subnet.env", generation)
            (run / "..data_tmp").symlink_to(generation)
            (run / "..data_tmp").replace(run / "..data")

        swap("..2026_1")
        (run / "subnet.env").symlink_to("..data/subnet.env")
        watched = Watched(run / "subnet.env")
        try:
            for number in range(2, 5):
                swap(f"..2026_{number}")
                assert watched.told()
                shutil.rmtree(run / f"..2026_{number - 1}")
                watched.settle()
            (run / "..2026_4" / "subnet.env").write_text("in place")
            assert watched.told()
        finally:
            watched.watch.stop()

    def test_a_loop_ends_and_its_repair_is_told(self, run: Path, target: Path) -> None:
        (run / "a").symlink_to("b")
        (run / "b").symlink_to("a")
        watched = Watched(run / "a" / "subnet.env")
        try:
            (run / "new").symlink_to(target.parent)
            (run / "new").replace(run / "b")
            assert watched.told()
            write(target, "y")
            assert watched.told()
        finally:
            watched.watch.stop()

    def test_a_chain_is_followed_as_far_as_the_kernel_does(self, run: Path, target: Path) -> None:
        (run / "link1").symlink_to(target)
        for number in range(2, MAX_LINKS + 2):
            (run / f"link{number}").symlink_to(f"link{number - 1}")
        longest, too_long = run / f"link{MAX_LINKS}", run / f"link{MAX_LINKS + 1}"
        assert not os.access(too_long, os.R_OK)
        assert str(target.parent) in {directory.path for directory in directories([str(longest)])}
        assert {directory.path for directory in directories([str(too_long)])} == {str(run)}

    def test_links_in_many_directories_do_not_take_all_threads(self, run: Path, target: Path) -> None:
        before = target
        for number in range(20):
            link = mkdir(run / str(number)) / "link"
            link.symlink_to(before)
            before = link
        watched = {directory.path for directory in directories([str(before)])}
        assert len(watched) == MAX_DIRECTORIES
        assert str(target.parent) in watched, "the file itself comes first"

    def test_one_that_never_rests_does_not_hold_up(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        watched = Watched(run / "subnet.env")
        rounds = itertools.count()
        monkeypatch.setattr(watched.watch, "_update", lambda prune: next(rounds) >= 0)
        watched.watch.refresh()
        watched.watch.stop()
        assert 1 < next(rounds) < 100


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG])
class TestAWayThatIsRefused:
    """A directory on the way cannot be entered, or its file system is gone."""

    @pytest.fixture(autouse=True)
    def refused(self, number: int, run: Path, file: Path, present: None, monkeypatch: pytest.MonkeyPatch) -> Path:
        usual = os.readlink

        def readlink(path: str, **options: Any) -> str:
            if str(path).startswith(f"{run}/flannel"):
                raise OSError(number, os.strerror(number), path)
            return usual(path, **options)

        monkeypatch.setattr(os, "readlink", readlink)
        return run / "flannel"

    def test_the_directory_before_it_is_watched(self, run: Path, refused: Path, file: Path) -> None:
        named = {directory.path: directory.only for directory in directories([str(file)])}
        assert named == {str(run): frozenset((str(refused),)), str(run.parent): frozenset((str(run),))}

    def test_its_end_is_told(self, refused: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        watched = Watched(file)
        try:
            monkeypatch.undo()
            refused.chmod(0o711)
            assert watched.told()
            write(file, "y")
            assert watched.told()
        finally:
            watched.watch.stop()


def watch_as_an_ordinary_user(directory: Path, complaints: Connection) -> None:
    """Watch for a file in a directory, and stop; in a process of its own."""
    if os.geteuid() == 0:
        os.setuid(65534)
    watch = FileWatch(lambda: None, complaints.send)
    watch.start((str(directory / "subnet.env"),))
    watch.follow(())
    watch.stop()
    complaints.close()


def test_a_directory_that_may_be_entered_but_not_read_is_named() -> None:
    """watchdog hides that it has no watch there, and waits for ever when the watch is to end."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        directory.chmod(0o311)
        receiver, sender = Pipe(duplex=False)
        process = get_context("fork").Process(target=watch_as_an_ordinary_user, args=(directory, sender), daemon=True)
        process.start()
        sender.close()
        try:
            assert receiver.poll(patience(10))
            assert f"{directory} cannot be watched: Permission denied" in receiver.recv()
            process.join(patience(10))
            assert process.exitcode == 0
        finally:
            process.kill()
            receiver.close()
            directory.chmod(0o700)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_directory_that_cannot_be_looked_at_is_no_error(
    number: int, run: Path, file: Path, present: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if path == file.parent:
            raise OSError(number, os.strerror(number), path)
        return usual(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert {directory.path for directory in directories([str(file)])} == {str(run)}


def test_a_file_that_leaves_holds_back_nothing(file: Path, present: None, watched: Watched, tmp_path: Path) -> None:
    """watchdog waits for the other half of the rename, and what comes after it waits too."""
    file.rename(tmp_path / "away")
    write(file)
    started = time.monotonic()
    assert watched.told()
    assert time.monotonic() - started < 0.4


class TestDirectories:
    def named(self, *paths: Path) -> dict[str, frozenset[str]]:
        return {directory.path: directory.only for directory in directories(map(str, paths))}

    def test_its_own_and_the_one_above(self, file: Path, run: Path, present: None) -> None:
        assert self.named(file) == {str(file.parent): frozenset((str(file),)), str(run): frozenset((str(file.parent),))}

    def test_the_nearest_that_exists_and_the_one_above(self, run: Path) -> None:
        assert self.named(run / "a" / "b" / "c") == {
            str(run): frozenset((str(run / "a"),)),
            str(run.parent): frozenset((str(run),)),
        }

    def test_several_files_share_their_directories(self, run: Path) -> None:
        (run / "a").mkdir()
        named = self.named(run / "a" / "x", run / "b" / "x", run / "y")
        assert named == {
            str(run / "a"): frozenset((str(run / "a" / "x"),)),
            str(run): frozenset(str(run / name) for name in "aby"),
            str(run.parent): frozenset((str(run),)),
        }

    def test_a_directory_made_again_is_another(self, run: Path) -> None:
        before = directories([str(run / "x")])
        run.rename(run.with_name("old"))
        run.mkdir()
        assert directories([str(run / "x")]) != before

    def test_a_file_in_the_root_directory(self) -> None:
        status = Path("/").stat()
        only = frozenset(("/subnet.env",))
        assert directories(["/subnet.env"]) == {Directory("/", (status.st_dev, status.st_ino), only)}

    def test_the_root_directory_is_watched_only_if_all_is_missing(self) -> None:
        assert set(self.named(Path("/nonexistent-directory/subnet.env"))) == {"/"}
        assert set(self.named(Path("/proc/nonexistent.env"))) == {"/proc"}

    def test_a_file_where_a_directory_should_be(self, run: Path) -> None:
        (run / "flannel").write_text("")
        assert self.named(run / "flannel" / "subnet.env") == {
            str(run): frozenset((str(run / "flannel"),)),
            str(run.parent): frozenset((str(run),)),
        }

    def test_dots_are_taken_as_the_kernel_takes_them(self, run: Path, file: Path, present: None) -> None:
        (run / "a").mkdir()
        (run / "link").symlink_to("a")
        assert self.named(run / "link" / ".." / "." / "flannel" / "subnet.env") == {
            str(file.parent): frozenset((str(file),)),
            str(run): frozenset((str(run / "link"), str(file.parent))),
        }
