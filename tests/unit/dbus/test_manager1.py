"""The daemon's interface on a real bus: values of properties, answers of methods, and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flanneld_masq.controller.status import FamilyStatus, GroupStatus, State, Status
from flanneld_masq.dbus import manager1
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.errors import BusError, ConfigError, KernelError, MasqError
from flanneld_masq.model import BackendName, Family, Group

from .scene import DOCUMENT, REPAIRS, Scene, call, in_thread, play


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Version", 's "1.2.3"'),
        ("State", 's "synced"'),
        (
            "Backends",
            'a(sssus) 2 "ipv4" "masquerade" "nft" 5 "it is usable" '
            '"ipv4" "forward" "iptables-nft" 2 "FORWARD drops there"',
        ),
        (
            "Lease",
            'a(sssas) 2 "/run/flannel/subnet.env" "ipv4" "10.244.1.0/24" 1 "10.244.0.0/16" '
            '"/run/flannel/subnet.env" "ipv6" "fd00:0:0:1::/64" 2 "fd00::/56" "fd01::/56"',
        ),
        ("LastError", 's ""'),
        ("Repairs", "t 7"),
    ],
)
def test_each_property_can_be_read(scene: Scene, name: str, shown: str) -> None:
    async def story(scene: Scene) -> str:
        await scene.present()
        return str((await in_thread(scene.bus.ctl, "get-property", NAME, PATH, MANAGER.name, name)).stdout)

    assert play(scene, story) == f"{shown}\n"


def test_a_group_in_two_backends_has_two_rows() -> None:
    legacy = GroupStatus(BackendName("iptables-legacy"), "drops too", 2)
    both = GroupStatus(BackendName("iptables-nft"), "drops", 2, (legacy,))
    status = Status(State.SYNCED, families={Family.IPV4: FamilyStatus(State.SYNCED, groups={Group.FORWARD: both})})
    assert manager1.properties(status)["Backends"] == [
        ("ipv4", "forward", "iptables-nft", 2, "drops"),
        ("ipv4", "forward", "iptables-legacy", 2, "drops too"),
    ]


def test_get_status_returns_the_whole_status(scene: Scene) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        return await call(client, "GetStatus")

    (text,) = play(scene, story)
    assert json.loads(text) == DOCUMENT


def test_reconcile_returns_what_was_changed(scene: Scene) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        return await call(client, "Reconcile")

    (answer,) = play(scene, story)
    assert manager1.repairs(answer) == list(REPAIRS)
    shown = (("missing", "ip nat POSTROUTING", "a jump", ""), ("changed", "ip nat", "wanted", "found"))
    assert answer == (("ipv4", "nft", 2345, shown),)


def test_reload_reaches_the_daemon(scene: Scene) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        return await call(client, "Reload")

    assert play(scene, story) == ()
    assert scene.manager.reloads == 1


@pytest.mark.parametrize("member", ["Reconcile", "Reload"])
@pytest.mark.parametrize(
    ("problem", "name"),
    [
        (ConfigError("/etc/x", "log.level", "no"), "InvalidConfiguration"),
        (KernelError("asking", "no"), "KernelRefused"),
        (MasqError("no subnet file"), "Failed"),
    ],
)
def test_an_error_keeps_its_name_and_its_text(scene: Scene, member: str, problem: MasqError, name: str) -> None:
    async def story(scene: Scene) -> BusError:
        _, client = await scene.present()
        scene.manager.problem = problem
        with pytest.raises(BusError) as raised:
            await call(client, member)
        return raised.value

    error = play(scene, story)
    assert (error.name, error.reason) == (f"io.github.flanneld_masq.Error.{name}", str(problem))
    assert error.exit_code == problem.exit_code
