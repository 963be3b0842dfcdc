"""Rules like those that kube-proxy keeps: as many as asked for, as input of iptables-restore."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from .site import Site

PER_SERVICE = 8
_START = ("-A PREROUTING -j KUBE-SERVICES", "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000")
_END = (
    "-A POSTROUTING -j KUBE-POSTROUTING",
    "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
    "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
)


def load(site: Site) -> None:
    """Fill the namespace's nat table, with one restore of the flavour that kube-proxy would use beside the backend."""
    if site.foreign:
        # Into the empty table of a new namespace, so it need not be told to keep anything; that is far quicker.
        site.run(f"iptables-{site.flavour}-restore", stdin=rules(site.foreign))


def rules(number: int) -> str:
    """The services of a cluster with two endpoints each, `number` rules or just under it."""
    chains = ["KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"]
    lines: list[str] = []
    for index in range((number - len(_START) - len(_END)) // PER_SERVICE):
        for line in _service(index):
            (chains if line.startswith("KUBE-") else lines).append(line)
    return "\n".join(["*nat", *(f":{chain} - [0:0]" for chain in chains), *_START, *lines, *_END, "COMMIT", ""])


def _service(index: int) -> Iterator[str]:
    """The names of a service's chains, and its rules."""
    name = f"default/service-{index}:http"
    service = f"KUBE-SVC-{_hash(name)}"
    address = f"10.{96 + index // 62500}.{index // 250 % 250}.{index % 250 + 1}"
    yield service
    match = f'-d {address}/32 -p tcp -m comment --comment "{name} cluster IP" -m tcp --dport 80'
    yield f"-A KUBE-SERVICES {match} -j {service}"
    yield f"-A {service} ! -s 10.244.0.0/16 {match} -j KUBE-MARK-MASQ"
    for endpoint in range(2):
        pod = index * 2 + endpoint
        place = f"10.244.{pod // 250 % 250}.{pod % 250 + 2}"
        chain = f"KUBE-SEP-{_hash(name + place)}"
        chance = "" if endpoint else "-m statistic --mode random --probability 0.50000000000 "
        yield chain
        yield f'-A {service} -m comment --comment "{name} -> {place}:8080" {chance}-j {chain}'
        yield f'-A {chain} -s {place}/32 -m comment --comment "{name}" -j KUBE-MARK-MASQ'
        yield f'-A {chain} -p tcp -m comment --comment "{name}" -m tcp -j DNAT --to-destination {place}:8080'


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16].upper()
