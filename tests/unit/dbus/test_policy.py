"""The policy file of D-Bus: every user may read, only root may call."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_masq.dbus import connection
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import PROPERTIES
from flanneld_masq.dbus.reload_signals import FIREWALLD, FIREWALLD_PATH
from flanneld_masq.dbus.wire import Frame

from ... import attacker
from ...attacker import PEER
from ...bus import POLICY, Bus
from ...common import is_root, patience, unable
from .scene import Scene, firewalld_of, in_thread, play, soon


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
        (("call", NAME, PATH, PEER, "Ping"), True),
        (("call", NAME, PATH, MANAGER.name, "GetStatus"), True),
        (("call", NAME, PATH, MANAGER.name, "Reconcile"), False),
        (("call", NAME, PATH, MANAGER.name, "Reload"), False),
        (("set-property", NAME, PATH, MANAGER.name, "State", "s", "x"), False),
        (("call", NAME, PATH, MANAGER.name, "Explode"), False),
        (("call", NAME, PATH, PEER, "GetMachineId"), False),
        (("call", NAME, PATH, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"), False),
    ],
    ids=lambda value: " ".join(value[3:]) if isinstance(value, tuple) else "",
)
def test_every_user_may_read_and_only_root_may_call(strict_bus: Bus, arguments: tuple[str, ...], allowed: bool) -> None:
    nobody, by_root = 65534, allowed or arguments[-1] in ("Reconcile", "Reload")

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


@pytest.mark.parametrize("unique", [False, True], ids=["by name", "by unique name"])
@pytest.mark.parametrize("user", [65534, 0])
def test_no_user_may_send_the_daemon_a_signal(strict_bus: Bus, user: int, unique: bool) -> None:
    reached: list[str] = []

    async def story(scene: Scene) -> str:
        publisher, client = await scene.present()
        target = await client.owner(NAME) if unique else NAME
        assert publisher._connection is not None
        receive = publisher._connection._bus.receive

        def noting(frame: Frame) -> None:
            assert frame.fields is not None
            reached.append(frame.fields.member)
            receive(frame)

        publisher._connection._bus.receive = noting
        signal = attacker.message(target, FIREWALLD, "Reloaded", kind=attacker.SIGNAL)
        await in_thread(send_as, user, strict_bus, signal * 3 + attacker.message(target, PEER, "Ping"))
        return str(await client.call(NAME, PATH, PEER, "Ping"))

    assert play(Scene(strict_bus), story) == "()"
    assert set(reached) == {"Ping"}


def test_broadcasts_that_the_daemon_follows_still_arrive(strict_bus: Bus) -> None:
    """Their sender's policy holds for each receiver, as if they were addressed to it."""
    strict_bus.allow(
        f"<include>{POLICY}</include>"
        f'<policy user="root"><allow own="{FIREWALLD}"/><allow send_destination="{FIREWALLD}"/></policy>'
        f'<policy context="default"><allow send_destination="{FIREWALLD}"/></policy>'
    )

    async def story(scene: Scene) -> None:
        firewalld, answers = await firewalld_of(scene)
        answers.ready.set()
        await scene.present()
        firewalld.emit(FIREWALLD_PATH, FIREWALLD, "Reloaded", "")
        await soon(lambda: scene.manager.reasons)

    scene = Scene(strict_bus)
    play(scene, story)
    assert scene.manager.reasons == ["firewalld reloaded"]


def send_as(user: int, bus: Bus, data: bytes) -> None:
    """Send raw messages as a user, from a process of that user, who may not be able to read the project."""
    script = (
        "import sys, types; attacker = sys.modules['attacker'] = types.ModuleType('attacker'); "
        "exec(sys.argv[2], attacker.__dict__); "
        "s = attacker.Sender(sys.argv[1]); s.send(sys.stdin.buffer.read()); s.finish()"
    )
    source = Path(attacker.__file__).read_text()
    argv = ("/usr/bin/python3", "-I", "-c", script, bus.address.partition("=")[2], source)
    done = subprocess.run(argv, input=data, capture_output=True, user=user, cwd="/", timeout=patience(30))
    assert done.returncode == 0, done.stderr.decode()
