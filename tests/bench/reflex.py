"""Lower bound for any daemon: a program that writes known rules at the event, without reading or comparing."""

from __future__ import annotations

import select

from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.ruleset_events import RulesetEvents
from flanneld_masq.model import Family

from .clock import DEADLINE, BenchError, now, pause, progress
from .damage import ByProgram
from .libnft import Nftables
from .record import Record
from .repair import SPACING_SECONDS
from .scale import Scale
from .site import Site

_TABLE, _CHAIN = "bench-reflex", "postrouting"
_RULES = """\
table ip bench-reflex {
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return
    ip daddr 10.244.1.0/24 return
    ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
    ip daddr 10.244.0.0/16 masquerade fully-random
  }
}
"""


def reflexes(scale: Scale, record: Record) -> None:
    """From the event of a chain that `nft` flushed to the daemon's transaction; without the damage itself."""
    site = Site("reflex", "nft", 0)
    progress("a bare program that repairs at the event")
    try:
        with site.entered():
            Nftables().commit(_RULES)
            netlink, events = Nfnetlink(), RulesetEvents()
            flushed = ByProgram(site, "chain flushed", lambda: ("nft", "flush", "chain", "ip", _TABLE, _CHAIN))
            rules = netlink.rules(Family.IPV4, _TABLE, _CHAIN)
            for _ in range(scale.repairs):
                pause(SPACING_SECONDS)
                events.read()
                flushed()
                if not select.select([events], [], [], DEADLINE)[0]:
                    raise BenchError("no event of a chain that was flushed")
                heard = now()
                netlink.refill(Family.IPV4, {(_TABLE, _CHAIN): rules})
                record.add("reflex", "nft", 0, "s", [now() - heard])
                flushed.check()
            events.close()
    finally:
        site.close()
