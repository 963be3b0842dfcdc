"""Splits what iptables-save prints into lines, and rules into words. Pure.

Format: `*table`, then `:CHAIN POLICY [packets:bytes]` for each chain, then `-A CHAIN ...` for each rule, then `COMMIT`.
Values are quoted by xtables_save_string in libxtables/xtables.c of iptables: in double quotes, with a backslash before
each `"`, `\\` and `'`; a newline stays as it is. `--string` is quoted by print_string in extensions/libxt_string.c: its
value never ends in a backslash, and older releases put a backslash before `"` alone. Some options have two blanks
before their value, such as `--nflog-prefix` before 1.8.8. Names of chains and interfaces are
never quoted, and may hold quotes themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_UNQUOTED = frozenset(
    ("-A", "-j", "-g", "-i", "-o", "--physdev-in", "--physdev-out", "--name", "--hashlimit-name", "--match-set")
)
TEXTS = frozenset(("--comment", "--log-prefix", "--nflog-prefix", "--string"))  # their values may look like options
_PLAIN_TEXT = re.compile(r' --(?:comment|log-prefix|nflog-prefix) {1,2}"[^"\n]*"(?=[ \n]|\Z)')
_QUOTED = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_QUOTED_STRING = re.compile(r'"([^"]*(?:(?<=\\)"[^"]*)*)(?<!\\)"', re.DOTALL)
_BARE = re.compile(r"[\w-]+(?= |\Z)", re.ASCII)  # a text without quotes
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_RULES = ("-A ", "[")  # with -c the counters come first
_MAX_NEWLINES = 1000  # in one line of a listing; a comment has at most 255


def logical_lines(text: str) -> Iterable[str]:
    """Split a listing into lines. A line whose comment holds a newline ends where its quotes do.

    A quote that is never closed makes the rest of the listing one line.
    """
    parts = text.split("\n")
    return parts if _is_plain(text) else joined(parts)


def joined(parts: Iterable[str]) -> Iterator[str]:
    """Join lines until the quotes of each are closed. A line that grows is not scanned again from its beginning."""
    waiting: list[str] = []
    words: list[str] = []
    start = 0
    for part in parts:
        if not waiting and (_is_plain(part) or not part.startswith(_RULES)):  # lines of chains have no quoted values
            yield part
            continue
        waiting.append(part)
        if len(waiting) > _MAX_NEWLINES or (len(waiting) > 1 and '"' not in part):
            continue
        line = "\n".join(waiting)
        start = _scan(line, words, start)
        if start >= len(line):
            yield line
            waiting, words, start = [], [], 0
    if waiting:
        yield "\n".join(waiting)


def words_of(line: str) -> list[str] | None:
    """Return the words of a rule line; None if a quote is left open, or is missing."""
    words: list[str] = []
    return words if _scan(line, words, 0) >= len(line) else None


def _is_plain(text: str) -> bool:
    """Return True if all quotes are those of comments and the like, each within a line: 1 us per line."""
    return "\\" not in text and 2 * sum(1 for _ in _PLAIN_TEXT.finditer(text)) == text.count('"')


def _scan(line: str, words: list[str], start: int) -> int:
    """Append the words of a rule line from `start` on. Return where it ended: behind the line, or before a value whose
    quote is left open or is missing. Only values of options have quotes."""
    while start < len(line):
        if line[start] == " ":
            start += 1
            continue
        option, value = words[-1] if words else "", ""
        if line[start] == '"' and option.startswith("-") and option not in _UNQUOTED:
            quoted = (_QUOTED_STRING if option == "--string" else _QUOTED).match(line, start)
            if quoted is None:
                return start
            value, start = _ESCAPE.sub(r"\1", quoted[1]), quoted.end()
        elif option in TEXTS and _BARE.match(line, start) is None:
            return start
        end = line.find(" ", start)
        end = len(line) if end < 0 else end
        words.append(value + line[start:end])
        start = end + 1
    return start
