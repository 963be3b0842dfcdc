"""Protected tables under systemd, which keeps the sockets that own them."""

from __future__ import annotations

import pytest

from ..common import eventually
from .machine import UNIT, Machine
from .test_lifecycle import drop_in

TABLES = ("ip", "ip6")


@pytest.fixture
def protected(machine: Machine) -> Machine:
    machine.configure(backend="nft", protect=True)
    machine.write_subnet()
    machine.systemctl("start", UNIT)
    if "protected (owner and persist)" not in machine.masq("status").stdout:
        pytest.skip("this kernel has no tables that persist (Linux 6.9)")
    return machine


def handles(machine: Machine) -> list[str]:
    """The listing of the tables: the same handles mean that nothing was written."""
    listed = [machine.run("nft", "-a", "list", "table", family, "flanneld-masq").stdout for family in TABLES]
    return [line for text in listed for line in text.splitlines() if "handle" in line and "table" not in line]


def refused(machine: Machine) -> bool:
    """Return True if other programs cannot change the tables; what they try leaves them as they are."""
    machine.run("nft", "flush", "ruleset")
    tried = [machine.run("nft", "delete", "table", family, "flanneld-masq", check=False) for family in TABLES]
    return all("Operation not permitted" in done.stderr for done in tried)


def test_the_tables_have_their_owner_after_sigkill_and_restart(protected: Machine) -> None:
    before = handles(protected)
    eventually(lambda: protected.show("NFileDescriptorStore") == "2")
    assert refused(protected)
    drop_in(protected, "[Service]\nRestartSec=3600\n")
    protected.systemctl("kill", "--signal=SIGKILL", UNIT)
    eventually(lambda: protected.show("ActiveState") == "activating")
    assert refused(protected), "while no daemon runs"
    assert "holds what is wanted" in protected.masq("status", check=False).stdout
    assert handles(protected) == before
    for action in ("restart", "restart"):
        protected.systemctl(action, UNIT)
        assert refused(protected)
        assert handles(protected) == before
    assert protected.show("NFileDescriptorStore") == "2"
    assert protected.site.wrong_packets() == []


def test_after_a_stop_the_rules_stay_and_cleanup_removes_them(protected: Machine) -> None:
    before = handles(protected)
    protected.systemctl("stop", UNIT)
    assert handles(protected) == before
    protected.site.assert_masqueraded()
    protected.masq("cleanup")
    assert "flanneld-masq" not in protected.run("nft", "list", "tables").stdout
