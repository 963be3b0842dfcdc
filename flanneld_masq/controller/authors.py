"""The command lines of those who made the last repairs necessary: for root alone, for an argument may be a secret.

The status leaves them out, because every local user may read it. They are kept in a file that root and the daemon alone
may read. Pure.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flanneld_masq.controller.status import FamilyStatus, LastWrite, Status


def to_json(status: Status) -> dict[str, Any]:
    """Return the command lines of the last repair of each family that has any, with the time of the repair."""
    repairs = {name.value: family.last_repair for name, family in status.families.items()}
    return {
        name: {"time": repair.time, "commands": [culprit.command for culprit in repair.culprits]}
        for name, repair in repairs.items()
        if repair is not None and any(culprit.command for culprit in repair.culprits)
    }


def restored(status: Status, content: object) -> Status:
    """Return the status with the command lines that `to_json` returned, as far as they are those of its repairs."""
    if not isinstance(content, dict):
        return status
    families = {name: _family(family, content.get(name.value)) for name, family in status.families.items()}
    return dataclasses.replace(status, families=families)


def _family(family: FamilyStatus, content: object) -> FamilyStatus:
    repair = family.last_repair
    if repair is None or not isinstance(content, dict) or content.get("time") != repair.time:
        return family
    commands = content.get("commands")
    if not isinstance(commands, list) or not all(isinstance(command, str) for command in commands):
        return family
    return dataclasses.replace(family, last_repair=_with_commands(repair, commands))


def _with_commands(repair: LastWrite, commands: list[str]) -> LastWrite:
    if len(commands) != len(repair.culprits):
        return repair
    pairs = zip(repair.culprits, commands)
    return dataclasses.replace(
        repair, culprits=tuple(dataclasses.replace(culprit, command=command) for culprit, command in pairs)
    )
