"""Since when a state holds."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from flanneld_masq.controller.status import FamilyStatus, State, Status
from flanneld_masq.model import Family
from flanneld_masq.service.state_times import StateTimes

START = datetime(2026, 7, 8, 9, tzinfo=timezone.utc)


def status(whole: State, **families: State) -> Status:
    return Status(whole, families={Family(name): FamilyStatus(state) for name, state in families.items()})


def test_a_state_keeps_its_time_until_it_changes() -> None:
    times = StateTimes()
    both = status(State.WAITING, ipv4=State.WAITING, ipv6=State.WAITING)
    assert times.dated(both, START).since.daemon == START
    later = START + timedelta(seconds=5)
    dated = times.dated(status(State.WAITING, ipv4=State.SYNCED, ipv6=State.WAITING), later)
    assert dated.since.daemon == START
    assert dated.since.families == {Family.IPV4: later, Family.IPV6: START}
    last = later + timedelta(seconds=5)
    assert times.dated(status(State.SYNCED, ipv4=State.SYNCED, ipv6=State.SYNCED), last).since.daemon == last


def test_a_state_that_comes_back_has_a_new_time() -> None:
    times = StateTimes()
    for second, state in enumerate((State.SYNCED, State.DEGRADED, State.SYNCED)):
        found = times.dated(status(state), START + timedelta(seconds=second)).since.daemon
    assert found == START + timedelta(seconds=2)
