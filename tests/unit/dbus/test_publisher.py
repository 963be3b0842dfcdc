"""The daemon on a real bus: its signals, a bus that comes and goes, and a name that is taken or forbidden."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from flanneld_masq.controller.status import LastWrite, State
from flanneld_masq.dbus import connection
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import PROPERTIES, Message
from flanneld_masq.dbus.publisher import BACK
from flanneld_masq.dbus.reload_signals import FIREWALLD
from flanneld_masq.hookspecs import Event
from flanneld_masq.model import BackendName, Family

from ...bus import Bus
from .scene import DRIFT, STATUS, Scene, changed, play, soon


def test_a_repair_is_told(scene: Scene) -> None:
    async def story(scene: Scene) -> list[Message]:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        publisher.tell(Event("rules-applied", "not this"))
        publisher.tell(DRIFT)
        await soon(lambda: heard)
        return heard

    (signal,) = play(scene, story)
    assert (signal.path, signal.interface, signal.member) == (PATH, MANAGER.name, "Repaired")
    told = dict(zip(MANAGER.signals["Repaired"], signal.body))
    assert told == {
        "family": "ipv4",
        "backend": "nft",
        "reason": "ruleset changed",
        "duration_us": 2345,
        "culprit": "nft",
        "culprit_pid": 77,
        "message": "ipv4: drift repaired, by nft (pid 77)",
    }


def test_a_change_of_state_is_told_with_the_changed_properties(scene: Scene) -> None:
    async def story(scene: Scene) -> list[Message]:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        ipv4 = changed(STATUS, Family.IPV4, state=State.DEGRADED, last_error="no nft")
        degraded = replace(ipv4, state=State.DEGRADED)
        publisher.publish(degraded)
        publisher.publish(degraded)
        publisher.publish(changed(degraded, Family.IPV4, repairs=4))
        await soon(lambda: len(heard) == 4)
        return heard

    family, whole, properties, more = play(scene, story)
    assert (family.member, family.body) == ("StateChanged", ("ipv4", "synced", "degraded", "no nft"))
    assert (whole.member, whole.body) == ("StateChanged", ("", "synced", "degraded", "ipv4: no nft"))
    assert properties.interface == PROPERTIES
    assert properties.body == (MANAGER.name, {"State": "degraded", "LastError": "ipv4: no nft"}, ())
    assert more.body == (MANAGER.name, {"Repairs": 8}, ())


def test_what_has_not_changed_is_not_told(scene: Scene) -> None:
    async def story(scene: Scene) -> list[Message]:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        last = LastWrite("now", BackendName("nft"), "resync", drift=False, duration_us=1)
        publisher.publish(STATUS)
        publisher.publish(changed(STATUS, Family.IPV4, last_repair=last))  # no property tells of that
        publisher.tell(DRIFT)
        await soon(lambda: heard)
        return heard

    assert [signal.member for signal in play(scene, story)] == ["Repaired"]


def test_close_sends_what_was_told_before(scene: Scene) -> None:
    async def story(scene: Scene) -> list[str]:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        await client.follow(sender=connection.BUS, member="NameOwnerChanged", arg0=NAME)
        publisher.publish(replace(STATUS, state=State.STOPPED))
        await publisher.close()
        await soon(lambda: len(heard) == 3)
        return [signal.member for signal in heard]

    assert play(scene, story) == ["StateChanged", "PropertiesChanged", "NameOwnerChanged"]


def test_close_ends_in_time_while_the_bus_hangs(scene: Scene) -> None:
    async def story(scene: Scene) -> float:
        publisher, _ = await scene.present()
        loop = asyncio.get_running_loop()
        scene.bus.freeze()
        began = loop.time()
        await publisher.close()
        scene.bus.thaw()
        return loop.time() - began

    assert play(scene, story) < 0.5


def test_a_bus_that_comes_later_is_joined(bus: Bus) -> None:
    async def story(scene: Scene) -> None:
        publisher = scene.begin()
        await soon(lambda: scene.said)
        publisher.publish(replace(STATUS, state=State.DEGRADED))
        publisher.tell(DRIFT)
        scene.bus.start()
        client = await scene.connect()
        await soon(lambda: client.owner(NAME))
        await soon(lambda: len(scene.said) == 2)

    scene = Scene(bus)
    play(scene, story)
    missing, back = scene.said
    assert missing == (
        f"connecting to the system bus at {bus.address}: No such file or directory; no D-Bus service until the bus "
        "is available"
    )
    assert back == f"on the system bus as {NAME}"
    assert scene.manager.reasons == [BACK], "signals of the time without a bus are lost"


def test_a_bus_that_is_restarted_is_joined_again(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        publisher, _ = await scene.present()
        assert scene.manager.reasons == []
        for number in (1, 2):
            scene.bus.stop()
            await soon(lambda: len(scene.said) == 2 * number - 1)
            publisher.tell(DRIFT)
            scene.bus.start()
            client = await scene.connect()
            await soon(lambda: client.owner(NAME))
            heard = await scene.hears(client)
            publisher.tell(DRIFT)
            await soon(lambda: heard)
            assert [signal.member for signal in heard] == ["Repaired"], "a signal that was lost is not sent later"

    play(scene, story)
    lost = "the system bus is lost: the bus closed the connection; no D-Bus service until it is back"
    assert scene.said == [lost, f"on the system bus as {NAME}"] * 2
    assert scene.manager.reasons == [BACK] * 2


def test_a_name_that_another_process_has_is_waited_for(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        other, client = await scene.connect(), await scene.connect()
        assert await other.own(NAME)
        firewalld = await scene.connect()
        publisher = scene.begin()
        await soon(lambda: scene.said)
        publisher.tell(DRIFT)
        publisher.publish(replace(STATUS, state=State.DEGRADED))
        await firewalld.own(FIREWALLD)
        firewalld.close()
        await soon(lambda: "firewalld stopped" in scene.manager.reasons)
        before = await client.owner(NAME)
        other.close()
        await soon(lambda: len(scene.said) == 2)
        assert await client.owner(NAME) not in ("", before)

    play(scene, story)
    assert scene.said == [
        f"pid {os.getpid()} has the D-Bus name {NAME}; the daemon takes it when that process releases it",
        f"on the system bus as {NAME}",
    ]


def test_a_policy_that_forbids_the_name_may_change(bus: Bus) -> None:
    async def story(scene: Scene) -> None:
        scene.begin()
        await soon(lambda: scene.said)
        scene.bus.allow('<policy context="mandatory"><allow own="*"/><allow send_destination="*"/></policy>')
        await soon(lambda: len(scene.said) == 2)

    bus.allow("")
    bus.start()
    scene = Scene(bus)
    play(scene, story)
    assert NAME in scene.said[0] and "policies of D-Bus" in scene.said[0]
    assert scene.said[1] == f"on the system bus as {NAME}"
