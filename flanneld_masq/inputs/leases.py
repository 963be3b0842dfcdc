"""The last good lease of each subnet file. A file that is refused or gone takes nothing away."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flanneld_masq.errors import SubnetFileError
from flanneld_masq.inputs import subnet_env
from flanneld_masq.model import SLOTS, Family, Lease


class Change(enum.Enum):
    ACCEPTED = "accepted"
    REFUSED = "refused"
    VANISHED = "vanished"


@dataclass(frozen=True, **SLOTS)
class News:
    """Something about a file that was not so when it was last read. Each is told once."""

    path: str
    change: Change
    message: str


class Leases:
    def __init__(self, paths: tuple[str, ...], read: Callable[[Path], Lease | None] = subnet_env.read) -> None:
        self._read = read
        self._paths = paths
        self._good: dict[str, Lease] = {}
        self._troubles: dict[str, str] = {}

    @property
    def good(self) -> tuple[Lease, ...]:
        """In the order of the files; none for a file that was never good."""
        return tuple(self._good[path] for path in self._paths if path in self._good)

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is wrong with the files now."""
        return tuple(self._troubles[path] for path in self._paths if path in self._troubles)

    def follow(self, paths: tuple[str, ...]) -> None:
        """Read these files from now on. The leases of others are given up."""
        self._paths = paths
        self._good = {path: lease for path, lease in self._good.items() if path in paths}
        self._troubles = {path: found for path, found in self._troubles.items() if path in paths}

    def refresh(self) -> tuple[News, ...]:
        """Read all files; what is new."""
        return tuple(news for path in self._paths if (news := self._refresh(path)) is not None)

    def _refresh(self, path: str) -> News | None:
        try:
            lease = self._read(Path(path))
        except SubnetFileError as error:
            return self._trouble(path, Change.REFUSED, f"{error}{self._kept(path)}")
        if lease is None:
            if path not in self._good:
                return self._trouble(path, Change.VANISHED, f"waiting for {path}, which flannel has not written yet")
            return self._trouble(path, Change.VANISHED, f"{path} is gone{self._kept(path)}")
        recovered = self._troubles.pop(path, None) is not None
        if lease == self._good.get(path) and not recovered:
            return None
        self._good[path] = lease
        return News(path, Change.ACCEPTED, describe(lease))

    def _trouble(self, path: str, change: Change, message: str) -> News | None:
        if self._troubles.get(path) == message:
            return None
        self._troubles[path] = message
        return News(path, change, message)

    def _kept(self, path: str) -> str:
        return "; the rules of its last good state stay" if path in self._good else "; no rules follow from it"


def describe(lease: Lease) -> str:
    """One line: each family's subnet within its networks."""
    families = [found for found in (lease.ipv4, lease.ipv6) if found is not None]
    named = (f"subnet {found.subnet} of {', '.join(map(str, found.networks))}" for found in families)
    return f"{lease.path}: {'; '.join(named)}"


def as_data(lease: Lease) -> dict[str, Any]:
    """A lease for machines: addresses as strings, absent families left out."""
    described: dict[str, Any] = {"path": lease.path, "mtu": lease.mtu, "ipmasq": lease.ipmasq}
    for family in Family:
        found = lease.of(family)
        if found is not None:
            described[str(family)] = {"networks": [str(n) for n in found.networks], "subnet": str(found.subnet)}
    return described
