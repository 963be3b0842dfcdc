"""The state of the systemd service, as `systemctl show` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from flanneld_masq.errors import CommandError
from flanneld_masq.model import SLOTS
from flanneld_masq.process import ProcessRunner
from flanneld_masq.service.service_user import UNIT

_SECONDS = 5.0
_PROPERTIES = ("LoadState", "ActiveState", "SubState", "Result", "ExecMainStatus")
_MAX_VALUE = 64  # characters; systemd's words are shorter


@dataclass(frozen=True, **SLOTS)
class UnitState:
    """The properties of the unit that say how its last run ended; see systemd(1), org.freedesktop.systemd1(5)."""

    active: str
    sub: str
    result: str
    status: str

    @property
    def failed(self) -> bool:
        """True if the last run failed, also while systemd waits to start it again."""
        return self.active == "failed" or self.sub == "auto-restart"

    def __str__(self) -> str:
        ended = f"Result={self.result}, exit status {self.status}"
        return f"{UNIT}: {self.active} ({self.sub}); {ended}"


def parse(text: str) -> Optional[UnitState]:
    """Return what `systemctl show` printed; None if it knows no such unit, or says too little."""
    values = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
    load, *state = (values.get(name, "")[:_MAX_VALUE] for name in _PROPERTIES)
    return UnitState(*state) if load == "loaded" and all(state) else None


def read(run: ProcessRunner) -> Optional[UnitState]:
    """Ask systemd; None if it does not run, or does not answer within 5 s."""
    try:
        return parse(run(("systemctl", "show", f"--property={','.join(_PROPERTIES)}", UNIT), timeout=_SECONDS).stdout)
    except CommandError:
        return None
