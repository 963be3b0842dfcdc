"""The policy file of D-Bus: every user may read, only root may call."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_masq.dbus import connection
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import PROPERTIES

from ...bus import POLICY, Bus
from ...common import is_root, unable
from .scene import Scene, in_thread, play


@pytest.fixture
def strict_bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """A bus with the policy file of the package, at a path that every user can reach."""
    if not is_root():
        unable("to be several users, one has to be root")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        bus = Bus(Path(directory), f"<include>{POLICY}</include>")
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        bus.start()
        yield bus
        bus.stop()


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (("introspect", NAME, PATH), True),
        (("get-property", NAME, PATH, MANAGER.name, "State"), True),
        (("call", NAME, PATH, PROPERTIES, "GetAll", "s", MANAGER.name), True),
        (("call", NAME, PATH, "org.freedesktop.DBus.Peer", "Ping"), True),
        (("call", NAME, PATH, MANAGER.name, "GetStatus"), True),
        (("call", NAME, PATH, MANAGER.name, "Reconcile"), False),
        (("call", NAME, PATH, MANAGER.name, "Reload"), False),
        (("set-property", NAME, PATH, MANAGER.name, "State", "s", "x"), False),
        (("call", NAME, PATH, MANAGER.name, "Explode"), False),
    ],
    ids=lambda value: " ".join(value[3:]) if isinstance(value, tuple) else "",
)
def test_every_user_may_read_and_only_root_may_call(strict_bus: Bus, arguments: tuple[str, ...], allowed: bool) -> None:
    nobody, by_root = 65534, "Explode" not in arguments and arguments[0] != "set-property"

    async def story(scene: Scene) -> list[bool]:
        await scene.present()
        done = [await in_thread(lambda user: strict_bus.ctl(*arguments, user=user), user) for user in (nobody, 0)]
        if not allowed:
            assert "Access denied" in done[0].stderr
        return [ctl.returncode == 0 for ctl in done]

    scene = Scene(strict_bus)
    assert play(scene, story) == [allowed, by_root]
    assert scene.manager.reloads == int("Reload" in arguments), "only the call of root arrived"


def test_only_root_may_have_the_name(strict_bus: Bus) -> None:
    request = ("call", connection.BUS, connection.BUS_PATH, connection.BUS, "RequestName", "su", NAME, "0")
    assert strict_bus.ctl(*request).returncode == 0
    refused = strict_bus.ctl(*request, user=65534)
    assert refused.returncode != 0
    assert "Access denied" in refused.stderr
