"""When the daemon gives up on removing flannel's rules, and what it then says."""

from __future__ import annotations

import pytest

from flanneld_masq.controller.surveyor import MAX_REMOVALS, Takeover
from flanneld_masq.model import Item, ItemKind

MASQ, FORWARD, TABLE = (
    Item(ItemKind.RULE, "nat POSTROUTING", "a jump"),
    Item(ItemKind.CHAIN, "filter FLANNEL-FWD", "a chain"),
    Item(ItemKind.TABLE, "ip flannel-ipv4", "a table"),
)
BOTH = "--ip-masq=false and --iptables-forward-rules=false"


@pytest.mark.parametrize("removals", range(MAX_REMOVALS))
def test_it_goes_on_while_there_were_few_removals(removals: int) -> None:
    takeover = Takeover(removals)
    takeover.found([MASQ])
    assert (takeover.goes_on, takeover.stopped) == (True, "")


@pytest.mark.parametrize(
    ("items", "flags"),
    [
        ([MASQ], "--ip-masq=false"),
        ([FORWARD], "--iptables-forward-rules=false"),
        ([FORWARD, MASQ], BOTH),
        ([TABLE], BOTH),
    ],
)
def test_it_names_the_options_of_what_came_back(items: list[Item], flags: str) -> None:
    takeover = Takeover(MAX_REMOVALS)
    takeover.found([])
    assert (takeover.goes_on, takeover.stopped) == (False, ""), "nothing came back"
    takeover.found(items)
    assert f"start flanneld with {flags}, then reload" in takeover.stopped
    before = takeover.stopped
    takeover.found([TABLE])
    assert takeover.stopped == before
