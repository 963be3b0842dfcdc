"""Contexts of an old libnftables. tests/kernel uses the installed one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import ClassVar

import pytest
from flanneld_masq_nft.libnftables import Nftables


class Old:
    """Ends a context as the binding of nftables 0.9.8 does."""

    freed: ClassVar[list[object]] = []

    def __init__(self) -> None:
        self.nft_ctx_free = self.freed.append

    def __del__(self) -> None:
        self.nft_ctx_free(None)

    def cmd(self, text: str) -> tuple[int, str, str]:
        return 0, "", ""


class Recent(Old):
    def set_dry_run(self, onoff: bool) -> bool:
        return False


@pytest.mark.parametrize(("binding", "freed"), [(Old, []), (Recent, [None, None])])
def test_a_context_is_freed_if_that_is_safe(
    monkeypatch: pytest.MonkeyPatch, binding: type[Old], freed: list[None]
) -> None:
    """Before 1.0.3 that ended the process if there was ever another context."""
    module = ModuleType("nftables")
    module.Nftables = binding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nftables", module)
    monkeypatch.setattr(binding, "freed", [])
    opened = Nftables()
    opened.check("")
    opened.commit("")
    del opened
    assert binding.freed == freed
