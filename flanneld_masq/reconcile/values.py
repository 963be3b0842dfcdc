"""Values that a pass takes and returns. Nothing here reads, writes or decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from flanneld_masq.hookspecs import Backend
from flanneld_masq.model import (
    SLOTS,
    BackendName,
    Desired,
    Group,
    Item,
    Lease,
    Network,
    Plan,
    Protection,
    Settings,
    Survey,
)
from flanneld_masq.ruleset.backend_choice import Choice
from flanneld_masq.ruleset.flannel_effect import Effect
from flanneld_masq.ruleset.flush import Flush
from flanneld_masq.ruleset.mark_choice import MarkChoice

Assignment = Mapping[BackendName, frozenset[Group]]  # the groups that each backend in use carries
Choices = Mapping[Group, tuple[Choice, ...]]  # the backends of each group, one at least
Fingerprint = tuple[Optional[bytes], ...]  # one for each backend, in order; None for one without events
Surveys = tuple[tuple[Backend, Survey], ...]
Effects = Mapping[BackendName, Effect]
Removed = tuple[tuple[BackendName, tuple[Item, ...]], ...]


@dataclass(frozen=True, **SLOTS)
class DesiredState:
    """The input of a pass. `exceptions` are the networks that plugins add to `non_masquerade_cidrs`.

    `complete` is False while a subnet file was never read: it may name a family that no lease names.
    """

    settings: Settings
    leases: tuple[Lease, ...] = ()
    exceptions: tuple[Network, ...] = ()
    flannel_uses_nftables: bool = False
    complete: bool = True


@dataclass(frozen=True, **SLOTS)
class Target:
    """The desired state of one backend. `wanted` are the items that an observation of it must have."""

    backend: Backend
    desired: Desired
    wanted: tuple[Item, ...]


@dataclass(frozen=True, **SLOTS)
class Repair:
    """The changes that one pass made to one backend.

    `duration_us` is the time in microseconds from the first read to the read-back. `found_at` is the generation in
    which the pass found the differences, None where the kernel counts none. `drift` is True if this process saw the
    backend hold the same rules before, so that another program must have changed them.
    """

    plan: Plan
    duration_us: int
    found_at: int | None = None
    drift: bool = False


class FlushSeen(Exception):
    """A pass found a flush and did not repair all of it; `repair` is what it did repair.

    `counted` is True if the kernel reports who commits.
    """

    def __init__(self, flush: Flush, *, counted: bool, repair: Repair | None = None) -> None:
        super().__init__(flush)
        self.flush = flush
        self.counted = counted
        self.repair = repair


@dataclass(frozen=True, **SLOTS)
class Outcome:
    """The result of a pass.

    `rules` counts the rules that each backend of a group now holds for it, without the jumps. `generation` is the last
    generation in which the ruleset is known to be right; None where the kernel counts no generations. If the kernel may
    not yet have shown all rules of the generation of the read-back, it is the one before. `fingerprint` was taken in
    `generation`; it is empty if another program committed before it could be taken. `unhelped` names what still drops
    forwarded packets, because no accept can be put there. `kube_proxy_mark` is the mark that the masquerade rules test;
    None without such rules. `protection` is that of the daemon's own tables; None if no backend in use has one.
    """

    choices: Choices
    repairs: tuple[Repair, ...]
    rules: Mapping[Group, int]
    generation: int | None = None
    fingerprint: Fingerprint = ()
    unhelped: tuple[str, ...] = ()
    kube_proxy_mark: MarkChoice | None = None
    protection: Protection | None = None
