"""Which backend carries which group. Pure; the evidence comes in as values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from flanneld_masq.errors import BackendUnavailable, ConfigError, PluginError
from flanneld_masq.model import AUTO, SLOTS, BackendName, Family, Group, Probe, Settings

NFT = BackendName("nft")


@dataclass(frozen=True, **SLOTS)
class Choice:
    """A backend and, for people, why it."""

    backend: BackendName
    why: str


def choose(
    settings: Settings,
    probes: Mapping[BackendName, Probe],
    *,
    flannel_uses_nftables: bool = False,
    drops: Mapping[BackendName, str] = MappingProxyType({}),
) -> dict[Group, Choice]:
    """The backend of each group. `probes` are in the order of preference; `drops` says of backends what drops
    forwarded packets there, for an accept elsewhere cannot save them.

    Raises ConfigError for a name that no plugin offers, BackendUnavailable where the one asked for, or
    all, cannot be used.
    """
    masquerade = _masquerade(settings, probes, flannel_uses_nftables)
    forward = Choice(masquerade.backend, "goes with the masquerade group")
    if settings.forward.backend != AUTO and settings.forward.enabled:
        forward = _named(settings.forward.backend, "forward.backend", probes)
    elif masquerade.backend not in drops:
        found = next((name for name in drops if name in probes and probes[name].usable), None)
        forward = Choice(found, drops[found]) if found else forward
    return {Group.MASQUERADE: masquerade, Group.FORWARD: forward}


def check_names(settings: Settings, names: Mapping[BackendName, object], failures: Sequence[PluginError] = ()) -> None:
    """Raises ConfigError for a backend that no plugin offers. `failures` are those of the plugins: one of
    them may be why."""
    for key, name in (("backend", settings.backend), ("forward.backend", settings.forward.backend)):
        if name != AUTO and name not in names:
            accepted = ", ".join(f'"{found}"' for found in (AUTO, *names))
            failed = "".join(f"; {failure}" for failure in failures)
            raise ConfigError(
                "configuration", key, f'no plugin offers a backend "{name}"; there are {accepted}{failed}'
            )


def flannel_uses_nftables(net_conf: Path) -> bool:
    """Whether net-conf.json says EnableNFTables. Raises ConfigError for one that cannot be read."""
    try:
        content = json.loads(net_conf.read_text())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(str(net_conf), "", f"cannot be read as JSON: {error}") from error
    return isinstance(content, dict) and content.get("EnableNFTables") is True


def missing_family(root: Path, family: Family) -> str:
    """Why this kernel cannot carry the family at all; empty where it can."""
    if (root / family.data.proc).exists():
        return ""
    return f"the kernel runs without {family} (/{family.data.proc} is missing)"


def _masquerade(settings: Settings, probes: Mapping[BackendName, Probe], flannel_uses_nftables: bool) -> Choice:
    if settings.backend != AUTO:
        return _named(settings.backend, "backend", probes)
    if flannel_uses_nftables:
        return Choice(_usable(NFT, probes), f"{settings.net_conf} says EnableNFTables")
    passed: list[str] = []
    for name, probe in probes.items():
        if probe.usable:
            why = f"because {'; '.join(passed)}" if passed else "the first choice of auto"
            return Choice(name, why)
        passed.append(f"{name} cannot be used ({probe.reason})")
    raise BackendUnavailable(AUTO, "; ".join(passed) or "no plugin offers one", "see `flanneld-masq backends`")


def _named(name: BackendName, key: str, probes: Mapping[BackendName, Probe]) -> Choice:
    return Choice(_usable(name, probes), f'{key} = "{name}"')


def _usable(name: BackendName, probes: Mapping[BackendName, Probe]) -> BackendName:
    probe = probes.get(name)
    if probe is None:
        raise BackendUnavailable(name, "no plugin offers it", "see `flanneld-masq backends`")
    if not probe.usable:
        raise BackendUnavailable(name, probe.reason, probe.remedy)
    return name
