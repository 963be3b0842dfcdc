"""What survives in the state directory, what does not, and who may hold it."""

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
from flanneld_masq.model import BackendName, Family, Holder, Item, ItemKind, Neighbours, VerifiedState
from flanneld_masq.state_directory import StateDirectory

from ..common import is_root

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
        with pytest.raises(StateError, match=r"nft-ipv4\.json cannot be written"):
            kept.remember(NFT, Family.IPV4, GOLDEN)
        assert [file.name for file in directory.iterdir()] == ["nft-ipv4.json"], "no half-written file is left"

    @pytest.mark.skipif(not is_root(), reason="needs root to give a file away")
    def test_a_file_of_somebody_else_is_not_believed(self, directory: Path) -> None:
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
            lambda: kept.remember(NFT, Family.IPV4, GOLDEN),
            lambda: kept.instance().__enter__(),
            lambda: kept.exclusive(Family.IPV4).__enter__(),
        )
        for attempt in attempts:
            with pytest.raises(StateError, match=r"can be written by others than root; .* `chmod 755`"):
                attempt()
        assert list(directory.iterdir()) == []

    @pytest.mark.skipif(not is_root(), reason="needs root to give a directory away")
    def test_one_that_belongs_to_somebody_else_is_refused(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        os.chown(directory, 65534, 65534)
        with pytest.raises(StateError, match="can be written by others than root"):
            StateDirectory(directory).write_status({})

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        write(tmp_path / "state", "")
        with pytest.raises(StateError, match=r"cannot be made: File exists; ") as caught:
            StateDirectory(tmp_path / "state").write_status({})
        assert caught.value.lasting

    @pytest.mark.parametrize(
        ("number", "user", "lasting", "remedy"),
        [
            (errno.EROFS, 0, True, "ReadWritePaths="),
            (errno.EACCES, 65534, True, "ReadWritePaths="),
            (errno.EACCES, 1000, True, "run as root"),
            (errno.ENOSPC, 0, False, "look at what is there"),
        ],
    )
    def test_one_that_cannot_be_made(
        self, number: int, user: int, lasting: bool, remedy: str, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(state_directory, "SERVICE_USER", "nobody")
        monkeypatch.setattr(Path, "mkdir", refuse)
        monkeypatch.setattr(os, "geteuid", lambda: user)
        with pytest.raises(StateError, match=f"cannot be made: {os.strerror(number)}; ") as caught:
            StateDirectory(directory).write_status({})
        assert (caught.value.lasting, remedy in str(caught.value)) == (lasting, True)

    def test_a_lock_that_is_a_link_is_refused(self, directory: Path, tmp_path: Path) -> None:
        write(tmp_path / "precious", "precious")
        directory.mkdir(parents=True)
        (directory / "lock").symlink_to(tmp_path / "precious")
        with pytest.raises(StateError, match="cannot be opened"), StateDirectory(directory).instance():
            pass
        assert (tmp_path / "precious").read_text() == "precious"


class TestLocks:
    def test_are_for_their_owner_alone(self, directory: Path) -> None:
        """Whoever can open one can hold it."""
        kept = StateDirectory(directory)
        with kept.instance(), kept.exclusive(Family.IPV4):
            assert {stat.S_IMODE(lock.stat().st_mode) for lock in directory.iterdir()} == {0o600}


@pytest.mark.skipif(not is_root(), reason="needs root to give files away")
class TestUserOfTheService:
    """What root, with its commands, and the daemon, as a user of its own, are to each other. Nobody plays the user."""

    @pytest.fixture(autouse=True)
    def nobody(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(state_directory, "SERVICE_USER", "nobody")
        directory.mkdir(parents=True)
        os.chown(directory, 65534, 65534)

    def test_what_it_wrote_is_believed(self, directory: Path) -> None:
        StateDirectory(directory).remember(NFT, Family.IPV4, GOLDEN)
        os.chown(directory / "nft-ipv4.json", 65534, 65534)
        assert StateDirectory(directory).verified_state(NFT, Family.IPV4) == GOLDEN

    def test_what_somebody_else_wrote_is_not(self, directory: Path) -> None:
        StateDirectory(directory).remember(NFT, Family.IPV4, GOLDEN)
        os.chown(directory / "nft-ipv4.json", 1, 1)
        assert StateDirectory(directory).verified_state(NFT, Family.IPV4) is None

    def test_a_lock_that_root_makes_is_its_own(self, directory: Path) -> None:
        with StateDirectory(directory).exclusive(Family.IPV4):
            status = (directory / "ipv4.lock").stat()
            assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, 65534, 0o600)

    def test_a_file_that_it_found_elsewhere_is_not(self, directory: Path, tmp_path: Path) -> None:
        """A link would have root give it somebody's file."""
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
                assert (directory / "lock").read_text() == f"{os.getpid()}\n"
        assert StateDirectory(directory).holder().runs is False

    def test_a_pid_that_was_left_behind_is_no_daemon(self, directory: Path) -> None:
        write(directory / "lock", "1\n")
        assert StateDirectory(directory).holder().runs is False
        with StateDirectory(directory).instance():
            assert (directory / "lock").read_text() == f"{os.getpid()}\n"

    @pytest.mark.parametrize(("text", "shown"), [("", "pid "), ("nonsense", "pid nonsense"), ("99999999", "99999999")])
    def test_a_holder_that_cannot_be_named(self, text: str, shown: str, directory: Path) -> None:
        with held(directory / "lock", text):
            with pytest.raises(AlreadyRunning, match=shown), StateDirectory(directory).instance():
                pass
            holder = StateDirectory(directory).holder()
            assert (holder.runs, str(holder.pid)) == (True, text if text.isdigit() else "0")

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
        usual = Path.open

        def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
            if path == directory / "lock":
                raise PermissionError(errno.EACCES, "Permission denied")
            return usual(path, *arguments, **options)

        monkeypatch.setattr(Path, "open", refuse)

    def test_it_runs(self, directory: Path) -> None:
        StateDirectory(directory).write_status({"state": "synced", "pid": os.getpid()})
        holder = StateDirectory(directory).holder()
        assert (holder.runs, holder.pid) == (True, os.getpid())

    def test_it_was_stopped(self, directory: Path) -> None:
        StateDirectory(directory).write_status({"state": "stopped", "pid": os.getpid()})
        assert StateDirectory(directory).holder() == Holder(False, 0, f"{directory}/status.json says so")

    @pytest.mark.parametrize("pid", [99999999, 0, -1, None, "nonsense"])
    def test_it_was_killed(self, pid: object, directory: Path) -> None:
        StateDirectory(directory).write_status({"state": "synced", "pid": pid})
        assert StateDirectory(directory).holder().runs is False

    @pytest.mark.skipif(not is_root(), reason="needs root to start a process of another user")
    def test_its_pid_is_somebody_else_s_now(self, directory: Path) -> None:
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
