"""The services of a cluster, and the input that kube-proxy gives to iptables-restore for them. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from flanneld_masq.model import SLOTS, Family

MAX_SERVICES, MAX_ENDPOINTS = 6, 3
MARK = "0x4000"
# What kube-proxy keeps in built-in chains: table, chain and rule.
JUMPS = (
    ("nat", "PREROUTING", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    ("nat", "OUTPUT", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    ("nat", "POSTROUTING", '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING'),
    ("filter", "FORWARD", '-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'),
)
_POSTROUTING = (
    f"-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN",
    f"-A KUBE-POSTROUTING -j MARK --xor-mark {MARK}",
    "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
)
_FORWARD = (
    f"-A KUBE-FORWARD -m mark --mark {MARK}/{MARK} -j ACCEPT",
    "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
)


@dataclass(frozen=True, **SLOTS)
class Sync:
    """Inputs of `iptables-restore --noflush`: only what changed, and everything, for the case that this fails."""

    partial: str
    full: str


@dataclass
class Cluster:
    """The services that one kube-proxy knows: the endpoints of each by its number. `changed` counts the changes."""

    family: Family
    services: dict[int, tuple[int, ...]] = field(default_factory=dict)
    changed: int = 0

    def change(self, random: Random) -> Sync:
        """Add, change or remove one service. Return the sync that follows."""
        before = set(self._chains())
        number = random.randrange(MAX_SERVICES)
        if number in self.services and random.random() < 0.25:
            del self.services[number]
        else:
            self.changed += 1
            count = random.randint(1, MAX_ENDPOINTS)
            self.services[number] = tuple(self.changed * MAX_ENDPOINTS + index for index in range(count))
        stale = sorted(before - set(self._chains()))
        touched = [number] if number in self.services else []
        return Sync(self._input(touched, stale), self._input(sorted(self.services), ()))

    def _input(self, numbers: Sequence[int], stale: Sequence[str]) -> str:
        """kube-proxy writes the chains of all services into KUBE-SERVICES each time, the rest as it changes."""
        rules = [rule for number in numbers for rule in self._service(number)]
        portals = [self._portal(number) for number in sorted(self.services)]
        declared = ["KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"]
        declared += [*dict.fromkeys(rule.split()[1] for rule in rules), *stale]
        nat = [*_heads(declared), f"-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}", *portals, *rules, *_POSTROUTING]
        nat += [f"-X {chain}" for chain in stale]
        lines = ["*filter", *_heads(["KUBE-FORWARD"]), *_FORWARD, "COMMIT", "*nat", *nat, "COMMIT", ""]
        return "\n".join(lines)

    def _portal(self, number: int) -> str:
        return f"-A KUBE-SERVICES -d {self._address(number)} -p tcp -m tcp --dport 80 -j {_chain('SVC', number)}"

    def _service(self, number: int) -> Iterator[str]:
        own, endpoints = _chain("SVC", number), self.services[number]
        for left, endpoint in zip(range(len(endpoints), 0, -1), endpoints):
            chance = "" if left == 1 else f"-m statistic --mode random --probability {1 / left:.11f} "
            yield f'-A {own} -m comment --comment "service-{number}" {chance}-j {_chain("SEP", endpoint)}'
        for endpoint in endpoints:
            chain, pod = _chain("SEP", endpoint), self._pod(endpoint)
            target = f"{pod}:8080" if self.family is Family.IPV4 else f"[{pod}]:8080"
            yield f"-A {chain} -s {pod} -j KUBE-MARK-MASQ"
            yield f"-A {chain} -p tcp -m tcp -j DNAT --to-destination {target}"

    def _chains(self) -> Iterator[str]:
        for number, endpoints in self.services.items():
            yield _chain("SVC", number)
            yield from (_chain("SEP", endpoint) for endpoint in endpoints)

    def _address(self, number: int) -> str:
        return f"10.96.0.{number + 1}" if self.family is Family.IPV4 else f"fd00:10:96::{number + 1:x}"

    def _pod(self, endpoint: int) -> str:
        if self.family is Family.IPV4:
            return f"10.244.{endpoint // 250 % 250}.{endpoint % 250 + 2}"
        return f"fd00:10:244:{endpoint // 250 % 250:x}::{endpoint % 250 + 2:x}"


def _heads(chains: Sequence[str]) -> list[str]:
    return [f":{chain} - [0:0]" for chain in chains]


def _chain(kind: str, number: int) -> str:
    return f"KUBE-{kind}-{hashlib.sha256(f'{kind}{number}'.encode()).hexdigest()[:16].upper()}"
