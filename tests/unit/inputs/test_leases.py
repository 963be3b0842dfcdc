"""Leases follow the changes of their subnet files. While a file is refused or gone, its last good lease stays."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from flanneld_masq.errors import SubnetFileError
from flanneld_masq.inputs.leases import Change, Leases, News, as_data, describe
from flanneld_masq.inputs.path_patterns import Expansion
from flanneld_masq.model import FamilyLease, Lease

ONE, TWO = "/run/flannel/one.env", "/run/flannel/two.env"
V4 = FamilyLease(
    (ip_network("10.244.0.0/16"), ip_network("10.42.0.0/16")), ip_network("10.244.1.0/24"), ip_address("10.244.1.1")
)
V6 = FamilyLease((ip_network("fd00::/56"),), ip_network("fd00:0:0:1::/64"), ip_address("fd00:0:0:1::1"))


class Files:
    """Subnet files that hold what a test says."""

    def __init__(self) -> None:
        self.content: dict[str, object] = {}

    def read(self, path: Path) -> Lease | None:
        content = self.content.get(str(path))
        if isinstance(content, str):
            raise SubnetFileError(str(path), 1, content)
        assert content is None or isinstance(content, Lease)
        return content


def lease(path: str = ONE, mtu: int = 1450) -> Lease:
    return Lease(path, V4, V6, mtu=mtu)


def leases(*paths: str, content: Mapping[str, object]) -> tuple[Leases, Files]:
    files = Files()
    files.content.update(content)
    return Leases(paths or (ONE,), files.read), files


def told(news: tuple[News, ...]) -> list[tuple[str, Change]]:
    return [(change.path, change.change) for change in news]


def test_a_lease_is_told_once() -> None:
    followed, _ = leases(content={ONE: lease()})
    assert list(followed.good) == []
    assert told(followed.refresh()) == [(ONE, Change.ACCEPTED)]
    assert followed.good == (lease(),)
    assert followed.refresh() == ()


def test_a_change_is_told() -> None:
    followed, files = leases(content={ONE: lease()})
    followed.refresh()
    files.content[ONE] = lease(mtu=1400)
    assert told(followed.refresh()) == [(ONE, Change.ACCEPTED)]
    assert followed.good == (lease(mtu=1400),)


def test_a_file_that_is_not_there_yet_is_waited_for() -> None:
    followed, files = leases(content={})
    (news,) = followed.refresh()
    assert news == News(ONE, Change.VANISHED, f"waiting for {ONE}, which flannel has not written yet")
    assert followed.refresh() == ()
    assert list(followed.troubles) == [news.message]
    files.content[ONE] = lease()
    assert told(followed.refresh()) == [(ONE, Change.ACCEPTED)]
    assert followed.troubles == ()


def test_a_file_that_vanishes_takes_nothing_away() -> None:
    followed, files = leases(content={ONE: lease()})
    followed.refresh()
    del files.content[ONE]
    (news,) = followed.refresh()
    assert news == News(ONE, Change.VANISHED, f"{ONE} is gone; the rules of its last good state stay")
    assert followed.refresh() == ()
    assert followed.good == (lease(),)


def test_a_refused_file_takes_nothing_away() -> None:
    followed, files = leases(content={ONE: lease()})
    followed.refresh()
    files.content[ONE] = "nonsense"
    (news,) = followed.refresh()
    assert (news.path, news.change) == (ONE, Change.REFUSED)
    assert news.message == f"{ONE}, line 1: nonsense; the rules of its last good state stay"
    assert isinstance(news.error, SubnetFileError)
    assert str(news.error) == f"{ONE}, line 1: nonsense"
    assert followed.refresh() == ()
    assert (followed.good, followed.troubles) == ((lease(),), (news.message,))


def test_a_file_that_was_never_good() -> None:
    followed, _ = leases(content={ONE: "nonsense"})
    (news,) = followed.refresh()
    assert news.message == f"{ONE}, line 1: nonsense; no rules follow from it"
    assert followed.good == ()


def test_another_trouble_is_told_too() -> None:
    followed, files = leases(content={ONE: "nonsense"})
    followed.refresh()
    files.content[ONE] = "other nonsense"
    assert told(followed.refresh()) == [(ONE, Change.REFUSED)]
    del files.content[ONE]
    assert told(followed.refresh()) == [(ONE, Change.VANISHED)]


def test_the_same_lease_after_a_trouble_is_told() -> None:
    followed, files = leases(content={ONE: lease()})
    followed.refresh()
    files.content[ONE] = "nonsense"
    followed.refresh()
    files.content[ONE] = lease()
    assert told(followed.refresh()) == [(ONE, Change.ACCEPTED)]
    assert followed.troubles == ()


def test_one_bad_file_of_two() -> None:
    followed, files = leases(ONE, TWO, content={ONE: "nonsense", TWO: lease(TWO)})
    assert told(followed.refresh()) == [(ONE, Change.REFUSED), (TWO, Change.ACCEPTED)]
    assert list(followed.good) == [lease(TWO)]
    files.content[ONE] = lease(ONE)
    followed.refresh()
    assert followed.good == (lease(ONE), lease(TWO)), "in the order of the configuration"


def test_following_other_files() -> None:
    followed, files = leases(ONE, TWO, content={ONE: lease(ONE), TWO: "nonsense"})
    followed.refresh()
    followed.follow((TWO, ONE))
    assert (followed.good, len(followed.troubles), followed.refresh()) == ((lease(ONE),), 1, ()), "in another order"
    followed.follow((ONE,))
    assert (list(followed.good), list(followed.troubles)) == ([lease(ONE)], []), "what was read of it stays"
    assert followed.refresh() == ()
    followed.follow((TWO,))
    assert told(followed.refresh()) == [(TWO, Change.REFUSED)]
    assert followed.good == ()
    assert len(followed.troubles) == 1
    followed.follow((ONE,))
    assert (list(followed.good), list(followed.troubles)) == ([], [])
    files.content[TWO] = lease(TWO)
    assert told(followed.refresh()) == [(ONE, Change.ACCEPTED)], "it was given up, so it is news again"


def test_the_real_reader(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    followed = Leases((str(path),))
    assert told(followed.refresh()) == [(str(path), Change.VANISHED)]
    path.write_text("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n")
    assert told(followed.refresh()) == [(str(path), Change.ACCEPTED)]
    path.write_text("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.245.1.1/24\n")
    assert told(followed.refresh()) == [(str(path), Change.REFUSED)]
    assert [str(lease.ipv4.subnet) for lease in followed.good if lease.ipv4] == ["10.244.1.0/24"]


def test_description() -> None:
    v4 = "subnet 10.244.1.0/24 of 10.244.0.0/16, 10.42.0.0/16"
    assert describe(lease()) == f"{ONE}: {v4}; subnet fd00:0:0:1::/64 of fd00::/56"
    assert describe(Lease(ONE, V4)) == f"{ONE}: {v4}"


def test_description_for_machines() -> None:
    v4 = {"networks": ["10.244.0.0/16", "10.42.0.0/16"], "subnet": "10.244.1.0/24"}
    v6 = {"networks": ["fd00::/56"], "subnet": "fd00:0:0:1::/64"}
    assert as_data(lease()) == {"path": ONE, "mtu": 1450, "ipmasq": None, "ipv4": v4, "ipv6": v6}
    assert as_data(Lease(ONE, V4, ipmasq=True)) == {"path": ONE, "mtu": None, "ipmasq": True, "ipv4": v4}


def test_complete_once_each_file_was_good() -> None:
    followed, files = leases(ONE, TWO, content={ONE: lease()})
    followed.refresh()
    assert not followed.complete
    files.content[TWO] = lease(TWO)
    followed.refresh()
    assert followed.complete
    files.content[TWO] = "refused"
    del files.content[ONE]
    followed.refresh()
    assert followed.complete, "what a file last said still holds"


class TestPatterns:
    """An entry that stands for several files, which come and go."""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        (tmp_path / "flannel").mkdir()
        return tmp_path / "flannel"

    def write(self, path: Path, third: int = 1) -> None:
        path.write_text(f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{third}.1/24\n")

    def subnets(self, followed: Leases) -> list[str]:
        return [str(lease.ipv4.subnet) for lease in followed.good if lease.ipv4]

    @pytest.mark.parametrize("pattern", ["", "/*.env", "/[a-z].env"])
    def test_files_appear_and_vanish(self, directory: Path, pattern: str) -> None:
        one, two = directory / "a.env", directory / "b.env"
        followed = Leases((f"{directory}{pattern}",))
        (news,) = followed.refresh()
        assert news.message == f"waiting for a file that matches {directory}{pattern}"
        self.write(two, 2)
        assert told(followed.refresh()) == [(str(two), Change.ACCEPTED)]
        assert followed.troubles == ()
        self.write(one, 1)
        assert told(followed.refresh()) == [(str(one), Change.ACCEPTED)]
        assert self.subnets(followed) == ["10.244.1.0/24", "10.244.2.0/24"], "by name, whichever came first"
        two.unlink()
        assert told(followed.refresh()) == [(str(two), Change.ENDED)]
        assert self.subnets(followed) == ["10.244.1.0/24"]
        assert followed.refresh() == ()

    def test_complete_once_each_file_of_the_entry_was_good(self, directory: Path) -> None:
        followed = Leases((str(directory),))
        followed.refresh()
        assert not followed.complete, "no file was read yet"
        self.write(directory / "a.env")
        (directory / "b.env").write_text("refused")
        followed.refresh()
        assert not followed.complete
        self.write(directory / "b.env", 2)
        followed.refresh()
        assert followed.complete

    def test_last_good_lease_stays(self, directory: Path) -> None:
        entry = str(directory / "*.env")
        followed = Leases((entry,))
        self.write(directory / "a.env")
        followed.refresh()
        (directory / "a.env").unlink()
        (news,) = followed.refresh()
        assert news == News(
            entry, Change.VANISHED, f"no file matches {entry} any more; the rules of the last good state stay"
        )
        assert news.kept
        assert self.subnets(followed) == ["10.244.1.0/24"]
        assert followed.refresh() == ()
        self.write(directory / "b.env", 2)
        assert told(followed.refresh()) == [
            (str(directory / "b.env"), Change.ACCEPTED),
            (str(directory / "a.env"), Change.ENDED),
        ]
        assert (self.subnets(followed), followed.troubles) == (["10.244.2.0/24"], ())

    def test_lease_stays_while_the_only_other_file_is_refused(self, directory: Path) -> None:
        followed = Leases((str(directory),))
        self.write(directory / "a.env")
        followed.refresh()
        (directory / "a.env").rename(directory / "b.env")
        (directory / "b.env").write_text("nonsense")
        assert [change for _, change in told(followed.refresh())] == [Change.REFUSED]
        assert self.subnets(followed) == ["10.244.1.0/24"]

    def test_directory_itself_vanishes_and_returns(self, directory: Path) -> None:
        followed = Leases((str(directory),))
        self.write(directory / "a.env")
        followed.refresh()
        directory.rename(directory.with_name("old"))
        assert [change for _, change in told(followed.refresh())] == [Change.VANISHED]
        assert self.subnets(followed) == ["10.244.1.0/24"]
        assert followed.refresh() == ()
        directory.mkdir()
        self.write(directory / "a.env", 7)
        followed.refresh()
        assert (self.subnets(followed), followed.troubles) == (["10.244.7.0/24"], ())

    def test_unreadable_directory_takes_nothing_away(self) -> None:
        files = Files()
        files.content[ONE] = lease()
        expansions = [Expansion((ONE,)), Expansion(trouble="/run/flannel cannot be listed", unread=True)]
        followed = Leases(("/run/flannel/*",), files.read, lambda entry: expansions[0])
        followed.refresh()
        del expansions[0]
        (news,) = followed.refresh()
        assert news.change is Change.REFUSED and isinstance(news.error, SubnetFileError)
        assert news.message.endswith("cannot be listed; the rules of the last good state stay")
        assert followed.good == (lease(),)
        assert followed.refresh() == ()

    def test_two_entries_that_stand_for_one_file(self, directory: Path) -> None:
        self.write(directory / "a.env")
        followed = Leases((str(directory / "a.env"), str(directory)))
        assert len(followed.refresh()) == 1
        assert len(followed.good) == 1

    def test_following_other_entries_drops_their_leases(self, directory: Path) -> None:
        self.write(directory / "a.env")
        followed = Leases((str(directory),))
        followed.refresh()
        followed.follow((str(directory / "*.env"),))
        assert followed.good == ()
        assert len(followed.refresh()) == 1
