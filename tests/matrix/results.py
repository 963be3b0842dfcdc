"""The outcome of each cell, kept as JSON in files named by the package and the cell, so that a run can be resumed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

from flanneld_masq.model import SLOTS

from .guest.console import Outcome

VERSIONS = "versions"


@dataclass(frozen=True, **SLOTS)
class Kept:
    """An outcome, and the day of it."""

    outcome: Outcome
    date: str


class Results:
    """Those of one package, in `directory`. Another package has results of its own."""

    def __init__(self, directory: Path, package: Path) -> None:
        self._directory = directory / hashlib.sha256(package.read_bytes()).hexdigest()[:16]
        self._directory.mkdir(parents=True, exist_ok=True)

    def keep(self, machine: str, outcome: Outcome) -> None:
        """Write an outcome by rename, in place of an earlier one."""
        path = self._path(machine, outcome.cell)
        content = {"date": datetime.now(timezone.utc).date().isoformat(), **outcome.document()}
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        fresh.replace(path)

    def get(self, machine: str, cell: str) -> Optional[Kept]:
        """Return what was kept; None for a cell that was not run with this package."""
        try:
            content: dict[str, Any] = json.loads(self._path(machine, cell).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Kept(Outcome.of(content), str(content["date"]))

    def missing(self, machine: str, cells: tuple[str, ...]) -> tuple[str, ...]:
        """Return the cells that have no outcome yet, or one that can be different the next time: a failure."""
        kept = ((cell, self.get(machine, cell)) for cell in cells)
        return tuple(cell for cell, found in kept if found is None or found.outcome.ok is False)

    def _path(self, machine: str, cell: str) -> Path:
        return self._directory / f"{machine}.{cell}.json"
