"""The findings of `doctor`: what the facts of a node mean."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from flanneld_masq.cli.doctor import Facts, FamilyFacts, Severity, examine, text_of
from flanneld_masq.service.service_user import Unreadable
from flanneld_masq.controller.status import FamilyStatus, FlannelStatus, State, Status
from flanneld_masq.model import (
    BackendName,
    Family,
    FamilyLease,
    ForwardSettings,
    Holder,
    Item,
    ItemKind,
    Lease,
    Settings,
    Survey,
    Verdict,
)
from flanneld_masq.ruleset.flannel_effect import Conflict, Effect, FlannelRule

NFT = BackendName("nft")
SUBNET = FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1"))
LEASE = Lease("/run/flannel/subnet.env", SUBNET)
DEGRADED = FamilyStatus(State.DEGRADED, last_error="nft said no")
STOPPED = FamilyStatus(State.SYNCED, flannel=FlannelStatus(takeover_stopped="they came back"))
HEALTHY = FamilyFacts(Family.IPV4, forwarding=True)
NOBODY = Holder(False, 0, "nobody holds /run/flanneld-masq/lock")
NODE = Facts(
    Settings(),
    (LEASE,),
    holder=Holder(True, 7, "it is held"),
    status=Status(State.SYNCED),
    families=(HEALTHY,),
    conntrack=(100, 1000),
)
MASQUERADES = Item(ItemKind.RULE, "nat FLANNEL-POSTRTG", "-A FLANNEL-POSTRTG -s 10.244.0.0/16 -j MASQUERADE")
EFFECT = Effect(1, (Conflict(FlannelRule(MASQUERADES, Verdict.MASQUERADE), "packets from pods of this node to pods"),))
LEFT = Survey(flannel=(Item(ItemKind.CHAIN, "nat FLANNEL-POSTRTG", "chain FLANNEL-POSTRTG"),))
UNFORWARDED = Settings(forward=ForwardSettings(enabled=False))


def in_family(**changes: Any) -> Facts:
    return replace(NODE, families=(replace(HEALTHY, **changes),))


def test_a_healthy_node_has_no_findings() -> None:
    assert list(examine(NODE)) == []


PROBLEMS = {
    "drop without a program": (
        in_family(unhelped=("FORWARD drops, install iptables",)),
        "FORWARD drops pods' packets",
        "install iptables",
    ),
    "configuration": (replace(NODE, wrong="/x: colour: unknown key"), "the configuration is wrong", "colour"),
    "no subnet": (replace(NODE, troubles=("/x is gone",)), "no subnet is known", "/x is gone"),
    "flannel": (
        in_family(surveys={NFT: Survey(flannel_nat=(MASQUERADES,))}, effects={NFT: EFFECT}),
        "packets from pods of this node to pods get the node's address, because flannel masquerades too",
        "nft: -A FLANNEL-POSTRTG -s 10.244.0.0/16 -j MASQUERADE (nat FLANNEL-POSTRTG)",
    ),
    "takeover": (
        replace(NODE, status=Status(State.SYNCED, families={Family.IPV4: STOPPED})),
        "flannel's rules are not removed",
        "they came back",
    ),
    "no daemon": (replace(NODE, holder=NOBODY), "the daemon does not run", "/run/flanneld-masq/lock"),
    "net-conf.json": (
        replace(NODE, net_conf="/x: EnableNFTables: a string"),
        "net-conf.json cannot be used",
        "a string",
    ),
    "degraded": (
        replace(NODE, status=Status(State.DEGRADED, families={Family.IPV4: DEGRADED})),
        "the daemon is degraded",
        "nft said no",
    ),
    "conntrack": (replace(NODE, conntrack=(901, 1000)), "connection tracking is nearly full", "901 of 1000"),
    "forwarding": (in_family(forwarding=False), "the kernel forwards no packets", "net.ipv4.ip_forward = 0"),
    "no backend": (in_family(unusable="no nft here"), "no backend can be used", "no nft here"),
    "drift": (in_family(differs="1 missing in x"), "does not hold the rules", "1 missing in x"),
    "cni": (in_family(surveys={NFT: Survey(cni_masquerade="chain CNI-x")}), "CNI bridge plugin", "chain CNI-x"),
    "drops": (
        replace(in_family(drops={NFT: "policy drop"}), settings=UNFORWARDED),
        "forwarded packets are dropped",
        "policy drop",
    ),
}


@pytest.mark.parametrize(("facts", "what", "evidence"), PROBLEMS.values(), ids=PROBLEMS)
def test_each_problem_is_found_with_its_evidence_and_a_remedy(facts: Facts, what: str, evidence: str) -> None:
    (finding,) = examine(facts)
    assert finding.severity is Severity.PROBLEM
    assert what in finding.what
    assert evidence in finding.evidence
    assert finding.remedy


def test_a_trouble_that_both_see_is_one_finding() -> None:
    troubles = ("/x is gone", "/n: bad", "/c: colour: unknown key; the running settings stay")
    facts = replace(
        NODE,
        troubles=("/x is gone",),
        net_conf="/n: bad",
        wrong="/c: colour: unknown key",
        status=Status(State.SYNCED, troubles=troubles),
    )
    assert len(list(examine(facts))) == 3


NOTICES = {
    "hidden daemon": (replace(NODE, holder=Holder(None, 0, "no permission")), "whether the daemon runs cannot be told"),
    "ipmasq": (replace(NODE, leases=(replace(LEASE, ipmasq=True),)), "none of its masquerade rules is there"),
    "leftovers": (in_family(surveys={NFT: LEFT}), "flannel's own rules are there, 1 objects"),
    "flavours": (in_family(both_flavours=True), "both iptables-legacy and iptables-nft"),
}


@pytest.mark.parametrize(("facts", "what"), NOTICES.values(), ids=NOTICES)
def test_what_harms_nobody_is_a_notice(facts: Facts, what: str) -> None:
    (finding,) = examine(facts)
    assert finding.severity is Severity.NOTICE
    assert what in finding.what


def test_flanneld_that_overrules_the_policy_needs_a_remedy() -> None:
    facts = in_family(surveys={NFT: LEFT}, effects={NFT: EFFECT})
    findings = list(examine(replace(facts, leases=(replace(LEASE, ipmasq=True),))))
    assert [finding.severity for finding in findings].count(Severity.PROBLEM) == 1
    assert not any("none is needed" in finding.remedy for finding in findings)


def test_drops_are_met_by_the_forward_group_where_it_is_on() -> None:
    assert list(examine(in_family(drops={NFT: "policy drop"}))) == []


def test_the_remedy_for_drift_depends_on_the_daemon() -> None:
    with_daemon, without = (
        [
            finding.remedy
            for finding in examine(replace(in_family(differs="x"), holder=holder))
            if "wanted" in finding.what
        ]
        for holder in (NODE.holder, NOBODY)
    )
    assert with_daemon == ["systemctl reload flanneld-masq"]
    assert without == ["flanneld-masq apply"]


def test_a_finding_for_people_names_family_evidence_and_remedy() -> None:
    lines = list(text_of(examine(in_family(forwarding=False))))
    assert lines == [
        "problem: ipv4: the kernel forwards no packets",
        "  seen:   net.ipv4.ip_forward = 0",
        "  remedy: sysctl -w net.ipv4.ip_forward=1",
    ]
    assert next(text_of(examine(in_family(forwarding=False)), colour=True)).startswith("\033[31mproblem:\033[0m")


class TestReported:
    """A running daemon reports troubles that the command, which another user runs, does not meet."""

    TROUBLE = "/run/flannel/subnet.env: cannot be read: Permission denied"

    @pytest.mark.parametrize("state", [State.WAITING, State.DEGRADED, State.SYNCED])
    def test_a_trouble_of_the_daemon(self, state: State) -> None:
        (finding,) = examine(replace(NODE, status=Status(state, troubles=(self.TROUBLE,))))
        assert finding.severity is (Severity.NOTICE if state is State.SYNCED else Severity.PROBLEM)
        assert (finding.what, finding.evidence) == ("the daemon reports a trouble", self.TROUBLE)

    def test_a_family_that_no_subnet_file_names_is_no_problem(self) -> None:
        status = Status(State.SYNCED, leases=(LEASE,), families={Family.IPV6: DEGRADED})
        (finding,) = examine(replace(NODE, status=status))
        assert (finding.severity, finding.family) == (Severity.NOTICE, "ipv6")

    def test_a_trouble_that_the_command_has_too(self) -> None:
        status = Status(State.WAITING, troubles=(self.TROUBLE,))
        whats = [finding.what for finding in examine(replace(NODE, status=status, troubles=(self.TROUBLE,)))]
        assert whats == ["no subnet is known for this node's pods"]

    def test_a_refused_configuration_is_told_once(self) -> None:
        wrong = "/x.toml: colour: unknown key"
        status = Status(State.SYNCED, troubles=(f"{wrong}; the running settings stay",))
        whats = [finding.what for finding in examine(replace(NODE, status=status, wrong=wrong))]
        assert len(whats) == 1 and whats[0].startswith("the configuration is wrong")

    def test_a_file_that_the_service_cannot_read(self) -> None:
        file = Unreadable("flanneld-masq", "/etc/x.toml", "/etc/x.toml", "r")
        (finding,) = examine(replace(NODE, unreadable=(file,)))
        assert finding.remedy == "`setfacl -m u:flanneld-masq:r /etc/x.toml` or `chmod o+r /etc/x.toml`"
        assert (finding.severity, finding.evidence) == (Severity.PROBLEM, str(file))
