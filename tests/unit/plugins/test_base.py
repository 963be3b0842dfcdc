"""The input of iptables-restore, which both flavours share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flanneld_masq_iptables.base import IptablesBackend
from flanneld_masq_iptables.legacy_backend import IptablesLegacy
from flanneld_masq_iptables.nft_backend import IptablesNft

from flanneld_masq.hookspecs import Host
from flanneld_masq.model import Desired, ItemKind, Position
from flanneld_masq.process import ProcessRunner

from .ruleset import BOTH, FILTER, FORWARD, FORWARD_JUMP, FORWARD_RULE, NAT, NAT_JUMP, NAT_RULES, NOTHING, V4, lines


class TestRestoreInput:
    """Both flavours have the same input."""

    @pytest.fixture(params=[IptablesNft, IptablesLegacy])
    def backend(self, request: pytest.FixtureRequest) -> IptablesBackend:
        made: IptablesBackend = request.param(V4, Host(ProcessRunner(path=())))
        return made

    def test_both_groups(self, backend: IptablesBackend) -> None:
        assert backend.render(BOTH) == lines(
            "*nat",
            ":FLANNELD-MASQ - [0:0]",
            *NAT_RULES,
            NAT_JUMP,
            "COMMIT",
            "*filter",
            ":FLANNELD-MASQ-FWD - [0:0]",
            FORWARD_RULE,
            FORWARD_JUMP,
            "COMMIT",
        )

    def test_the_first_position_inserts(self, backend: IptablesBackend) -> None:
        text = backend.render(replace(BOTH, position=Position.FIRST, forward_position=Position.FIRST))
        assert text == backend.render(BOTH).replace("-A POSTROUTING", "-I POSTROUTING").replace(
            "-A FORWARD", "-I FORWARD"
        )
        assert text.count("-I ") == 2

    def test_one_group(self, backend: IptablesBackend) -> None:
        text = backend.render(Desired(V4, (FORWARD,)))
        assert text.startswith("*filter\n") and "nat" not in text

    def test_no_groups(self, backend: IptablesBackend) -> None:
        assert backend.render(NOTHING) == ""

    def test_no_option_is_empty(self, backend: IptablesBackend) -> None:
        for line in backend.render(BOTH).splitlines():
            assert "  " not in line and '""' not in line and line == line.strip()

    def test_desired_items_are_what_is_written(self, backend: IptablesBackend) -> None:
        wanted = backend.wanted(BOTH)
        assert [item.kind for item in wanted] == ["chain", *["rule"] * 4, "jump", "chain", "rule", "jump"]
        written = [line for line in backend.render(BOTH).splitlines() if line.startswith("-A")]
        assert [item.text for item in wanted if item.kind is not ItemKind.CHAIN] == written
        assert {item.place for item in wanted} == {NAT.own, NAT.jump, FILTER.own, FILTER.jump}
