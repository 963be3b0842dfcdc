"""The textfile of node_exporter says what the status says."""

from __future__ import annotations

from flanneld_masq.controller.status import FamilyStatus, GroupStatus, State, Status
from flanneld_masq.model import BackendName, Family, Group
from flanneld_masq.service import prometheus

GROUPS = {Group.MASQUERADE: GroupStatus(BackendName("nft"), "it is usable", 5)}
STATUS = Status(
    State.DEGRADED,
    families={
        Family.IPV4: FamilyStatus(State.SYNCED, groups=GROUPS, repairs=3),
        Family.IPV6: FamilyStatus(State.DEGRADED),
    },
)


def test_each_state_and_each_family_has_its_sample() -> None:
    lines = prometheus.exposition(STATUS).splitlines()
    assert 'flanneld_masq_state{state="degraded"} 1' in lines
    assert 'flanneld_masq_state{state="synced"} 0' in lines
    assert 'flanneld_masq_family_in_sync{family="ipv4"} 1' in lines
    assert 'flanneld_masq_family_in_sync{family="ipv6"} 0' in lines
    assert 'flanneld_masq_rules{family="ipv4",group="masquerade",backend="nft"} 5' in lines
    assert 'flanneld_masq_repairs_total{family="ipv4"} 3' in lines
    assert 'flanneld_masq_repairs_total{family="ipv6"} 0' in lines


def test_every_sample_follows_the_type_of_its_metric() -> None:
    typed: set[str] = set()
    for line in prometheus.exposition(STATUS).splitlines():
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif not line.startswith("#"):
            assert line.partition("{")[0] in typed
