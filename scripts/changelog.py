#!/usr/bin/python3
"""Write the changelogs of the packages from CHANGELOG.md, and check the version of the project.

    scripts/changelog.py version     # what flanneld_masq/__init__.py and CHANGELOG.md agree on
    scripts/changelog.py epoch       # the date of that version in seconds since 1970
    scripts/changelog.py deb         # all versions, as debian/changelog
    scripts/changelog.py rpm         # all versions, as the %changelog section of a spec file
    scripts/changelog.py notes       # the newest version, in Markdown

The format of CHANGELOG.md is that of Keep a Changelog 1.1.0. Its section Unreleased goes into no package.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MAINTAINER = "flanneld-masq maintainers <flanneld-masq@users.noreply.github.com>"
WIDTH = 78
_HEADING = re.compile(r"^## \[(\d[^\]]*)\] - (\d{4}-\d\d-\d\d)$", re.MULTILINE)
_ITEM = re.compile(r"^- (.*(?:\n  .*)*)", re.MULTILINE)


class ChangelogError(Exception):
    """CHANGELOG.md cannot be read, or does not describe the version of the project."""


class Release(NamedTuple):
    """One released version. `date` is noon of its day in UTC, `text` its section in Markdown without the heading."""

    version: str
    date: datetime
    text: str

    def items(self) -> list[str]:
        """Return the introduction and each change as one line of plain text; a change begins with its kind."""
        introduction, *sections = re.split(r"^### (.+)$", self.text, flags=re.MULTILINE)
        found = [introduction] if introduction.strip() else []
        for kind, body in zip(sections[::2], sections[1::2]):
            found += [f"{kind}: {item}" for item in _ITEM.findall(body)]
        return [plain(item) for item in found]


def plain(markdown: str) -> str:
    """Return one line without links."""
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", " ".join(markdown.split()))


def releases(changelog: str) -> list[Release]:
    """Return the released versions, the newest first. Raises ChangelogError if there is none or a date is wrong."""
    body = re.split(r"^\[[^\]]+\]: ", changelog, maxsplit=1, flags=re.MULTILINE)[0]
    _, *parts = _HEADING.split(body)
    if not parts:
        raise ChangelogError("CHANGELOG.md has no line '## [VERSION] - YYYY-MM-DD'")
    return [Release(version, noon(day), text.strip()) for version, day, text in zip(*(parts[n::3] for n in range(3)))]


def noon(day: str) -> datetime:
    """Return noon in UTC of a day YYYY-MM-DD. Raises ChangelogError."""
    try:
        return datetime.strptime(f"{day} 12 +0000", "%Y-%m-%d %H %z").astimezone(timezone.utc)
    except ValueError as error:
        raise ChangelogError(f"CHANGELOG.md: {error}") from error


def as_deb(found: list[Release]) -> str:
    """Return debian/changelog, as deb-changelog(5) describes it."""
    return "\n".join(
        f"flanneld-masq ({one.version}-1) unstable; urgency=medium\n\n"
        f"{_bullets(one, '  * ')}\n -- {MAINTAINER}  {one.date:%a, %d %b %Y %H:%M:%S} +0000\n"
        for one in found
    )


def as_rpm(found: list[Release]) -> str:
    """Return the entries of %changelog. A percent sign would begin a macro."""
    entries = (f"* {one.date:%a %b %d %Y} {MAINTAINER} - {one.version}-1\n{_bullets(one, '- ')}" for one in found)
    return "\n".join(entries).replace("%", "%%")


def _bullets(release: Release, bullet: str) -> str:
    wrapper = textwrap.TextWrapper(
        WIDTH,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "".join(wrapper.fill(item) + "\n" for item in release.items())


def checked(root: Path) -> list[Release]:
    """Return the releases of a tree. Raises ChangelogError if the newest is not the version of the program."""
    found = releases((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    program = re.findall(r'^__version__ = "(.*)"$', (root / "flanneld_masq/__init__.py").read_text(), re.MULTILINE)
    if program != [found[0].version]:
        raise ChangelogError(
            f"the versions disagree: flanneld_masq/__init__.py says {' and '.join(program) or 'none'},"
            f" the newest in CHANGELOG.md is {found[0].version}"
        )
    return found


OUTPUTS: dict[str, Callable[[list[Release]], str]] = {
    "version": lambda found: f"{found[0].version}\n",
    "epoch": lambda found: f"{found[0].date.timestamp():.0f}\n",
    "deb": as_deb,
    "rpm": as_rpm,
    "notes": lambda found: f"{found[0].text}\n",
}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in OUTPUTS:
        print(f"changelog.py: one of {', '.join(OUTPUTS)}", file=sys.stderr)
        return 2
    try:
        print(OUTPUTS[arguments[0]](checked(ROOT)), end="")
    except ChangelogError as error:
        print(f"changelog.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
