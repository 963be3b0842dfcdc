"""Compares two answers of `flanneld-masq doctor --json`. Runs on the controller, with Ansible's Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_IDENTITY = ("id", "family", "owner")


def new_problems(after: str, before: str, allowed: Iterable[str] = ()) -> list[str]:
    """Return a line for each problem of `after` that `before` has not, unless its id is allowed. A problem is the same
    if id, family and owner are: its text may hold numbers that change. What doctor cannot tell is no problem.

    Raises ValueError for an answer that is not doctor's JSON, and KeyError for one without findings.
    """
    known = {_identity(finding) for finding in _problems(before)}
    return [
        f"{finding['id']}: {finding['what']}"
        for finding in _problems(after)
        if _identity(finding) not in known and finding["id"] not in allowed
    ]


def _problems(answer: str) -> Iterator[dict[str, Any]]:
    return (finding for finding in json.loads(answer)["findings"] if finding["severity"] == "problem")


def _identity(finding: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(finding.get(name, "")) for name in _IDENTITY)


class FilterModule:
    """The name that Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {"flanneld_masq_new_problems": new_problems}
