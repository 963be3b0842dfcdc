"""How much is measured: all of it, or enough to see that it works."""

from __future__ import annotations

from dataclasses import dataclass

from flanneld_masq.model import SLOTS

SIZES = (0, 5_000, 50_000)


@dataclass(frozen=True, **SLOTS)
class Scale:
    """Numbers are samples for each backend and number of foreign rules."""

    name: str
    repairs: int
    legacy_repairs: int
    duplicates: int
    idle_seconds: float
    traced_seconds: float
    busy_seconds: float
    passes: int
    legacy_passes: int
    starts: int
    restarts: int
    leases: int
    flannel_idle_seconds: float
    flannel_repairs: int
    flannel_restarts: int
    watch_seconds: float


FULL = Scale(
    "full",
    repairs=120,
    legacy_repairs=40,
    duplicates=50,
    idle_seconds=60,
    traced_seconds=60,
    busy_seconds=60,
    passes=300,
    legacy_passes=30,
    starts=10,
    restarts=10,
    leases=30,
    flannel_idle_seconds=60,
    flannel_repairs=10,
    flannel_restarts=3,
    watch_seconds=30,
)
QUICK = Scale(
    "quick",
    repairs=10,
    legacy_repairs=3,
    duplicates=4,
    idle_seconds=10,
    traced_seconds=3,
    busy_seconds=5,
    passes=100,
    legacy_passes=2,
    starts=2,
    restarts=2,
    leases=5,
    flannel_idle_seconds=10,
    flannel_repairs=1,
    flannel_restarts=1,
    watch_seconds=6,
)
