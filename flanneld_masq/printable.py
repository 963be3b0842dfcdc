"""Makes text that other programs wrote safe to show: comments, process names, the output of tools, names in files.

The values that carry such text to logs, terminals, the status and D-Bus apply these functions when they are made.
"""

from __future__ import annotations

MAX_TEXT = 1000
MAX_MESSAGE = 4000


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """Return the text on one line, at most `limit` characters of it.

    A character that moves a cursor, ends a line or hides others becomes its escape (`\\x1b`, `\\n`, `\\u202e`), as does
    a byte that is not UTF-8. Applied twice it changes nothing more.
    """
    text = text[: limit + 1]  # no character has an empty escape, and the text may be long
    if not text.isprintable():
        text = "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
        )
    return text if len(text) <= limit else text[: limit - 3] + "..."


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return the text as one line of a log: its lines joined by semicolons, each printable."""
    if "\n" in text:
        text = "; ".join(line.strip() for line in text.split("\n") if line.strip())
    return printable(text, limit)
