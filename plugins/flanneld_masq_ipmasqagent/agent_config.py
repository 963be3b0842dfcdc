"""Parses a configuration file of ip-masq-agent, and merges several. Pure.

Formats: README.md and cmd/ip-masq-agent/ip-masq-agent.go of kubernetes-sigs/ip-masq-agent; for several files, those of
Azure/ip-masq-agent-v2. The agent turns YAML into JSON and reads that with Go's encoding/json: keys in any case, the
last of several counts, unknown keys mean nothing, null leaves a boolean or a number as it is and empties a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any, Callable, Optional

from flanneld_masq.errors import ConfigError
from flanneld_masq.inputs.text import parse_cidr, shown
from flanneld_masq.model import SLOTS, Family, Network
from flanneld_masq_ipmasqagent.document import pairs

DEFAULT_CIDRS: tuple[Network, ...] = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
DEFAULT_LIMIT = 64
# Go's time.ParseDuration
_DURATION = re.compile(r"[-+]?(?:0|(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|\u00b5s|\u03bcs|ms|s|m|h))+)", re.ASCII)


@dataclass(frozen=True, **SLOTS)
class AgentConfig:
    """The content of one file, or of several. `cidrs` is None if no file has the key, and then the agent's default."""

    cidrs: Optional[tuple[Network, ...]] = None
    limit: int = DEFAULT_LIMIT
    masq_link_local: bool = False
    masq_link_local_ipv6: bool = False


def parse(data: bytes, source: str) -> AgentConfig:
    """Parse one file; `source` names it in messages. Raises ConfigError for what the agent would refuse."""
    config = AgentConfig()
    for key, value in pairs(data, source):
        config = _with(config, key, value, source)
    count = len(DEFAULT_CIDRS if config.cidrs is None else config.cidrs)
    if count > config.limit:
        raise ConfigError(source, "nonMasqueradeCIDRs", f"{count} networks are more than cidrLimit, {config.limit}")
    return config


def networks(configs: Iterable[AgentConfig]) -> tuple[Network, ...]:
    """Return the destinations that pods reach with their own address, of several files together: each network of any
    file, and link-local addresses unless a file has them masqueraded. Without a file, those of the agent's defaults."""
    cidrs: Optional[tuple[Network, ...]] = None
    masqueraded: set[Family] = set()
    for config in configs:
        if config.cidrs is not None:
            cidrs = (*(cidrs or ()), *config.cidrs)
        masqueraded |= {Family.IPV4} if config.masq_link_local else set()
        masqueraded |= {Family.IPV6} if config.masq_link_local_ipv6 else set()
    link_local = (family.data.link_local for family in Family if family not in masqueraded)
    return tuple(dict.fromkeys((*(DEFAULT_CIDRS if cidrs is None else cidrs), *link_local)))


def _with(config: AgentConfig, key: str, value: object, source: str) -> AgentConfig:
    name = _NAMES.get(key.casefold())
    if name is None:
        return config
    try:
        return _KEYS[name](config, value)
    except ValueError as error:
        raise ConfigError(source, name, str(error)) from None


def _cidrs(config: AgentConfig, value: object) -> AgentConfig:
    if value is None:
        return replace(config, cidrs=())
    if not isinstance(value, list):
        raise ValueError(f"expected a list of networks, found {kind_of(value)}")  # noqa: TRY004  one error for any value
    return replace(config, cidrs=tuple(network for one in value for network in _network(one)))


def _network(value: object) -> tuple[Network, ...]:
    """Return the network; everything there is as its two halves, for no rule can match on a length of 0."""
    if not isinstance(value, str):
        raise ValueError(f"expected a network, found {kind_of(value)}")  # noqa: TRY004
    interface = parse_cidr(value)
    if interface.ip != interface.network.network_address:
        raise ValueError(f"{shown(value)} has host bits set; the network is {interface.network}")
    return tuple(interface.network.subnets()) if interface.network.prefixlen == 0 else (interface.network,)


def _limit(config: AgentConfig, value: object) -> AgentConfig:
    if value is None:
        return config
    if type(value) is not int:
        raise ValueError(f"expected a number, found {kind_of(value)}")
    return replace(config, limit=value)


def _flag(field: str) -> Callable[[AgentConfig, object], AgentConfig]:
    def set_flag(config: AgentConfig, value: object) -> AgentConfig:
        if value is None:
            return config
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, found {kind_of(value)}")  # noqa: TRY004
        changed: dict[str, Any] = {field: value}
        return replace(config, **changed)

    return set_flag


def _interval(config: AgentConfig, value: object) -> AgentConfig:
    """Check the interval. The daemon follows the file at once, so that it has no effect."""
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError(f'expected a duration such as "60s", found {kind_of(value)}')
    return config


def kind_of(value: object) -> str:
    """Describe a value for a message; a text is quoted."""
    if isinstance(value, str):
        return f"the text {shown(value)}"
    names = {bool: "a boolean", int: "a number", list: "a list", type(None): "nothing"}
    return names.get(type(value), "a value of another kind")


_KEYS: dict[str, Callable[[AgentConfig, object], AgentConfig]] = {
    "nonMasqueradeCIDRs": _cidrs,
    "cidrLimit": _limit,
    "masqLinkLocal": _flag("masq_link_local"),
    "masqLinkLocalIPv6": _flag("masq_link_local_ipv6"),
    "resyncInterval": _interval,
}
_NAMES = {name.casefold(): name for name in _KEYS}
