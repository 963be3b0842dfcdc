"""Remembers since when the daemon, and each family, has had its state."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Optional

from flanneld_masq.controller.status import Since, State, Status
from flanneld_masq.model import Family


class StateTimes:
    def __init__(self) -> None:
        self._since: dict[Optional[Family], tuple[State, datetime]] = {}  # None for the daemon as a whole

    def dated(self, status: Status, now: datetime) -> Status:
        """Return the status with the times at which its states began: `now` for one that is new."""
        families = {name: self._begun(name, family.state, now) for name, family in status.families.items()}
        return dataclasses.replace(status, since=Since(self._begun(None, status.state, now), families))

    def _begun(self, what: Optional[Family], state: State, now: datetime) -> datetime:
        if what not in self._since or self._since[what][0] is not state:
            self._since[what] = (state, now)
        return self._since[what][1]
