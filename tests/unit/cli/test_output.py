"""Output of commands: lines for people, with colour on a terminal alone, and JSON for machines."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from datetime import datetime, timezone
from ipaddress import ip_address, ip_network

import pytest

from flanneld_masq.cli import output
from flanneld_masq.cli.status_lines import status_lines
from flanneld_masq.controller.attribution import Culprit
from flanneld_masq.controller.status import FamilyStatus, GroupStatus, LastWrite, State, Status
from flanneld_masq.errors import MasqError
from flanneld_masq.model import BackendName, Change, ChangeKind, Family, FamilyLease, Group, ItemKind, Lease, Plan
from flanneld_masq.reconcile.values import Repair

NFT = BackendName("nft")
IPV4 = FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1"))
IPV6 = FamilyLease((ip_network("fd00::/56"),), ip_network("fd00:0:0:1::/64"), ip_address("fd00:0:0:1::1"))
DRIFT = LastWrite("then", NFT, "ruleset changed", True, 1234, culprits=(Culprit("nft", 77, "nft -f x", "x.service"),))
PLAN = Plan(Family.IPV4, NFT, (Change(ChangeKind.MISSING, "ip nat", wanted="a jump", item=ItemKind.JUMP),))


class TestStatusLines:
    def test_a_running_daemon(self) -> None:
        families = {
            Family.IPV4: FamilyStatus(
                State.SYNCED,
                groups={Group.MASQUERADE: GroupStatus(NFT, "it is usable", 5)},
                repairs=3,
                healed_flows=2,
            ),
            Family.IPV6: FamilyStatus(State.DEGRADED, last_error="nft said no"),
        }
        status = Status(
            State.DEGRADED,
            pid=7,
            leases=(Lease("/run/s.env", IPV4, IPV6),),
            troubles=("/x is gone",),
            plugin_failures=("plugin x failed",),
            families=families,
        )
        assert list(status_lines(status)) == [
            "flanneld-masq: degraded, pid 7",
            "  trouble: /x is gone",
            "  plugin x failed",
            "  lease: /run/s.env: ipv4 10.244.1.0/24, ipv6 fd00:0:0:1::/64",
            "ipv4: synced",
            "  masquerade: 5 rules in nft (it is usable)",
            "  repairs: 3",
            "  healed flows: 2",
            "ipv6: degraded, nft said no",
            "  repairs: 0",
        ]

    def test_a_kernel_without_a_daemon(self) -> None:
        groups = {Group.FORWARD: GroupStatus(NFT, "it is usable")}
        family = FamilyStatus(State.STOPPED, groups=groups, repairs=None, kernel="holds what is wanted")
        assert list(status_lines(Status(State.STOPPED, families={Family.IPV6: family}))) == [
            "flanneld-masq: stopped",
            "ipv6: stopped",
            "  forward: nft (it is usable)",
            "  kernel: holds what is wanted",
        ]

    def test_a_family_that_no_subnet_file_names(self) -> None:
        leases = (Lease("/run/s.env", IPV4),)
        families = {
            Family.IPV4: FamilyStatus(State.WAITING, verified=datetime(2026, 7, 8, 9, tzinfo=timezone.utc)),
            Family.IPV6: FamilyStatus(State.WAITING),
        }
        status = Status(State.WAITING, leases=leases, families=families)
        assert list(status_lines(status))[2:] == [
            "ipv4: waiting",
            "  verified: 2026-07-08T09:00:00.000+00:00",
            "  repairs: 0",
            "ipv6: not in the subnet file",
        ]
        failed = {Family.IPV6: FamilyStatus(State.DEGRADED, last_error="nft said no", repairs=1)}
        assert list(status_lines(replace(status, families=failed)))[2:] == [
            "ipv6: not in the subnet file, degraded, nft said no",
            "  repairs: 1",
        ]

    def test_without_a_subnet_file_every_family_waits(self) -> None:
        status = Status(State.WAITING, families={Family.IPV6: FamilyStatus(State.WAITING)})
        assert list(status_lines(status))[1:] == ["ipv6: waiting", "  repairs: 0"]

    @pytest.mark.parametrize(
        ("family", "lines"),
        [
            (
                FamilyStatus(State.SYNCED, repairs=None, last_repair=DRIFT),
                ["  last repair: then, nft in 1.2 ms (ruleset changed)", "    changed by nft (pid 77) x.service"],
            ),
            (
                FamilyStatus(State.SYNCED, repairs=None, last_write=replace(DRIFT, drift=False, reason="start")),
                ["  last write: then, nft in 1.2 ms (start)"],
            ),
            (
                FamilyStatus(
                    State.SYNCED,
                    repairs=None,
                    last_repair=replace(
                        DRIFT, changes=PLAN.changes * 3, culprits=(Culprit("nft", 77), Culprit("ufw", 78))
                    ),
                    last_write=replace(DRIFT, time="later", drift=False, reason="subnet file changed"),
                ),
                [
                    "  last repair: then, nft in 1.2 ms (ruleset changed): 3 jumps were missing",
                    "    changed by nft (pid 77)",
                    "    changed by ufw (pid 78)",
                    "  last write: later, nft in 1.2 ms (subnet file changed)",
                ],
            ),
        ],
        ids=["repair", "write", "both"],
    )
    def test_the_last_repair_and_the_last_other_write(self, family: FamilyStatus, lines: list[str]) -> None:
        assert list(status_lines(Status(State.SYNCED, families={Family.IPV4: family})))[2:] == lines


class TestRepairs:
    REPAIR = Repair(PLAN, 1500)

    def test_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert output.print_repairs([self.REPAIR], [], False, "in sync already") == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("ipv4 nft: 1.5 ms: ")
        assert "ip nat" in line

    def test_nothing_to_do(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert output.print_repairs([], [], False, "in sync already") == 0
        assert capsys.readouterr().out == "in sync already\n"

    def test_an_error_alone_is_not_in_sync(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert output.print_repairs([], [MasqError("no")], False, "in sync already") == 1
        assert capsys.readouterr().out == ""

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert output.print_repairs([self.REPAIR], [MasqError("no")], True, "in sync already") == 1
        document = json.loads(capsys.readouterr().out)
        assert document["errors"] == ["no"]
        (changed,) = document["changed"]
        assert (changed["backend"], changed["duration_us"]) == ("nft", 1500)
        assert changed["changes"] == [
            {"kind": "missing", "place": "ip nat", "wanted": "a jump", "found": "", "item": "jump"}
        ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestColour:
    @staticmethod
    def printed(monkeypatch: pytest.MonkeyPatch, stdout: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stdout", stdout)
        output.print_plans([PLAN])
        return stdout.getvalue()

    def test_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert "\033[32m+ a jump\033[0m\n" in self.printed(monkeypatch, Terminal())

    def test_not_where_no_color_is_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "")
        assert "\n+ a jump\n" in self.printed(monkeypatch, Terminal())

    def test_not_in_a_pipe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert "\n+ a jump\n" in self.printed(monkeypatch, io.StringIO())


def test_errors_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_errors([MasqError("no"), MasqError("never")])
    assert capsys.readouterr() == ("", "flanneld-masq: no\nflanneld-masq: never\n")


def test_each_backend_has_a_line_and_a_remedy() -> None:
    nothing = {"reason": "", "remedy": "", "versions": [], "protects": ""}
    usable = {**nothing, "name": "nft", "usable": True, "versions": ["kernel 6.12"], "protects": "table protected"}
    unusable = {**nothing, "name": "iptables-nft", "usable": False, "reason": "no tool", "remedy": "install it"}
    families = {
        "ipv4": {"chosen": "nft", "why": "it is usable", "backends": [usable, unusable]},
        "ipv6": {"chosen": None, "why": "no IPv6 here", "backends": []},
    }
    assert list(output.backend_lines(families, ["plugin x failed"])) == [
        "ipv4: nft (it is usable)",
        " * nft              usable    kernel 6.12, table protected",
        "   iptables-nft     unusable  no tool",
        "                              -> install it",
        "ipv6: none can be used (no IPv6 here)",
        "plugin x failed",
    ]
