"""The findings of `doctor`: what the facts of a node mean."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any, Literal

import pytest

from flanneld_masq.controller.status import FamilyStatus, FlannelStatus, State, Status
from flanneld_masq.doctor import daemon_checks, rule_checks
from flanneld_masq.doctor import examine as examine_module
from flanneld_masq.doctor.catalog import TEXTS
from flanneld_masq.doctor.examine import examine
from flanneld_masq.doctor.facts import DaemonFacts, Facts, FamilyFacts, KubeProxy, Unread
from flanneld_masq.doctor.findings import Kind, Severity, data_of, exit_status, text_of
from flanneld_masq.doctor.network_checks import CONNTRACK_COUNT, CONNTRACK_MAX
from flanneld_masq.doctor.unit_state import UnitState, parse
from flanneld_masq.inputs.saved_rulesets import SavedTable
from flanneld_masq.model import (
    BackendName,
    Family,
    FamilyLease,
    ForwardSettings,
    Holder,
    Item,
    ItemKind,
    Lease,
    Mark,
    MarkEvidence,
    MasqueradeSettings,
    Settings,
    Survey,
    Verdict,
)
from flanneld_masq.ruleset.flannel_effect import Conflict, Effect, FlannelRule
from flanneld_masq.service.service_user import Unreadable

NFT = BackendName("nft")
SUBNET = FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1"))
LEASE = Lease("/run/flannel/subnet.env", SUBNET)
DEGRADED = FamilyStatus(State.DEGRADED, last_error="nft said no")
STOPPED = FamilyStatus(State.SYNCED, flannel=FlannelStatus(takeover_stopped="they came back"))
HEALTHY = FamilyFacts(Family.IPV4)
NOBODY = Holder(False, 0, "nobody holds /run/flanneld-masq/lock")
FORWARDING = "net/ipv4/ip_forward"
NODE = Facts(
    Settings(),
    (LEASE,),
    daemon=DaemonFacts(Holder(True, 7, "it is held"), Status(State.SYNCED)),
    families=(HEALTHY,),
    sysctls={FORWARDING: 1, CONNTRACK_COUNT: 100, CONNTRACK_MAX: 1000},
)
MASQUERADES = Item(ItemKind.RULE, "nat FLANNEL-POSTRTG", "-A FLANNEL-POSTRTG -s 10.244.0.0/16 -j MASQUERADE")
EFFECT = Effect(1, (Conflict(FlannelRule(MASQUERADES, Verdict.MASQUERADE), "packets from pods of this node to pods"),))
LEFT = Survey(flannel=(Item(ItemKind.CHAIN, "nat FLANNEL-POSTRTG", "chain FLANNEL-POSTRTG"),))
UNFORWARDED = Settings(forward=ForwardSettings(enabled=False))


def with_daemon(**changes: Any) -> Facts:
    return replace(NODE, daemon=replace(NODE.daemon, **changes))


def with_status(status: Status) -> Facts:
    return with_daemon(status=status)


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
    "configuration": (replace(NODE, wrong="/x: colour: unknown key"), "the configuration file is invalid", "colour"),
    "no subnet": (replace(NODE, troubles=("/x is gone",)), "no subnet is known", "/x is gone"),
    "flannel": (
        in_family(surveys={NFT: Survey(flannel_nat=(MASQUERADES,))}, effects={NFT: EFFECT}),
        "packets from pods of this node to pods get the node's address, because flannel masquerades too",
        "nft: -A FLANNEL-POSTRTG -s 10.244.0.0/16 -j MASQUERADE (nat FLANNEL-POSTRTG)",
    ),
    "takeover": (
        with_status(Status(State.SYNCED, families={Family.IPV4: STOPPED})),
        "flannel's rules are not removed",
        "they came back",
    ),
    "saved ruleset": (
        replace(in_family(protected=True), daemon=replace(NODE.daemon, saved=(SavedTable("/etc/nftables.conf", 9),))),
        "a saved ruleset holds a table of the daemon",
        "/etc/nftables.conf, line 9",
    ),
    "no daemon": (replace(NODE, daemon=DaemonFacts(NOBODY)), "the daemon does not run", "/run/flanneld-masq/lock"),
    "net-conf.json": (
        replace(NODE, net_conf="/x: EnableNFTables: a string"),
        "net-conf.json cannot be used",
        "a string",
    ),
    "degraded": (
        with_status(Status(State.DEGRADED, families={Family.IPV4: DEGRADED})),
        "the daemon is degraded",
        "nft said no",
    ),
    "conntrack": (
        replace(NODE, sysctls={CONNTRACK_COUNT: 901, CONNTRACK_MAX: 1000}),
        "connection tracking is nearly full",
        "901 of 1000",
    ),
    "forwarding": (replace(NODE, sysctls={FORWARDING: 0}), "the kernel forwards no packets", "net.ipv4.ip_forward = 0"),
    "no backend": (in_family(unusable="no nft here"), "no backend can be used", "no nft here"),
    "drift": (in_family(differs="1 missing in x"), "differ from the wanted rules", "1 missing in x"),
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
    assert evidence in finding.seen
    assert finding.remedy


def test_a_saved_ruleset_matters_only_to_protected_tables() -> None:
    assert list(examine(with_daemon(saved=(SavedTable("/etc/nftables.conf", 9),)))) == []


def test_a_trouble_that_both_see_is_one_finding() -> None:
    troubles = ("/x is gone", "/n: bad", "/c: colour: unknown key; the running settings stay")
    facts = replace(
        NODE,
        troubles=("/x is gone",),
        net_conf="/n: bad",
        wrong="/c: colour: unknown key",
        daemon=replace(NODE.daemon, status=Status(State.SYNCED, troubles=troubles)),
    )
    assert len(list(examine(facts))) == 3


NOTICES = {
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
            for finding in examine(replace(in_family(differs="x"), daemon=daemon))
            if "wanted" in finding.what
        ]
        for daemon in (NODE.daemon, DaemonFacts(NOBODY))
    )
    assert with_daemon == ["systemctl reload flanneld-masq"]
    assert without == ["flanneld-masq apply"]


UNKNOWN = {
    "hidden daemon": (with_daemon(holder=Holder(None, 0, "no permission"), status=None), Kind.DAEMON_UNKNOWN),
    "ordinary user": (replace(NODE, unread=Unread("this is user 1000, not root"), families=()), Kind.RULES_UNREADABLE),
    "no answer": (in_family(unread="cannot be read: a dump was cut off"), Kind.RULES_UNREADABLE),
    "no ip": (replace(NODE, unread=Unread(network="`ip` could not be started")), Kind.NETWORK_UNREADABLE),
}


@pytest.mark.parametrize(("facts", "kind"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_told_is_no_problem(facts: Facts, kind: Kind) -> None:
    (found,) = findings = list(examine(facts))
    assert (found.kind, found.severity) == (kind, Severity.UNKNOWN)
    assert exit_status(findings) == 2


def test_exit_status_is_that_of_the_worst_finding() -> None:
    problem = list(examine(in_family(differs="x")))
    notice = list(examine(in_family(both_flavours=True)))
    unknown = list(examine(in_family(unread="x")))
    assert [exit_status(found) for found in ([], notice, unknown, problem)] == [0, 0, 2, 1]
    assert exit_status([*notice, *unknown, *problem]) == 1


def test_a_finding_for_machines_has_every_part() -> None:
    (found,) = examine(replace(NODE, sysctls={FORWARDING: 0}))
    data = json.loads(json.dumps(data_of(found)))
    assert list(data) == ["id", "severity", "what", "seen", "why", "remedy", "persist", "family", "owner"]
    assert (data["id"], data["severity"], data["family"]) == ("forwarding-off", "problem", "ipv4")


def test_each_kind_has_its_texts() -> None:
    assert set(TEXTS) == set(Kind)
    for text in TEXTS.values():
        assert text.what and text.why and text.remedy


class TestService:
    """A daemon that does not run, and what systemd says of its service."""

    FAILED = UnitState("failed", "failed", "exit-code", "2")

    @pytest.mark.parametrize("runs", [False, None])
    @pytest.mark.parametrize("state", [FAILED, UnitState("activating", "auto-restart", "signal", "9")])
    def test_a_failed_service_says_how_it_ended(self, state: UnitState, runs: bool | None) -> None:
        (found,) = examine(with_daemon(holder=Holder(runs, 0, "x"), status=None, unit=state))
        assert (found.kind, found.severity) == (Kind.SERVICE_FAILED, Severity.PROBLEM)
        assert f"Result={state.result}, exit status {state.status}" in found.seen

    def test_a_stopped_service_is_only_stopped(self) -> None:
        stopped = UnitState("inactive", "dead", "success", "0")
        (found,) = examine(with_daemon(holder=NOBODY, status=None, unit=stopped))
        assert found.kind is Kind.DAEMON_NOT_RUNNING and "inactive (dead)" in found.seen

    def test_a_daemon_that_answers_runs(self) -> None:
        assert not list(examine(with_daemon(holder=Holder(None, 0, "no permission"))))

    def test_parsed(self) -> None:
        text = "Result=exit-code\nLoadState=loaded\nActiveState=failed\nSubState=failed\nExecMainStatus=2\n"
        assert parse(text) == self.FAILED
        for other in ("", text.replace("loaded", "not-found"), text.replace("Result=exit-code\n", "")):
            assert parse(other) is None


class TestKubeProxy:
    BIT_0 = MarkEvidence(Mark(1, 1), "chain KUBE-MARK-MASQ of table ip nat")
    DEFAULT = MarkEvidence(Mark(0x4000, 0x4000), "chain KUBE-MARK-MASQ of table ip nat")

    def kinds(self, kube_proxy: KubeProxy, mark: Mark | Literal["auto"] | None = "auto") -> list[Kind]:
        settings = Settings(masquerade=MasqueradeSettings(kube_proxy_mark=mark))
        return [found.kind for found in examine(replace(in_family(kube_proxy=kube_proxy), settings=settings))]

    def test_usual_mark(self) -> None:
        assert self.kinds(KubeProxy(("nf_tables",), self.DEFAULT)) == []

    def test_another_mark_is_followed(self) -> None:
        assert self.kinds(KubeProxy(("nf_tables",), self.BIT_0)) == [Kind.KUBE_PROXY_MARK_UNUSUAL]

    def test_configured_mark_differs(self) -> None:
        assert self.kinds(KubeProxy(("nf_tables",), self.BIT_0), Mark(0x4000, 0x4000)) == [Kind.KUBE_PROXY_MARK_DIFFERS]
        assert self.kinds(KubeProxy(("nf_tables",), self.BIT_0), Mark(1, 1)) == []
        assert self.kinds(KubeProxy(("nf_tables",), self.BIT_0), None) == []

    def test_mark_that_stays_on_the_packet(self) -> None:
        assert self.kinds(KubeProxy(("nf_tables",), self.DEFAULT, keeps_mark=True)) == [Kind.KUBE_PROXY_KEEPS_MARK]


def test_flavours_say_where_kube_proxy_is() -> None:
    (found,) = examine(in_family(both_flavours=True, kube_proxy=KubeProxy(("iptables-legacy",))))
    assert "kube-proxy's are in iptables-legacy" in found.seen


def test_a_failure_of_a_plugin_is_told_once() -> None:
    status = Status(State.SYNCED, plugin_failures=("paper: no tmpfs", "ranges: no file"))
    findings = list(examine(replace(with_status(status), plugins=("paper: no tmpfs",))))
    assert [found.seen for found in findings] == ["paper: no tmpfs", "ranges: no file"]
    assert {found.kind for found in findings} == {Kind.PLUGIN_FAILED}


def test_rules_without_a_subnet_file_name_cleanup() -> None:
    (found,) = examine(in_family(left="in force: 2 tables are not wanted"))
    assert (found.kind, found.severity) == (Kind.RULES_WITHOUT_SUBNET, Severity.NOTICE)
    assert "cleanup" in found.remedy


class TestSubnetFiles:
    def test_same_network_and_another_subnet(self) -> None:
        other = replace(LEASE, path="/run/old.env", ipv4=replace(SUBNET, subnet=ip_network("10.244.7.0/24")))
        (found,) = examine(replace(NODE, leases=(LEASE, other)))
        assert found.kind is Kind.SUBNET_FILES_OVERLAP
        assert "/run/old.env" in found.seen and "10.244.7.0/24" in found.seen

    def test_other_network_or_same_subnet(self) -> None:
        elsewhere = FamilyLease((ip_network("10.42.0.0/16"),), ip_network("10.42.1.0/24"), ip_address("10.42.1.1"))
        for second in (elsewhere, SUBNET):
            other = replace(LEASE, path="/run/k3s.env", ipv4=second)
            assert list(examine(replace(NODE, leases=(LEASE, other)))) == []


def test_a_finding_for_people_names_family_evidence_and_remedy() -> None:
    lines = list(text_of(examine(replace(NODE, sysctls={FORWARDING: 0}))))
    assert lines == [
        "problem: ipv4: the kernel forwards no packets [forwarding-off]",
        "  seen:    net.ipv4.ip_forward = 0",
        "  why:     packets of pods end on this node",
        "  remedy:  sysctl -w net.ipv4.ip_forward=1",
        "  persist: a line `net.ipv4.ip_forward = 1` in /etc/sysctl.d/90-flannel.conf",
    ]
    assert next(text_of(examine(replace(NODE, sysctls={FORWARDING: 0})), colour=True)).startswith(
        "\033[31mproblem:\033[0m"
    )


class TestReported:
    """A running daemon reports troubles that the command, which another user runs, does not meet."""

    TROUBLE = "/run/flannel/subnet.env: cannot be read: Permission denied"

    @pytest.mark.parametrize("state", [State.WAITING, State.DEGRADED, State.SYNCED])
    def test_a_trouble_of_the_daemon(self, state: State) -> None:
        (finding,) = examine(with_status(Status(state, troubles=(self.TROUBLE,))))
        assert finding.severity is (Severity.NOTICE if state is State.SYNCED else Severity.PROBLEM)
        assert (finding.what, finding.seen) == ("the daemon reports a trouble", self.TROUBLE)

    def test_a_family_that_no_subnet_file_names_is_no_problem(self) -> None:
        status = Status(State.SYNCED, leases=(LEASE,), families={Family.IPV6: DEGRADED})
        (finding,) = examine(with_status(status))
        assert (finding.severity, finding.family) == (Severity.NOTICE, "ipv6")

    def test_a_trouble_that_the_command_has_too(self) -> None:
        status = Status(State.WAITING, troubles=(self.TROUBLE,))
        whats = [finding.what for finding in examine(replace(with_status(status), troubles=(self.TROUBLE,)))]
        assert whats == ["no subnet is known for this node's pods"]

    def test_an_ordinary_user_gets_the_cni_plugin_from_the_daemon(self) -> None:
        family = FamilyStatus(State.SYNCED, cni_masquerade=("nft: table inet cni_plugins_masquerade",))
        facts = with_status(Status(State.SYNCED, families={Family.IPV4: family}))
        assert list(examine(facts)) == [], "root reads the rules"
        kinds = [found.kind for found in examine(replace(facts, unread=Unread("not root"), families=()))]
        assert kinds == [Kind.CNI_MASQUERADES, Kind.RULES_UNREADABLE]

    def test_a_refused_configuration_is_told_once(self) -> None:
        wrong = "/x.toml: colour: unknown key"
        status = Status(State.SYNCED, troubles=(f"{wrong}; the running settings stay",))
        whats = [finding.what for finding in examine(replace(with_status(status), wrong=wrong))]
        assert len(whats) == 1 and whats[0].startswith("the configuration file is invalid")

    def test_a_file_that_the_service_cannot_read(self) -> None:
        file = Unreadable("flanneld-masq", "/etc/x.toml", "/etc/x.toml", "r")
        (finding,) = examine(with_daemon(unreadable=(file,)))
        assert finding.remedy == "`setfacl -m u:flanneld-masq:r /etc/x.toml` or `chmod o+r /etc/x.toml`"
        assert (finding.severity, finding.seen) == (Severity.PROBLEM, str(file))


def test_each_check_of_the_kernel_alone_is_known_to_be_one() -> None:
    """examine_saved takes the findings of these checks as doctor printed them on the node."""
    modules = map(inspect.getsource, (daemon_checks, rule_checks))
    text = "".join([*modules, *map(inspect.getsource, examine_module._CHECKS)])
    named = set(re.findall(r"\bKind\.([A-Z]\w+)", text))
    assert {Kind[name] for name in named} == examine_module._OF_KERNEL
