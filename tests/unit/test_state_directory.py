"""The state directory keeps good files, refuses others, and has one holder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanneld_masq import state_directory
from flanneld_masq.errors import AlreadyRunning, MasqError, StateError
from flanneld_masq.inputs import processes
from flanneld_masq.model import BackendName, Family, Holder, Item, ItemKind, Neighbours, VerifiedState
from flanneld_masq.state_directory import StateDirectory

from ..common import eventually, is_root

NFT = BackendName("nft")
GOLDEN = VerifiedState(
    "f1",
    (
        Item(ItemKind.CHAIN, "ip t", "chain c", raw="c"),
        Item(ItemKind.RULE, "ip t c", 'a "b" \\ ü', raw="00ff", tag="t1"),
    ),
    (Neighbours("ip t", ("a", "b"), ("c",)),),
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "var" / "state"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@contextmanager
def held(path: Path, text: str = "") -> Iterator[None]:
    """As another process would hold it: flock goes by open file, not by process."""
    write(path, text)
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class TestGolden:
    def test_none_at_first(self, directory: Path) -> None:
        assert StateDirectory(directory).verified_state(NFT, Family.IPV4) is None
        assert not directory.exists(), "looking makes nothing"

    def test_comes_back_here_and_in_another_process(self, directory: Path) -> None:
        kept = StateDirectory(directory)
        kept.remember(NFT, Family.IPV4, GOLDEN)
        for reader in (kept, kept, StateDirectory(directory)):
            assert reader.verified_state(NFT, Family.IPV4) == GOLDEN

    def test_each_backend_and_family_by_itself(self, directory: Path) -> None:
        kept = StateDirectory(directory)
        kept.remember(NFT, Family.IPV4, GOLDEN)
        assert kept.verified_state(NFT, Family.IPV6) is None
        assert kept.verified_state(BackendName("iptables-nft"), Family.IPV4) is None

    def test_handles_are_not_kept(self, directory: Path) -> None:
        kept = StateDirectory(directory)
        kept.remember(NFT, Family.IPV4, VerifiedState("f", (Item(ItemKind.RULE, "p", "t", handle=7),)))
        assert kept.verified_state(NFT, Family.IPV4) == VerifiedState("f", (Item(ItemKind.RULE, "p", "t"),))

    def test_the_same_again_is_not_written_again(self, directory: Path) -> None:
        kept = StateDirectory(directory)
        kept.remember(NFT, Family.IPV4, GOLDEN)
        before = (directory / "nft-ipv4.json").stat()
        kept.remember(NFT, Family.IPV4, GOLDEN)
        assert (directory / "nft-ipv4.json").stat() == before

    def test_another_process_s_is_seen(self, directory: Path) -> None:
        one, two = StateDirectory(directory), StateDirectory(directory)
        one.remember(NFT, Family.IPV4, GOLDEN)
        assert two.verified_state(NFT, Family.IPV4) == GOLDEN
        changed = VerifiedState("f2", GOLDEN.items)
        one.remember(NFT, Family.IPV4, changed)
        assert two.verified_state(NFT, Family.IPV4) == changed

    def test_forgotten(self, directory: Path) -> None:
        kept = StateDirectory(directory)
        kept.remember(NFT, Family.IPV4, GOLDEN)
        kept.forget(NFT, Family.IPV4)
        kept.forget(NFT, Family.IPV4)
        assert kept.verified_state(NFT, Family.IPV4) is None
        assert list(directory.iterdir()) == []

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "null",
            "[]",
            "5",
            "{}",
            '{"fingerprint": "f"}',
            '{"fingerprint": "f", "items": [], "neighbours": 5}',
            '{"fingerprint": "f", "items": 5, "neighbours": []}',
            '{"fingerprint": "f", "items": ["x"], "neighbours": []}',
            '{"fingerprint": "f", "items": [{"kind": "rule"}], "neighbours": []}',
            '{"fingerprint": "f", "items": [{"kind": "a", "place": "b", "text": "c", "new": 1}], "neighbours": []}',
            '{"fingerprint": "f", "items": [], "neighbours": [{"place": "p"}]}',
            '{"fingerprint": "f", "items": [], "neighbours": [{"place": "p", "before": 1, "after": []}]}',
            "[" * 100_000,
        ],
        ids=range(15),
    )
    def test_a_corrupt_file_is_as_good_as_none(self, text: str, directory: Path) -> None:
        write(directory / "nft-ipv4.json", text)
        assert StateDirectory(directory).verified_state(NFT, Family.IPV4) is None

    @settings(max_examples=25)
    @given(cut=st.integers(0, 400), junk=st.binary(max_size=4))
    def test_a_file_that_was_cut_or_overwritten(self, cut: int, junk: bytes, tmp_path_factory: Any) -> None:
        directory = tmp_path_factory.mktemp("state")
        StateDirectory(directory).remember(NFT, Family.IPV4, GOLDEN)
        path = directory / "nft-ipv4.json"
        data = path.read_bytes()
        path.write_bytes(data[:cut] + junk + data[cut + len(junk) :] if junk else data[:cut])
        state = StateDirectory(directory).verified_state(NFT, Family.IPV4)
        assert state is None or isinstance(state, VerifiedState)
        if not junk and cut < len(data) - 1:
            assert state is None

    def test_a_directory_in_its_place(self, directory: Path) -> None:
        (directory / "nft-ipv4.json").mkdir(parents=True)
        kept = StateDirectory(directory)
        assert kept.verified_state(NFT, Family.IPV4) is None
        kept.remember(NFT, Family.IPV4, GOLDEN)
        assert "nft-ipv4.json: Is a directory; " in kept.trouble
        assert [file.name for file in directory.iterdir()] == ["nft-ipv4.json"], "no half-written file is left"

    @pytest.mark.skipif(not is_root(), reason="needs root to give a file away")
    def test_a_file_of_another_user_is_not_believed(self, directory: Path) -> None:
        StateDirectory(directory).remember(NFT, Family.IPV4, GOLDEN)
        os.chown(directory / "nft-ipv4.json", 65534, 65534)
        assert StateDirectory(directory).verified_state(NFT, Family.IPV4) is None


class TestDirectory:
    def test_is_made_with_those_above_it(self, directory: Path) -> None:
        StateDirectory(directory).write_status({})
        assert stat.S_IMODE(directory.stat().st_mode) == 0o755

    def test_files_can_be_read_by_all_and_are_whole(self, directory: Path) -> None:
        StateDirectory(directory).remember(NFT, Family.IPV4, GOLDEN)
        (file,) = directory.iterdir()
        assert file.name == "nft-ipv4.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        assert json.loads(file.read_text())["fingerprint"] == "f1"

    @pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
    def test_one_that_others_can_write_is_refused(self, mode: int, directory: Path) -> None:
        directory.mkdir(parents=True)
        directory.chmod(mode)
        kept = StateDirectory(directory)
        attempts: tuple[Callable[[], object], ...] = (
            lambda: kept.write_status({}),
            lambda: kept.instance().__enter__(),
        )
        for attempt in attempts:
            with pytest.raises(StateError, match=r"can be written by others than root; .* `chmod 755`"):
                attempt()
        with kept.exclusive(Family.IPV4):
            kept.remember(NFT, Family.IPV4, GOLDEN)
        assert "can be written by others than root; `chown root` and `chmod 755` it" in kept.trouble
        assert kept.verified_state(NFT, Family.IPV4) == GOLDEN
        assert list(directory.iterdir()) == []

    @pytest.mark.skipif(not is_root(), reason="needs root to give a directory away")
    def test_one_that_belongs_to_another_user_is_refused(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        os.chown(directory, 65534, 65534)
        with pytest.raises(StateError, match="can be written by others than root"):
            StateDirectory(directory).write_status({})

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        write(tmp_path / "state", "")
        with pytest.raises(StateError, match=r"status\.json cannot be written: File exists"):
            StateDirectory(tmp_path / "state").write_status({})

    @pytest.mark.parametrize(
        ("number", "user", "remedy"),
        [
            (errno.EROFS, 0, "ReadWritePaths="),
            (errno.EACCES, 65534, "ReadWritePaths="),
            (errno.EACCES, 1000, "run as root"),
            (errno.ENOSPC, 0, "make room there"),
            (errno.EDQUOT, 0, "make room there"),
            (errno.EIO, 0, "check the files there"),
        ],
    )
    def test_one_that_cannot_be_made(
        self, number: int, user: int, remedy: str, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(state_directory, "SERVICE_USER", "nobody")
        monkeypatch.setattr(Path, "mkdir", refuse)
        monkeypatch.setattr(os, "geteuid", lambda: user)
        kept = StateDirectory(directory)
        with kept.instance(), kept.exclusive(Family.IPV4):
            kept.remember(NFT, Family.IPV4, GOLDEN)
            assert kept.verified_state(NFT, Family.IPV4) == GOLDEN
        assert kept.trouble.startswith(
            f"state directory {directory} cannot be used; repairs go on, but the daemon keeps its state in memory, "
            f"and locks that cannot be opened have no effect: lock: {os.strerror(number)}; "
        )
        assert remedy in kept.trouble
        assert kept.trouble.count(os.strerror(number)) == 1, "one cause is said once"

    @pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.with_name("precious"))])
    def test_a_lock_that_is_no_file_excludes_nobody(self, make: Callable[[Path], None], directory: Path) -> None:
        directory.mkdir(parents=True)
        write(directory / "precious", "precious")
        for name in ("lock", "ipv4.lock"):
            make(directory / name)
        for _ in range(2):
            kept = StateDirectory(directory)
            with kept.instance(), kept.exclusive(Family.IPV4), kept.exclusive(Family.IPV6):
                assert "lock: " in kept.trouble
        assert (directory / "precious").read_text() == "precious"

    def test_a_lock_that_is_a_link_names_no_holder(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        write(directory / "another", str(os.getpid()))
        (directory / "lock").symlink_to("another")
        with (directory / "another").open() as another:
            fcntl.flock(another, fcntl.LOCK_EX)
            holder = StateDirectory(directory).holder()
        assert (holder.runs, os.strerror(errno.ELOOP) in holder.why) == (None, True)

    def test_a_file_system_without_locks(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
        kept = StateDirectory(directory)
        with kept.instance(), kept.exclusive(Family.IPV4):
            assert "lock: No locks available" in kept.trouble


class TestADirectoryThatIsFull:
    @pytest.fixture
    def full(self, monkeypatch: pytest.MonkeyPatch) -> list[OSError]:
        """Return a list. While it holds an error, writing fails with it."""
        errors: list[OSError] = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]
        usual = {name: getattr(os, name) for name in ("fchmod", "pwrite")}

        def refusing(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if errors:
                    raise errors[0]
                return usual[name](*arguments, **options)

            return call

        for name in usual:
            monkeypatch.setattr(os, name, refusing(name))
        return errors

    def test_what_cannot_be_written_is_kept_and_written_later(self, directory: Path, full: list[OSError]) -> None:
        kept = StateDirectory(directory)
        kept.remember(NFT, Family.IPV4, GOLDEN)
        assert kept.verified_state(NFT, Family.IPV4) == GOLDEN
        assert "nft-ipv4.json: No space left on device; make room there" in kept.trouble
        assert list(directory.iterdir()) == []
        full.clear()
        assert kept.verified_state(NFT, Family.IPV4) == GOLDEN
        assert kept.trouble == ""
        assert StateDirectory(directory).verified_state(NFT, Family.IPV4) == GOLDEN

    def test_what_another_process_writes_meanwhile_is_newer(self, directory: Path, full: list[OSError]) -> None:
        kept, newer = StateDirectory(directory), VerifiedState("f2", GOLDEN.items)
        kept.remember(NFT, Family.IPV4, GOLDEN)
        full.clear()
        StateDirectory(directory).remember(NFT, Family.IPV4, newer)
        assert kept.verified_state(NFT, Family.IPV4) == newer
        assert StateDirectory(directory).verified_state(NFT, Family.IPV4) == newer

    def test_what_cannot_be_forgotten_is_forgotten_in_memory(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        kept = StateDirectory(directory)
        kept.remember(NFT, Family.IPV4, GOLDEN)
        with monkeypatch.context() as read_only:
            read_only.setattr(Path, "unlink", refuse)
            kept.forget(NFT, Family.IPV6)
            assert kept.trouble == "", "there was nothing to forget"
            kept.forget(NFT, Family.IPV4)
            assert kept.verified_state(NFT, Family.IPV4) is None
            assert "nft-ipv4.json: Read-only file system" in kept.trouble
        assert kept.verified_state(NFT, Family.IPV4) is None
        assert list(directory.iterdir()) == [] and kept.trouble == ""

    def test_the_lock_without_a_pid_is_held(self, directory: Path, full: list[OSError]) -> None:
        kept = StateDirectory(directory)
        with kept.instance():
            assert "lock: No space left" in kept.trouble
            holder = StateDirectory(directory).holder()
            assert (holder.runs, holder.pid) == (True, 0)
            with pytest.raises(AlreadyRunning), StateDirectory(directory).instance():
                pass

    def test_the_status_is_refused(self, directory: Path, full: list[OSError]) -> None:
        kept = StateDirectory(directory)
        with pytest.raises(StateError, match=r"status\.json cannot be written: No space left on device"):
            kept.write_status({})
        assert "status.json: No space left" in kept.trouble
        full.clear()
        kept.write_status({})
        assert kept.trouble == ""


class TestTheLockOfAnInstanceThatCouldNotMakeIt:
    def test_is_taken_once_it_can_be_made(self, directory: Path) -> None:
        write(directory, "")
        kept = StateDirectory(directory)
        with kept.instance():
            kept.take_instance()
            assert StateDirectory(directory).holder().runs is False
            directory.unlink()
            kept.take_instance()
            kept.take_instance()
            assert StateDirectory(directory).holder().pid == os.getpid()
            assert kept.trouble == ""
        assert StateDirectory(directory).holder().runs is False

    def test_is_refused_if_another_has_it_by_then(self, directory: Path) -> None:
        write(directory, "")
        kept = StateDirectory(directory)
        with kept.instance():
            directory.unlink()
            with StateDirectory(directory).instance(), pytest.raises(AlreadyRunning, match=f"pid {os.getpid()} "):
                kept.take_instance()

    def test_its_daemon_is_known_by_its_status(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(processes, "_PROGRAM", b"py")  # this process stands in for the daemon
        StateDirectory(directory).write_status({"state": "synced", "pid": os.getpid()})
        holder = StateDirectory(directory).holder()
        assert (holder.runs, holder.pid) == (True, os.getpid())

    def test_one_on_a_read_only_file_system_is_held_all_the_same(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usual = os.open

        def read_only(path: Path, flags: int, *arguments: Any, **options: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return usual(path, flags, *arguments, **options)

        write(directory / "lock", "")
        write(directory / "ipv4.lock", "")
        monkeypatch.setattr(os, "open", read_only)
        monkeypatch.setattr(state_directory, "PASS_LOCK_SECONDS", 0.02)
        kept, other = StateDirectory(directory), StateDirectory(directory)
        with kept.instance(), pytest.raises(AlreadyRunning):
            other.take_instance()
        with kept.exclusive(Family.IPV4), pytest.raises(StateError, match="was held"), other.exclusive(Family.IPV4):
            pass


class TestLocks:
    def test_are_for_their_owner_alone(self, directory: Path) -> None:
        """A user who can open a lock can hold it."""
        kept = StateDirectory(directory)
        with kept.instance(), kept.exclusive(Family.IPV4):
            assert {stat.S_IMODE(lock.stat().st_mode) for lock in directory.iterdir()} == {0o600}


@pytest.mark.skipif(not is_root(), reason="needs root to give files away")
class TestUserOfTheService:
    """Commands of root and the daemon, a user of its own, share the files. The user nobody stands for that user."""

    @pytest.fixture(autouse=True)
    def nobody(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(state_directory, "SERVICE_USER", "nobody")
        directory.mkdir(parents=True)
        os.chown(directory, 65534, 65534)

    def test_what_it_wrote_is_believed(self, directory: Path) -> None:
        StateDirectory(directory).remember(NFT, Family.IPV4, GOLDEN)
        os.chown(directory / "nft-ipv4.json", 65534, 65534)
        assert StateDirectory(directory).verified_state(NFT, Family.IPV4) == GOLDEN

    def test_what_another_user_wrote_is_not(self, directory: Path) -> None:
        StateDirectory(directory).remember(NFT, Family.IPV4, GOLDEN)
        os.chown(directory / "nft-ipv4.json", 1, 1)
        assert StateDirectory(directory).verified_state(NFT, Family.IPV4) is None

    def test_a_lock_that_root_makes_is_its_own(self, directory: Path) -> None:
        with StateDirectory(directory).exclusive(Family.IPV4):
            status = (directory / "ipv4.lock").stat()
            assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, 65534, 0o600)

    def test_a_file_that_it_found_elsewhere_is_not(self, directory: Path, tmp_path: Path) -> None:
        """With a link, root would give it the file of another user."""
        write(tmp_path / "precious", "precious")
        os.link(tmp_path / "precious", directory / "ipv4.lock")
        with StateDirectory(directory).exclusive(Family.IPV4):
            assert (tmp_path / "precious").stat().st_uid == 0


class TestStatus:
    def test_round_trip(self, directory: Path) -> None:
        assert StateDirectory(directory).status() is None
        StateDirectory(directory).write_status({"state": "synced", "pid": 5})
        assert StateDirectory(directory).status() == {"state": "synced", "pid": 5}

    @pytest.mark.parametrize("text", ["", "[]", "{", "\x00", "nonsense"])
    def test_a_corrupt_one_is_none(self, text: str, directory: Path) -> None:
        write(directory / "status.json", text)
        assert StateDirectory(directory).status() is None


class TestAuthors:
    def test_they_are_for_the_owner_alone(self, tmp_path: Path) -> None:
        store = StateDirectory(tmp_path)
        store.write_authors({"ipv4": {"time": "then"}})
        assert store.authors() == {"ipv4": {"time": "then"}}
        assert (tmp_path / "authors.json").stat().st_mode & 0o777 == 0o600

    def test_none_make_no_file(self, tmp_path: Path) -> None:
        StateDirectory(tmp_path).write_authors({})
        assert not (tmp_path / "authors.json").exists()

    def test_a_failure_is_over_once_nothing_is_to_be_written(self, tmp_path: Path) -> None:
        store = StateDirectory(tmp_path)
        (tmp_path / "authors.json").mkdir()
        with pytest.raises(StateError):
            store.write_authors({"ipv4": {}})
        assert "authors.json: Is a directory" in store.trouble
        (tmp_path / "authors.json").rmdir()
        store.write_authors({})
        assert store.trouble == ""


LOCK_TEXT = f"{os.getpid()}\n{Path('/proc/self/ns/pid').readlink()}\n"


class TestInstance:
    def test_the_second_is_refused_and_the_first_is_named(self, directory: Path) -> None:
        with StateDirectory(directory).instance():
            assert StateDirectory(directory).holder() == Holder(True, os.getpid(), f"{directory}/lock is held")
            with pytest.raises(AlreadyRunning) as caught, StateDirectory(directory).instance():
                pass
        assert f"pid {os.getpid()} (" in str(caught.value)
        assert "python" in str(caught.value), "with its command line"
        assert str(directory) in str(caught.value)

    def test_the_end_of_the_first_may_be_waited_for(self, directory: Path) -> None:
        entered = threading.Event()

        def enter() -> None:
            with StateDirectory(directory).instance(60):
                entered.set()

        thread = threading.Thread(target=enter)
        with StateDirectory(directory).instance():
            thread.start()
            assert not entered.wait(0.03)
        assert entered.wait(5)
        thread.join(5)

    def test_the_next_is_welcome(self, directory: Path) -> None:
        for _ in range(2):
            with StateDirectory(directory).instance():
                assert (directory / "lock").read_text() == LOCK_TEXT
        assert StateDirectory(directory).holder().runs is False

    def test_a_pid_that_was_left_behind_is_no_daemon(self, directory: Path) -> None:
        write(directory / "lock", "1\n")
        assert StateDirectory(directory).holder().runs is False
        with StateDirectory(directory).instance():
            assert (directory / "lock").read_text() == LOCK_TEXT

    @pytest.mark.parametrize(("text", "shown"), [("", "pid "), ("nonsense", "pid nonsense"), ("99999999", "99999999")])
    def test_a_holder_that_cannot_be_named(self, text: str, shown: str, directory: Path) -> None:
        with held(directory / "lock", text):
            with pytest.raises(AlreadyRunning, match=shown), StateDirectory(directory).instance():
                pass
            holder = StateDirectory(directory).holder()
            assert (holder.runs, str(holder.pid)) == (True, text if text.isdigit() else "0")

    def test_a_holder_in_another_pid_namespace(self, directory: Path) -> None:
        """Its pid is that of another process here, or of none."""
        with held(directory / "lock", f"{os.getpid()}\npid:[1]\n"):
            holder = StateDirectory(directory).holder()
            named = f"pid {os.getpid()} in another pid namespace; stop it first"
            with pytest.raises(AlreadyRunning, match=named), StateDirectory(directory).instance():
                pass
        assert (holder.runs, holder.pid, holder.elsewhere) == (True, 0, True)

    def test_a_holder_that_has_written_nothing_yet(self, directory: Path) -> None:
        with held(directory / "lock", ""):
            holder = StateDirectory(directory).holder()
        assert (holder.runs, holder.pid, holder.elsewhere) == (True, 0, False)

    def test_a_holder_of_an_earlier_release(self, directory: Path) -> None:
        with held(directory / "lock", f"{os.getpid()}\n"):
            holder = StateDirectory(directory).holder()
        assert (holder.pid, holder.elsewhere) == (os.getpid(), False)

    def test_no_directory_no_daemon(self, directory: Path) -> None:
        assert StateDirectory(directory).holder().runs is False
        assert not directory.exists()

    def test_those_who_ask_are_not_taken_for_a_daemon(self, directory: Path) -> None:
        write(directory / "lock", "1\n")
        with (directory / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # as another command does for a moment
            assert StateDirectory(directory).holder().runs is False


class TestALockForRootAlone:
    """An ordinary user asks: the lock says nothing, so the status file is believed as far as it can be."""

    @pytest.fixture(autouse=True)
    def no_permission(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(directory / "lock", f"{os.getpid()}\n")
        usual = os.open

        def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
            if path == directory / "lock":
                raise PermissionError(errno.EACCES, "Permission denied")
            return usual(path, *arguments, **options)

        monkeypatch.setattr(os, "open", refuse)

    @pytest.mark.parametrize("name", ["/usr/bin/flanneld-masq", "/sbin/init"])
    def test_it_runs_or_another_program_has_its_pid(self, name: str, directory: Path) -> None:
        """In a container the daemon is pid 1, as init is on the host."""
        with subprocess.Popen((name, "60"), executable="/bin/sleep") as process:
            try:
                StateDirectory(directory).write_status({"state": "synced", "pid": process.pid})
                eventually(Path(f"/proc/{process.pid}/cmdline").read_bytes)  # empty for a moment
                holder = StateDirectory(directory).holder()
                known = (True, process.pid) if "flanneld" in name else (None, 0)
                assert (holder.runs, holder.pid) == known
                assert ("or runs in a container" in holder.why) == (not holder.runs)
            finally:
                process.kill()

    def test_it_was_stopped(self, directory: Path) -> None:
        StateDirectory(directory).write_status({"state": "stopped", "pid": os.getpid()})
        assert StateDirectory(directory).holder() == Holder(False, 0, f"{directory}/status.json says so")

    @pytest.mark.parametrize("pid", [99999999, 0, -1, None, "nonsense", True, 1e308, float("inf"), 10**400, [], {}])
    def test_it_was_killed(self, pid: object, directory: Path) -> None:
        StateDirectory(directory).write_status({"state": "synced", "pid": pid})
        assert StateDirectory(directory).holder().runs is False

    @pytest.mark.skipif(not is_root(), reason="needs root to start a process of another user")
    def test_its_pid_belongs_to_another_user_now(self, directory: Path) -> None:
        with subprocess.Popen(("sleep", "60"), user=65534) as stranger:
            try:
                StateDirectory(directory).write_status({"state": "synced", "pid": stranger.pid})
                assert StateDirectory(directory).holder().runs is False
            finally:
                stranger.kill()

    def test_nothing_is_known(self, directory: Path) -> None:
        holder = StateDirectory(directory).holder()
        assert (holder.runs, holder.pid) == (None, 0)
        assert f"{directory}/lock cannot be opened: Permission denied" in holder.why


class TestPassLock:
    def test_the_families_do_not_wait_for_each_other(self, directory: Path) -> None:
        kept = StateDirectory(directory)
        with kept.exclusive(Family.IPV4), kept.exclusive(Family.IPV6):
            assert sorted(file.name for file in directory.iterdir()) == ["ipv4.lock", "ipv6.lock"]

    def test_one_that_is_never_released_is_named(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(state_directory, "PASS_LOCK_SECONDS", 0.02)
        with (
            held(directory / "ipv4.lock"),
            pytest.raises(StateError, match=r"ipv4\.lock was held by another flanneld-masq for 0\.0"),
            StateDirectory(directory).exclusive(Family.IPV4),
        ):
            pass

    def test_is_waited_for(self, directory: Path) -> None:
        waiting = threading.Event()
        entered = threading.Event()

        def enter() -> None:
            waiting.set()
            with StateDirectory(directory).exclusive(Family.IPV4):
                entered.set()

        thread = threading.Thread(target=enter)
        with StateDirectory(directory).exclusive(Family.IPV4):
            thread.start()
            assert waiting.wait(5)
            assert not entered.wait(0.03)
        thread.join(5)
        assert entered.is_set()

    def test_stop_ends_the_waiting_until_resume(self, directory: Path) -> None:
        kept = StateDirectory(directory)
        failures: list[MasqError] = []

        def enter() -> None:
            try:
                with kept.exclusive(Family.IPV4):
                    pass
            except StateError as error:
                failures.append(error)

        with held(directory / "ipv4.lock"):
            thread = threading.Thread(target=enter)
            thread.start()
            kept.stop()
            thread.join(5)
            assert len(failures) == 1
        with kept.exclusive(Family.IPV4):
            pass
        kept.resume()
        with kept.exclusive(Family.IPV4):
            pass

    def test_is_released_when_the_work_fails(self, directory: Path) -> None:
        kept = StateDirectory(directory)
        with pytest.raises(ZeroDivisionError), kept.exclusive(Family.IPV4):
            raise ZeroDivisionError
        with kept.exclusive(Family.IPV4):
            pass
