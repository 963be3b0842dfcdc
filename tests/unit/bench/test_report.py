"""The rows that the bench makes of what it measured."""

from __future__ import annotations

from ...bench import report
from ...bench.kube_churn import churn_rows
from ...bench.record import Record
from ...bench.report_gaps import gap_rows
from ...bench.report_idle import idle_rows
from ...bench.row import Row
from ...bench.site import UNPROTECTED
from ...bench.tables import table_text


def rows(record: Record, figure: str, backend: str) -> list[Row]:
    return [row for row in report.rows(record) if row.backend == backend and row.figure.startswith(figure)]


def test_a_damage_without_effect_is_no_repair() -> None:
    record = Record()
    record.add("content-exit", "nft", 0, "s", [0.0] * 10)
    (row,) = rows(record, "the same, by a program that exits", "nft")
    assert (row.measured, row.reached) == ("never removed (n=10)", True)


def test_flannels_repair_time_is_that_of_its_resync() -> None:
    record = Record()
    record.add("content-exit", "iptables-legacy", 0, "s", [0.01])
    record.add("content-exit", "flannel legacy", 0, "s", [4.0])
    (row,) = rows(record, "the same, by a program that exits", "iptables-legacy")
    assert row.flannel == "0 to 5 s, mean 2.5 s by its resync; here 4.00 s"


def test_flows_of_a_gap_and_those_that_stay_wrong() -> None:
    record = Record()
    for subject, wrong, stuck in (("iptables-nft", (10.0, 20.0), 3.0), ("flannel nft", (2500.0,), 2500.0)):
        record.add("gap a restore", subject, 0, "flows", wrong)
        record.add("gap-stuck a restore", subject, 0, "flows", [stuck])
        record.add("gap-lost a restore", subject, 0, "flows", [0.0])
    wrong_row, stuck_row = gap_rows(record)
    assert wrong_row.measured == "15 each time, at most 20 (n=2)"
    assert wrong_row.flannel == "2500"
    assert (stuck_row.measured, stuck_row.flannel, stuck_row.reached) == ("3 of 30", "2500 of 2500", False)


def test_a_protected_table_has_no_wrong_flow_to_reach() -> None:
    record = Record()
    for subject in ("nft", UNPROTECTED):
        record.add("gap a restore", subject, 0, "flows", [1.0])
    targets = {row.backend: row.target for row in gap_rows(record) if row.figure.startswith("new flows")}
    assert targets == {"nft": "0", UNPROTECTED: ""}


def test_a_restore_beside_the_daemon_and_without_it() -> None:
    record = Record()
    for name, value in (("cpu", 1.5), ("rate", 20.0), ("beside", 0.021), ("alone", 0.02)):
        record.add(f"kube-{name} nftables", "nft", 500, "", [value])
    for name in ("beside-cpu", "alone-cpu"):
        record.add(f"kube-{name} nftables", "nft", 500, "s", [0.015])
    cpu, restore = churn_rows(record)
    assert cpu.measured == "1.5 % of a core at 20 restores/s"
    assert restore.measured == "21.0 ms (15.0 ms of CPU), without the daemon 20.0 ms (15.0 ms)"


def test_wake_ups_beside_an_empty_timer() -> None:
    record = Record()
    for figure, cpu in (("idle", 0.03), ("timer", 0.02)):
        record.add(f"{figure}-cpu", "iptables-legacy", 0, "s/min", [cpu])
        record.add(f"{figure}-wakeups", "iptables-legacy", 0, "1/min", [20.0])
        record.add(f"{figure}-turns", "iptables-legacy", 0, "1/min", [13.0])
    found = {row.figure: row for row in idle_rows(record)}
    assert found["wake-ups while nothing changes"].reached
    assert found["wake-ups while nothing changes"].measured == "13 a minute of the event loop, 20 of all threads"
    timer = found["CPU of a wake-up beside that of an empty asyncio timer that wakes up as often"]
    assert (timer.measured, timer.reached) == ("1.5 times: 1.50 ms beside 1.00 ms", True)


def test_processes_of_flannel_on_a_dual_stack_node() -> None:
    record = Record()
    record.add("idle-cpu", "iptables-nft", 0, "s/min", [0.001])
    record.add("idle-alone", "iptables-nft", 0, "", [1.0])
    record.add("processes", "flannel nft", 0, "1/min", [240.0])
    row = next(idle_rows(record))
    assert row.flannel == "240 a minute for a family, 480 on a dual-stack node"


def test_foreign_tables_differ_in_name() -> None:
    assert len({table_text(number).split()[2] for number in range(5000)}) == 5000
