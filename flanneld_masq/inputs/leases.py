"""Keeps the last good lease of each subnet file. A file that is refused does not end its lease, nor the last one that
vanishes."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flanneld_masq.errors import SubnetFileError
from flanneld_masq.inputs import path_patterns, subnet_env
from flanneld_masq.inputs.path_patterns import Expansion
from flanneld_masq.model import SLOTS, Family, Lease
from flanneld_masq.printable import one_line, printable

NO_RULES = "; no rules follow from it"  # the end of a trouble with a file that was never good


class Change(enum.Enum):
    """How a subnet file differs from when it was last read."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    VANISHED = "vanished"
    ENDED = "ended"


@dataclass(frozen=True, **SLOTS)
class News:
    """A change of one subnet file since it was last read, or of the files of a pattern. Each change is reported once.

    `error` is why a file was refused; None for the other changes. `kept` is True if the rules of a last good state
    stay.
    """

    path: str
    change: Change
    message: str
    error: SubnetFileError | None = field(default=None, compare=False)
    kept: bool = field(default=False, compare=False)


class Leases:
    """The leases of some subnet files, in the order of `entries`: paths, patterns and directories.

    `read` returns None for a file that does not exist. A file of a pattern that vanishes ends its lease as soon as
    another file of the pattern has one; until then the last good lease stays, as that of a file named by its path
    does.
    """

    def __init__(
        self,
        entries: tuple[str, ...],
        read: Callable[[Path], Lease | None] = subnet_env.read,
        expand: Callable[[str], Expansion] = path_patterns.expand,
    ) -> None:
        self._read = read
        self._expand = expand
        self._files: dict[str, tuple[str, ...]] = dict.fromkeys(entries, ())  # of each entry, as they were last
        self._good: dict[str, Lease] = {}
        self._troubles: dict[str, str] = {}  # by file or entry

    @property
    def good(self) -> tuple[Lease, ...]:
        """The last good leases, in the order of the files; a file that was never good has none."""
        return tuple(self._good[file] for file in self._known() if file in self._good)

    @property
    def complete(self) -> bool:
        """True if each entry stands for files, and each of these was good once."""
        return all(files and all(file in self._good for file in files) for files in self._files.values())

    @property
    def troubles(self) -> tuple[str, ...]:
        """The problems of the files now, in the order of the files."""
        return tuple(self._troubles[name] for name in self._known() if name in self._troubles)

    def follow(self, entries: tuple[str, ...]) -> None:
        """Read these files from now on, and forget the leases of all others."""
        self._files = {entry: self._files.get(entry, ()) for entry in entries}
        self._forget_others()

    def refresh(self) -> tuple[News, ...]:
        """Read all files; return what changed."""
        news = tuple(item for entry in self._files for item in self._refresh_entry(entry))
        self._forget_others()
        return news

    def _known(self) -> tuple[str, ...]:
        """Return entries and files, each once: an entry before its files."""
        return tuple(dict.fromkeys(name for entry, files in self._files.items() for name in (entry, *files)))

    def _forget_others(self) -> None:
        known = frozenset(self._known())
        self._good = {path: lease for path, lease in self._good.items() if path in known}
        self._troubles = {path: trouble for path, trouble in self._troubles.items() if path in known}

    def _refresh_entry(self, entry: str) -> Iterator[News]:
        expansion = self._expand(entry)
        held = tuple(file for file in self._files[entry] if file in self._good and file not in expansion.files)
        if expansion.plain and not [file for file in held if file != entry]:
            self._files[entry] = (entry,)
            yield from self._refresh(entry)
            return
        for file in expansion.files:
            yield from self._refresh(file)
        replaced = any(file in self._good for file in expansion.files) and not expansion.unread
        self._files[entry] = expansion.files if replaced else tuple(sorted({*held, *expansion.files}))
        for file in held if replaced else ():
            yield News(file, Change.ENDED, f"{file} is gone, and its lease ends: {entry} has other files")
        yield from self._report(entry, expansion, kept=bool(held) and not replaced)

    def _report(self, entry: str, expansion: Expansion, *, kept: bool) -> Iterator[News]:
        """Report that an entry stands for no file, or that some of its files are not read."""
        rest = "; the rules of the last good state stay" if kept else ""
        if expansion.trouble:
            if expansion.unread and not any(file in self._good for file in self._files[entry]):
                rest = NO_RULES
            error = SubnetFileError(entry, 0, expansion.trouble) if expansion.unread else None
            yield from self._trouble(entry, Change.REFUSED, f"{entry}: {expansion.trouble}{rest}", error, kept=kept)
        elif not expansion.files:
            message = f"no file matches {entry} any more{rest}" if kept else f"waiting for a file that matches {entry}"
            yield from self._trouble(entry, Change.VANISHED, message, kept=kept)
        elif not expansion.plain:
            self._troubles.pop(entry, None)

    def _refresh(self, path: str) -> Iterator[News]:
        kept = path in self._good
        try:
            lease = self._read(Path(path))
        except SubnetFileError as error:
            rest = "; the rules of its last good state stay" if kept else NO_RULES
            yield from self._trouble(path, Change.REFUSED, f"{error}{rest}", error, kept=kept)
            return
        if lease is None:
            message = f"waiting for {path}, which flannel has not written yet"
            if kept:
                message = f"{path} is gone; the rules of its last good state stay"
            yield from self._trouble(path, Change.VANISHED, message, kept=kept)
            return
        recovered = self._troubles.pop(path, None) is not None
        if lease != self._good.get(path) or recovered:
            self._good[path] = lease
            yield News(path, Change.ACCEPTED, describe(lease))

    def _trouble(
        self, name: str, change: Change, message: str, error: SubnetFileError | None = None, *, kept: bool
    ) -> Iterator[News]:
        message = one_line(message)
        if self._troubles.get(name) != message:
            self._troubles[name] = message
            yield News(name, change, message, error, kept)


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
