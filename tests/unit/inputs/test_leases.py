"""What is kept of a subnet file that changes, is refused, or goes."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path

from flanneld_masq.errors import SubnetFileError
from flanneld_masq.inputs.leases import Change, Leases, News, as_data, describe
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
