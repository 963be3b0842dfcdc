"""Finds a table of the daemon in the rulesets that the distribution's nftables service loads.

The kernel refuses such a file as a whole (EPERM) while the daemon owns the table. The grammar is that of nft(8): a file
may include others, by patterns too; a relative path starts in /etc, the include path of the distributions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.inputs.path_patterns import expand
from flanneld_masq.inputs.text import read_regular
from flanneld_masq.model import SLOTS

FILES = ("/etc/nftables.conf", "/etc/sysconfig/nftables.conf")
TABLE = "flanneld-masq"
_INCLUDE_PATH = "/etc"
_MAX_FILES = 64
_MAX_BYTES = 1 << 20  # of a file
_NAMED = re.compile(rf"(?:^|[\s;{{}}])(?:table|ip6?)[ \t]+{TABLE}(?=[\s;{{}}]|$)")
_INCLUDE = re.compile(r'^[ \t]*include[ \t]+"([^"\n]{1,4096})"')


@dataclass(frozen=True, **SLOTS)
class SavedTable:
    """The first line (1-based) of a file that names the table."""

    path: str
    line: int


def find(root: Path = Path("/")) -> tuple[SavedTable, ...]:
    """Return the files that name the table of the daemon. A file that cannot be read names none; `root` is the root
    directory of all files. At most 64 files of at most 1 MiB are read."""
    return tuple(_find(root))


def parse(text: str) -> tuple[int, tuple[str, ...]]:
    """Return the first line that names the table (0 for none), and the includes of a file for nft."""
    named, includes = 0, []
    for number, line in enumerate(text.split("\n"), start=1):
        code = line.split("#", 1)[0]
        if include := _INCLUDE.match(line):
            includes.append(include[1])
        elif not named and _NAMED.search(code):
            named = number
    return named, tuple(includes)


def _find(root: Path) -> Iterator[SavedTable]:
    waiting, seen = list(FILES), set(FILES)
    for path in waiting:  # it grows
        try:
            data, _ = read_regular(_below(root, path), _MAX_BYTES)
        except (OSError, ValueError):
            continue
        named, includes = parse(data.decode("utf-8", "replace"))
        if named:
            yield SavedTable(path, named)
        for found in (found for include in includes for found in _included(root, include)):
            if found not in seen and len(waiting) < _MAX_FILES:
                seen.add(found)
                waiting.append(found)


def _included(root: Path, include: str) -> Iterator[str]:
    """Yield the paths that an include means, as they are below `root`."""
    if "\0" in include:
        return
    for found in expand(str(_below(root, str(Path(_INCLUDE_PATH) / include)))).files:
        yield f"/{Path(found).relative_to(root)}"


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")
