"""Each built-in backend can be damaged."""

from __future__ import annotations

import pytest

from flanneld_masq.model import Family
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.fault_injection import tools


@pytest.mark.parametrize("backend", ["nft", "iptables-nft", "iptables-legacy"])
def test_each_backend_of_ours_can_be_damaged(backend: str) -> None:
    backend_tools = tools(backend, Family.IPV6, ProcessRunner())
    assert backend_tools is not None
    assert {"rule deleted", "rule duplicated", "chain flushed", "ruleset flushed"} < set(backend_tools.damages)
    assert tools("of-a-plugin", Family.IPV6, ProcessRunner()) is None
