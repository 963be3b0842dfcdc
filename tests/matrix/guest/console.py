"""The lines that a machine of the matrix prints on its console, and that the host reads. Pure, but for `Console`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

MARK = "MATRIX "
DEVICE = Path("/dev/console")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one cell. `ok` is None for a cell that cannot be run, and `detail` is then the reason. `facts` are
    plain values for JSON."""

    cell: str
    ok: Optional[bool]
    detail: str
    facts: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        return {"cell": self.cell, "ok": self.ok, "detail": self.detail, "facts": dict(self.facts)}

    def line(self) -> str:
        return MARK + json.dumps(self.document())

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Outcome:
        """Read what `document` returned. Raises ValueError, TypeError or KeyError for anything else."""
        return cls(str(content["cell"]), _verdict(content["ok"]), str(content["detail"]), dict(content["facts"]))


def parse(line: str) -> Optional[Outcome]:
    """Return the outcome that a line of a console tells, whatever stands before the mark; None for any other line."""
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        return Outcome.of(json.loads(text))
    except (ValueError, TypeError, KeyError):
        return None


def _verdict(value: object) -> Optional[bool]:
    if value is not None and not isinstance(value, bool):
        raise ValueError(value)
    return value


class Console:
    """The console of the machine; each line goes out at once."""

    def __init__(self, device: Path = DEVICE) -> None:
        self._device = device

    def say(self, line: str) -> None:
        # The line before may be half a line of the kernel's.
        with self._device.open("w", encoding="utf-8") as out:
            out.write(f"\n{line}\n")
