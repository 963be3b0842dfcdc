"""The progress lines of the self-test."""

from __future__ import annotations

import io

from flanneld_masq.selftest.runner import _Progress


def test_colours_are_for_terminals() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    plain, coloured = io.StringIO(), Terminal()
    for stream in (plain, coloured):
        _Progress(stream).verdict("nft", False, "2 of 3")
    assert plain.getvalue() == "nft: FAILS, 2 of 3\n"
    assert coloured.getvalue() == "nft: \033[31mFAILS\033[0m, 2 of 3\n"
