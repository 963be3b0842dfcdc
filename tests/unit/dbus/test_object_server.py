"""A D-Bus object on a real bus: its description, its properties, and how it refuses calls."""

from __future__ import annotations

from typing import Any

import pytest

from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import PROPERTIES
from flanneld_masq.errors import BusError

from .scene import Scene, in_thread, play


def test_busctl_shows_each_member_with_its_type(scene: Scene) -> None:
    async def story(scene: Scene) -> str:
        await scene.present()
        done = await in_thread(scene.bus.ctl, "introspect", NAME, PATH, MANAGER.name)
        return str(done.stdout)

    shown = [line.split()[:4] for line in play(scene, story).splitlines()]
    for name, signature in MANAGER.properties.items():
        assert [f".{name}", "property", signature] in [row[:3] for row in shown]
    for name, answer in MANAGER.methods.items():
        assert [f".{name}", "method", "-", "".join(answer.values()) or "-"] in shown
    for name, arguments in MANAGER.signals.items():
        assert [f".{name}", "signal", "".join(arguments.values()), "-"] in shown
    assert len(shown) == 1 + len(MANAGER.properties) + len(MANAGER.methods) + len(MANAGER.signals)


def test_busctl_shows_the_path_to_the_object(scene: Scene) -> None:
    async def story(scene: Scene) -> str:
        await scene.present()
        return str((await in_thread(scene.bus.ctl, "tree", "--list", NAME)).stdout)

    assert play(scene, story).split() == ["/", "/io", "/io/github", PATH]


def test_all_properties_at_once(scene: Scene) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        return await client.call(NAME, PATH, PROPERTIES, "GetAll", MANAGER.name)

    (properties,) = play(scene, story)
    assert set(properties) == set(MANAGER.properties)
    assert properties["Lease"][0] == ("/run/flannel/subnet.env", "ipv4", "10.244.1.0/24", ("10.244.0.0/16",))


def test_no_property_can_be_written(scene: Scene) -> None:
    async def story(scene: Scene) -> str:
        await scene.present()
        done = await in_thread(scene.bus.ctl, "set-property", NAME, PATH, MANAGER.name, "State", "s", "waiting")
        return str(done.stderr)

    assert "the properties can only be read" in play(scene, story)


def test_ping_is_answered(scene: Scene) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        return await client.call(NAME, PATH, "org.freedesktop.DBus.Peer", "Ping")

    assert play(scene, story) == ()


@pytest.mark.parametrize(
    ("path", "interface", "member", "arguments", "name"),
    [
        (PATH, MANAGER.name, "Explode", (), "UnknownMethod"),
        (PATH, "org.example.Other", "Reconcile", (), "UnknownMethod"),
        (PATH, MANAGER.name, "Reconcile", ("now",), "InvalidArgs"),
        ("/io/github/other", MANAGER.name, "Reconcile", (), "UnknownObject"),
        ("/other", "org.freedesktop.DBus.Introspectable", "Introspect", (), "UnknownObject"),
        (PATH, PROPERTIES, "Get", (MANAGER.name, "Colour"), "UnknownProperty"),
        (PATH, PROPERTIES, "Get", ("org.example.Other", "State"), "UnknownInterface"),
        (PATH, PROPERTIES, "GetAll", ("org.example.Other",), "UnknownInterface"),
        (PATH, PROPERTIES, "Get", (), "UnknownMethod"),
    ],
)
def test_what_does_not_exist_is_refused_by_its_standard_name(
    scene: Scene, path: str, interface: str, member: str, arguments: tuple[str, ...], name: str
) -> None:
    async def story(scene: Scene) -> str:
        _, client = await scene.present()
        with pytest.raises(BusError) as raised:
            await client.call(NAME, path, interface, member, *arguments)
        return raised.value.name

    assert play(scene, story) == f"org.freedesktop.DBus.Error.{name}"
    assert scene.manager.reloads == 0
