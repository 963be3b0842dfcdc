"""Chooses the backend of each group. Pure: the evidence is passed in as values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from flanneld_masq.errors import BackendUnavailable, ConfigError, PluginError
from flanneld_masq.model import AUTO, SLOTS, BackendName, Group, Probe, Settings, make_printable

NFT = BackendName("nft")


@dataclass(frozen=True, **SLOTS)
class Choice:
    """A backend, and the reason for it in words for people."""

    backend: BackendName
    why: str

    def __post_init__(self) -> None:
        make_printable(self, "why")


def choose(
    settings: Settings,
    names: Collection[BackendName],
    probe: Callable[[BackendName], Probe],
    *,
    flannel_uses_nftables: bool = False,
    drops: Mapping[BackendName, str] = MappingProxyType({}),
) -> dict[Group, tuple[Choice, ...]]:
    """Return the backends of each group: one, or for the forward group each that drops forwarded packets.

    `names` are the backends in the order of preference. `probe` is called only for those that the choice depends on,
    because a probe may start programs. `drops` maps a backend to what drops forwarded packets there: an accept rule
    elsewhere cannot save them. Raise BackendUnavailable if the backend that the settings name, or every one, cannot
    be used.
    """
    masquerade = _masquerade(settings, names, probe, flannel_uses_nftables)
    beside = Choice(masquerade.backend, "goes with the masquerade group")
    if settings.forward.backend != AUTO and settings.forward.enabled:
        forward: tuple[Choice, ...] = (_named(settings.forward.backend, "forward.backend", names, probe),)
    else:
        dropping = [name for name in drops if name in names and name != beside.backend and probe(name).usable]
        forward = tuple(Choice(name, drops[name]) for name in dropping)
        if not forward or beside.backend in drops:
            forward = (beside, *forward)
    return {Group.MASQUERADE: (masquerade,), Group.FORWARD: forward}


def check_names(settings: Settings, names: Mapping[BackendName, object], failures: Sequence[PluginError] = ()) -> None:
    """Raise ConfigError for a backend that no plugin offers. `failures` are those of the plugins; the message names
    them, for one of them may be the cause."""
    for key, name in (("backend", settings.backend), ("forward.backend", settings.forward.backend)):
        if name != AUTO and name not in names:
            accepted = ", ".join(f'"{offered}"' for offered in (AUTO, *names))
            failed = "".join(f"; {failure}" for failure in failures)
            raise ConfigError(
                "configuration", key, f'no plugin offers a backend "{name}"; there are {accepted}{failed}'
            )


def _masquerade(
    settings: Settings,
    names: Collection[BackendName],
    probe: Callable[[BackendName], Probe],
    flannel_uses_nftables: bool,
) -> Choice:
    if settings.backend != AUTO:
        return _named(settings.backend, "backend", names, probe)
    if flannel_uses_nftables:
        return Choice(_usable(NFT, names, probe), f"{settings.net_conf} says EnableNFTables")
    passed: list[str] = []
    for name in names:
        answer = probe(name)
        if answer.usable:
            why = f"because {'; '.join(passed)}" if passed else "the first choice of auto"
            return Choice(name, why)
        passed.append(f"{name} cannot be used ({answer.reason})")
    raise BackendUnavailable(AUTO, "; ".join(passed) or "no plugin offers one", "see `flanneld-masq backends`")


def _named(
    name: BackendName, key: str, names: Collection[BackendName], probe: Callable[[BackendName], Probe]
) -> Choice:
    return Choice(_usable(name, names, probe), f'{key} = "{name}"')


def _usable(name: BackendName, names: Collection[BackendName], probe: Callable[[BackendName], Probe]) -> BackendName:
    if name not in names:
        raise BackendUnavailable(name, "no plugin offers it", "see `flanneld-masq backends`")
    answer = probe(name)
    if not answer.usable:
        raise BackendUnavailable(name, answer.reason, answer.remedy)
    return name
