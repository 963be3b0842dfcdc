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
# The chains of default/kubernetes:https in both modes. Their names hold a hash of that name alone.
_API_SERVER = ("KUBE-SVC-NPX46M4PTMTKRN6Y", "service-2QRHZV4L-default/kubernetes/tcp/https")
_WITH_API_SERVER = (_API_SERVER[0], '"vmap"')
_ADDRESSES: dict[Field, type[Address]] = {Field.DADDR4: IPv4Address, Field.DADDR6: IPv6Address}
_OF_FAMILY: dict[Family, type[Address]] = {Family.IPV4: IPv4Address, Family.IPV6: IPv6Address}


def services(ruleset: Ruleset, family: Family) -> Iterator[Service]:
    """Yield the addresses of services, each once."""
    seen: set[Service] = set()
    for base in ruleset.at(Hook.PREROUTING, family):
        for chain in _chains(base):
            for rule in chain:
                for found, _ in _of(rule, family):
                    if found not in seen:
                        seen.add(found)
                        yield found


def api_server(ruleset: Ruleset, family: Family) -> Optional[Service]:
    """Return the service by which pods reach the API server; None if kube-proxy has none."""
    chains = (chain for base in ruleset.at(Hook.PREROUTING, family) for chain in _chains(base))
    rules = (rule for chain in chains for rule in chain.containing(*_WITH_API_SERVER))
    return next((service for rule in rules for service, name in _of(rule, family) if name in _API_SERVER), None)


def _chains(base: BaseChain) -> Iterator[Chain]:
    if base.nat:
        yield from (base.chains[name] for name in _CHAINS if name in base.chains)


def _of(rule: Rule, family: Family) -> Iterator[tuple[Service, str]]:
    """Yield the services of a family that a rule is for, each with the name of its chain."""
    last = rule.operations[-1] if rule.operations else None
    if isinstance(last, VerdictMap):
        fields = [part.field if isinstance(part, Read) else None for part in last.key]
        if fields in ([Field.DADDR4, Field.PROTO, Field.DPORT], [Field.DADDR6, Field.PROTO, Field.DPORT]):
            for key, action in last.elements.all():
                yield from _service(fields[0], key, family, action.chain if isinstance(action, Jump) else "")
    elif isinstance(last, Jump) and last.chain.startswith(_SERVICES):
        tests = [test for test in rule.operations if isinstance(test, Test)]
        address = next((field for field in _ADDRESSES if _exact(tests, field) is not None), None)
        found = tuple(_exact(tests, one) for one in (address, Field.PROTO, Field.DPORT) if one)
        yield from _service(address, found, family, last.chain)


def _service(
    field: Optional[Field], key: tuple[object, ...], family: Family, chain: str
) -> Iterator[tuple[Service, str]]:
    if field is not None and len(key) == 3 and _ADDRESSES[field] is _OF_FAMILY[family]:
        address, proto, port = key
        if isinstance(address, int) and isinstance(proto, int) and isinstance(port, int):
            yield (_ADDRESSES[field](address), proto, port), chain


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
