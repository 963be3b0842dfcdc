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
    legacy_repairs_beside_foreign: int
    gaps: int
    flannel_gaps: int
    duplicates: int
    idle_seconds: float
    traced_seconds: float
    beside_seconds: float
    busy_seconds: float
    churn_seconds: float
    churn_services: tuple[int, ...]
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
    repairs=100,
    legacy_repairs=100,
    legacy_repairs_beside_foreign=30,
    gaps=3,
    flannel_gaps=2,
    duplicates=20,
    idle_seconds=60,
    traced_seconds=45,
    beside_seconds=45,
    busy_seconds=15,
    churn_seconds=4,
    churn_services=(5, 500, 5_000),
    passes=300,
    legacy_passes=30,
    starts=5,
    restarts=4,
    leases=20,
    flannel_idle_seconds=30,
    flannel_repairs=8,
    flannel_restarts=3,
    watch_seconds=30,
)
QUICK = Scale(
    "quick",
    repairs=6,
    legacy_repairs=3,
    legacy_repairs_beside_foreign=2,
    gaps=1,
    flannel_gaps=1,
    duplicates=2,
    idle_seconds=10,
    traced_seconds=3,
    beside_seconds=5,
    busy_seconds=2,
    churn_seconds=1,
    churn_services=(5, 500),
    passes=50,
    legacy_passes=2,
    starts=1,
    restarts=1,
    leases=3,
    flannel_idle_seconds=10,
    flannel_repairs=1,
    flannel_restarts=1,
    watch_seconds=4,
)
