#!/usr/bin/python3
"""Assemble the pages of the documentation site, and check the links of the finished site.

    scripts/site.py assemble DIRECTORY     # what Sphinx builds the site from; README.md becomes the first page
    scripts/site.py check DIRECTORY        # each link in the finished pages leads to a page, a file or a heading

The pages are the Markdown and reStructuredText files of the tree, at the same paths, so that their links hold in both
places. A link to any other file of the tree leads to the repository.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Optional
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/flanneld-masq/flanneld-masq/blob/main"
FRONT = PurePosixPath("README.md")
DECISIONS = PurePosixPath("docs/decisions")
# What else goes to the site from outside docs/, and the order of the first pages of each section.
SECTIONS: Mapping[str, Sequence[str]] = {
    "For administrators": ("docs/install.md", "docs/takeover.md", "docs/troubleshooting.md"),
    "Reference": (
        *("docs/man/flanneld-masq.8.rst", "docs/man/flanneld-masq.toml.5.rst", "docs/plugins.md"),
        *("docs/compatibility.md", "docs/bench/results.md", "CHANGELOG.md", "SECURITY.md"),
    ),
    "For contributors": (
        *("CONTRIBUTING.md", "ARCHITECTURE.md", "docs/releasing.md"),
        *("tests/bench/README.md", "tests/chaos/README.md", "tests/matrix/README.md"),
    ),
}
_IMAGES = (".svg", ".png")
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]*)(#[^)\s]*)?(?=\))")
_LINK_INTO_RST = re.compile(r"\[([^\]]+)\]\(([^)\s:]+)\.rst(#[^)\s]+)\)")
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


class SiteError(Exception):
    """A link leads nowhere."""


def pages(root: Path) -> list[PurePosixPath]:
    """Return the paths of all pages but the first, relative to the tree."""
    named = [PurePosixPath(name) for names in SECTIONS.values() for name in names]
    found = (path for suffix in ("md", "rst") for path in (root / "docs").rglob(f"*.{suffix}"))
    return sorted({*named, *(PurePosixPath(path.relative_to(root)) for path in found)})


def contents(found: Iterable[PurePosixPath]) -> str:
    """Return the tables of contents in MyST's notation: each page is in one of them."""
    placed = {PurePosixPath(name) for names in SECTIONS.values() for name in names}
    others = [str(page) for page in found if page not in placed and page.parent != DECISIONS]
    sections = {name: list(names) for name, names in SECTIONS.items()}
    sections["For administrators"] += others
    sections["For contributors"].append(f"{DECISIONS}/index.md")
    return "".join(_toctree(names, ":hidden:", f":caption: {caption}") for caption, names in sections.items())


def _toctree(names: Iterable[str], *options: str) -> str:
    lines = (*options, "", *(str(PurePosixPath(name).with_suffix("")) for name in names))
    return "\n```{toctree}\n" + "".join(f"{line}\n" for line in lines) + "```\n"


def rewritten(text: str, page: PurePosixPath, found: Iterable[PurePosixPath], root: Path) -> str:
    """Return a page's Markdown with links that hold on the site. Raises SiteError."""
    known = {FRONT, *found}

    def target(link: re.Match[str]) -> str:
        path, heading = PurePosixPath(os.path.normpath(page.parent / link[1])), link[2] or ""
        up = os.path.relpath(path, page.parent)
        if path == FRONT:
            return os.path.relpath("index.md", page.parent) + heading
        if path == DECISIONS:
            return f"{up}/index.md"
        if path in known or path.suffix in _IMAGES:
            return up + heading
        if not (root / path).exists():
            raise SiteError(f"{page}: {link[0]} leads to no file")
        return f"{REPOSITORY}/{path}{heading}"

    parts = _FENCE.split(text)
    # MyST knows no heading of a page in reStructuredText.
    parts[::2] = [_LINK.sub(target, _LINK_INTO_RST.sub(r'<a href="\2.html\3">\1</a>', part)) for part in parts[::2]]
    return _titled("".join(parts), page)


def _titled(text: str, page: PurePosixPath) -> str:
    """Return a page with a title: that of a file which is part of another page, for example, is its name."""
    return text if text.startswith("# ") else f"# {page.parent.name.capitalize()}: {page.stem}\n\n{text}"


def assemble(root: Path, out: Path) -> None:
    """Write the sources of the site into `out`, in place of those of before. Raises SiteError."""
    shutil.rmtree(out, ignore_errors=True)
    found = pages(root)
    version = re.findall(r'^__version__ = "(.*)"$', (root / "flanneld_masq/__init__.py").read_text(), re.MULTILINE)[0]
    for page in (FRONT, *found):
        text = (root / page).read_text(encoding="utf-8").replace("@VERSION@", version)
        text = rewritten(text, page, found, root) if page.suffix == ".md" else text
        if page == FRONT:
            _write(out / "index.md", text + contents(found))
        else:
            _write(out / page, text)
    decisions = [page.name for page in found if page.parent == DECISIONS]
    _write(out / DECISIONS / "index.md", "# Decisions\n" + _toctree(decisions, ":maxdepth: 1"))
    for image in (path for path in (root / "docs").rglob("*") if path.suffix in _IMAGES):
        target = out / image.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


class Page(HTMLParser):
    """The links of a finished page, and the names that links may lead to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, Optional[str]]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.names.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def broken(site: Path) -> Iterator[str]:
    """Yield each link of the finished pages that leads to no page, file or heading of the site."""
    read = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in read.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("/"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            names = read[target].names if target in read else None
            if not target.is_file() or (names is not None and parts.fragment and parts.fragment not in names):
                yield f"{path.relative_to(site)}: {link}"


def check(site: Path) -> None:
    """Raises SiteError if there is a broken link."""
    if found := list(broken(site)):
        raise SiteError("links that lead nowhere:\n" + "\n".join(found))


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("assemble", "check"):
        print("site.py: assemble DIRECTORY or check DIRECTORY", file=sys.stderr)
        return 2
    directory = Path(arguments[1]).resolve()
    try:
        if arguments[0] == "assemble":
            assemble(ROOT, directory)
        else:
            check(directory)
    except SiteError as error:
        print(f"site.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
