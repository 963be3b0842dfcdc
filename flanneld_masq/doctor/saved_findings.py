"""Reads the findings that `doctor --json` printed on a node that was saved. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from flanneld_masq.doctor.findings import Finding, Kind
from flanneld_masq.inputs.json_values import decode, parse

_MOST = 1000  # findings; more than any node has
_FIELDS = {field.name for field in fields(Finding)} - {"kind"}


def findings(text: str) -> Iterator[Finding]:
    """Yield the findings of a document. Raises ValueError for any other text.

    Kinds and fields of a later release are left out.
    """
    content: Any = parse(text.encode("utf-8", "surrogateescape"))
    if not isinstance(content, dict) or not isinstance(content.get("findings"), list):
        raise ValueError("no findings of doctor")  # noqa: TRY004  one error for any wrong JSON
    known = {kind.value for kind in Kind}
    for one in content["findings"][:_MOST]:
        if not isinstance(one, dict) or not isinstance(one.get("id"), str):
            raise ValueError("a finding has no id")  # noqa: TRY004
        if one["id"] in known:
            yield decode(Finding, {"kind": one["id"], **{key: one[key] for key in _FIELDS if key in one}})
