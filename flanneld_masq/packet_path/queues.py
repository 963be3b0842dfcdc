"""Decides what becomes of packets that a rule queues for a program (NFQUEUE). Pure.

Without a program that reads the queue, the kernel drops them; with bypass the next chain of the hook gets them.
Source: `nf_queue` in net/netfilter/nf_queue.c, `seq_show` in net/netfilter/nfnetlink_queue.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

from flanneld_masq.model import SLOTS
from flanneld_masq.packet_path.rules import Lost, MayEnd, Verdict


@dataclass(frozen=True, **SLOTS)
class Queues:
    """The numbers of the queues that programs read, None if that is not known."""

    numbers: Optional[frozenset[int]] = None

    def action(self, first: int, last: int, *, bypass: bool) -> Union[Lost, MayEnd, Verdict]:
        """Return the effect of a rule on its packets. The kernel picks one of the queues from `first` to `last`."""
        name = f"queue {first}" if first == last else f"queues {first}-{last}"
        if self.numbers is None or any(first <= number <= last for number in self.numbers):
            return MayEnd(name)
        return Verdict.ACCEPT if bypass else Lost(f"no program reads {name}")


def queues(text: Optional[str]) -> Queues:
    """Return the queues that /proc/net/netfilter/nfnetlink_queue lists, a line for each; None stands for a file that
    was not read."""
    if text is None:
        return Queues()
    try:
        return Queues(frozenset(int(line.split()[0]) for line in text.splitlines() if line.strip()))
    except ValueError:
        return Queues()
