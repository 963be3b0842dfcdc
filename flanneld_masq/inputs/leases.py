"""Keeps the last good lease of each subnet file. A file that is refused or vanishes does not end its lease."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flanneld_masq.errors import SubnetFileError
from flanneld_masq.inputs import subnet_env
from flanneld_masq.model import SLOTS, Family, Lease
from flanneld_masq.printable import printable

NO_RULES = "; no rules follow from it"  # the end of a trouble with a file that was never good


class Change(enum.Enum):
    """How a subnet file differs from when it was last read."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    VANISHED = "vanished"


@dataclass(frozen=True, **SLOTS)
class News:
    """A change of one subnet file since it was last read. Each change is reported once.

    `error` is why a file was refused; None for the other changes.
    """

    path: str
    change: Change
    message: str
    error: SubnetFileError | None = field(default=None, compare=False)


class Leases:
    """The leases of some subnet files, in the order of `paths`. `read` returns None for a file that does not exist."""

    def __init__(self, paths: tuple[str, ...], read: Callable[[Path], Lease | None] = subnet_env.read) -> None:
        self._read = read
        self._paths = paths
        self._good: dict[str, Lease] = {}
        self._troubles: dict[str, str] = {}

    @property
    def good(self) -> tuple[Lease, ...]:
        """The last good leases, in the order of the files; a file that was never good has none."""
        return tuple(self._good[path] for path in self._paths if path in self._good)

    @property
    def complete(self) -> bool:
        """True if each file was good once."""
        return all(path in self._good for path in self._paths)

    @property
    def troubles(self) -> tuple[str, ...]:
        """The problems of the files now, in the order of the files."""
        return tuple(self._troubles[path] for path in self._paths if path in self._troubles)

    def follow(self, paths: tuple[str, ...]) -> None:
        """Read these files from now on, and forget the leases of all others."""
        self._paths = paths
        self._good = {path: lease for path, lease in self._good.items() if path in paths}
        self._troubles = {path: trouble for path, trouble in self._troubles.items() if path in paths}

    def refresh(self) -> tuple[News, ...]:
        """Read all files; return what changed."""
        return tuple(news for path in self._paths if (news := self._refresh(path)) is not None)

    def _refresh(self, path: str) -> News | None:
        try:
            lease = self._read(Path(path))
        except SubnetFileError as error:
            return self._trouble(path, Change.REFUSED, f"{error}{self._kept(path)}", error)
        if lease is None:
            if path not in self._good:
                return self._trouble(path, Change.VANISHED, f"waiting for {path}, which flannel has not written yet")
            return self._trouble(path, Change.VANISHED, f"{path} is gone{self._kept(path)}")
        recovered = self._troubles.pop(path, None) is not None
        if lease == self._good.get(path) and not recovered:
            return None
        self._good[path] = lease
        return News(path, Change.ACCEPTED, describe(lease))

    def _trouble(self, path: str, change: Change, message: str, error: SubnetFileError | None = None) -> News | None:
        if self._troubles.get(path) == message:
            return None
        self._troubles[path] = message
        return News(path, change, message, error)

    def _kept(self, path: str) -> str:
        return "; the rules of its last good state stay" if path in self._good else NO_RULES


def describe(lease: Lease) -> str:
    """Describe a lease in one line: each family's subnet within its networks."""
    families = [family for family in (lease.ipv4, lease.ipv6) if family is not None]
    named = (f"subnet {family.subnet} of {', '.join(map(str, family.networks))}" for family in families)
    return f"{lease.path}: {'; '.join(named)}"


def as_data(lease: Lease) -> dict[str, Any]:
    """Return a lease as data for JSON: addresses as strings, absent families left out."""
    described: dict[str, Any] = {"path": printable(lease.path), "mtu": lease.mtu, "ipmasq": lease.ipmasq}
    for family in Family:
        family_lease = lease.of(family)
        if family_lease is not None:
            described[str(family)] = {
                "networks": [str(n) for n in family_lease.networks],
                "subnet": str(family_lease.subnet),
            }
    return described
