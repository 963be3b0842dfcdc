"""The rules that iptables-save prints, as the daemon reads them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from flanneld_masq.errors import CommandError
from flanneld_masq.inputs.save_lines import TEXTS, logical_lines, words_of
from flanneld_masq.model import Item, ItemKind, tag_of
from flanneld_masq.process import Completed
from flanneld_masq_iptables import rules
from flanneld_masq_iptables.rules import Place


def table_lines(printed: Completed, table: str) -> Iterator[str]:
    """Yield chain and rule lines of one table, without counters. Raises CommandError unless the listing is whole."""
    lines = [line for line in logical_lines(printed.stdout) if line and not line.startswith("#")]
    if len(lines) < 2 or lines[0] != f"*{table}" or lines[-1] != "COMMIT":
        raise CommandError(printed.argv, f"did not print the whole of table {table}", stderr=printed.stderr.strip())
    for line in lines[1:-1]:
        if line.startswith(":"):
            yield line.rsplit(" [", 1)[0]
        elif line.startswith("-A "):
            yield line
        else:
            raise CommandError(printed.argv, f"printed a line that is neither chain nor rule: {line!r}")


def chain_of(line: str) -> str:
    """Return the chain that a chain line declares, or that a rule line belongs to."""
    return line[1:].split(" ", 1)[0] if line.startswith(":") else line.split(" ", 2)[1]


def own_item(place: Place, line: str) -> Item:
    """Return the item that a line of the daemon's own chain stands for."""
    if line.startswith(":"):
        return Item(ItemKind.CHAIN, place.own, rules.chain_text(place), raw=rules.chain_text(place))
    return Item(ItemKind.RULE, place.own, line, raw=line, tag=tag_of(comment(line)))


def options(line: str) -> Iterator[tuple[str, str]]:
    """Yield each option of a rule line with the word behind it, quotes and escapes removed.

    Raises CommandError if a quote is left open.
    """
    words = words_of(line)
    if words is None:
        raise CommandError(
            ("iptables-save",), f"printed a rule that cannot be read (a quote is open or missing): {line!r}"
        )
    before = ""
    for word, behind in zip(words, words[1:]):
        if before not in TEXTS:
            yield word, behind
        before = "" if before in TEXTS else word


def jumps_to(line: str, chain: str) -> bool:
    """Return True if a rule line jumps or goes to the chain."""
    return any(option in ("-j", "-g") and target == chain for option, target in options(line))


def comment(line: str) -> str:
    """Return the comment of a rule line; empty for none."""
    return next((value for option, value in options(line) if option == "--comment"), "")


def deletion(item: Item) -> str:
    """Return the line that deletes a rule by the exact text that was just read. If another program has deleted it
    meanwhile, the whole restore fails, nothing changes, and the rules are read again."""
    return item.raw.replace("-A ", "-D ", 1)
