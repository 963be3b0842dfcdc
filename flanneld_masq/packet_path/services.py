"""Finds the services that kube-proxy knows on this node, in its rules of every mode that has rules. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Optional

from flanneld_masq.model import Address, Family
from flanneld_masq.packet_path.rules import BaseChain, Chain, Field, Hook, Jump, Op, Read, Rule, Test, VerdictMap
from flanneld_masq.packet_path.ruleset import Ruleset

Service = tuple[Address, int, int]  # address, number of the protocol, port
_CHAINS = ("KUBE-SERVICES", "services")
_SERVICES = "KUBE-SVC-"
_ADDRESSES: dict[Field, type[Address]] = {Field.DADDR4: IPv4Address, Field.DADDR6: IPv6Address}


def services(ruleset: Ruleset, family: Family) -> Iterator[Service]:
    """Yield the addresses of services, each once."""
    seen: set[Service] = set()
    for base in ruleset.at(Hook.PREROUTING, family):
        for chain in _chains(base):
            for rule in chain:
                for found in _of(rule):
                    if found not in seen and found[0].version == family.data.version:
                        seen.add(found)
                        yield found


def _chains(base: BaseChain) -> Iterator[Chain]:
    if base.nat:
        yield from (base.chains[name] for name in _CHAINS if name in base.chains)


def _of(rule: Rule) -> Iterator[Service]:
    last = rule.operations[-1] if rule.operations else None
    if isinstance(last, VerdictMap):
        fields = [part.field if isinstance(part, Read) else None for part in last.key]
        if fields in ([Field.DADDR4, Field.PROTO, Field.DPORT], [Field.DADDR6, Field.PROTO, Field.DPORT]):
            for key, _ in last.elements.all():
                yield from _service(fields[0], key)
    elif isinstance(last, Jump) and last.chain.startswith(_SERVICES):
        tests = [test for test in rule.operations if isinstance(test, Test)]
        address = next((field for field in _ADDRESSES if _exact(tests, field) is not None), None)
        yield from _service(address, tuple(_exact(tests, one) for one in (address, Field.PROTO, Field.DPORT) if one))


def _service(field: Optional[Field], key: tuple[object, ...]) -> Iterator[Service]:
    if field is not None and len(key) == 3:
        address, proto, port = key
        if isinstance(address, int) and isinstance(proto, int) and isinstance(port, int):
            yield _ADDRESSES[field](address), proto, port


def _exact(tests: list[Test], field: Field) -> Optional[int]:
    """Return the one number that the tests want of a field. The test of a port may name the protocol as well."""
    for test in tests:
        part = test.key[0] if test.op is Op.EQ and len(test.key) == 1 else None
        if not isinstance(part, Read):
            continue
        if field is Field.PROTO and part.proto is not None:
            return part.proto
        numbers = (key[0] for key, _ in test.elements.all() if part.field is field)
        if (found := next((number for number in numbers if isinstance(number, int)), None)) is not None:
            return found
    return None
