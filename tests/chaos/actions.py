"""Perform the actions of a plan on a site. Raises Fault if the daemon gives a wrong answer."""

from __future__ import annotations

import select
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from flanneld_masq.dbus.manager1 import NAME
from flanneld_masq.errors import MasqError
from flanneld_masq.inputs import subnet_env
from flanneld_masq.model import Family, Group
from flanneld_masq.ruleset import policy

from .. import attacker
from ..common import eventually, is_root, patience
from ..kernel.mutations import Mutation
from .foreign import FOREIGN, foreign_chains
from .plan import BACKENDS, CHOICES, LEASES, Action, Kind
from .site import Fault, Site

NOBODY = 65534
MAX_SECONDS_OF_ATTACK = 1.5
_pause = threading.Event()


class Actor:
    """Does actions. `done` says of each in words what became of it.

    Attacks go on beside the next actions; `messages` is how many messages they have sent.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.done: list[str] = []
        self.messages = 0
        self._attacks: list[subprocess.Popen[bytes]] = []
        self._own: dict[Kind, Callable[[Action], str]] = {
            Kind.DAMAGE: self._damage,
            Kind.STALE: self._stale,
            Kind.LEASE: self._lease,
            Kind.BAD_LEASE: self._bad_lease,
            Kind.SETTINGS: self._settings,
            Kind.BACKEND: self._settings,
            Kind.BAD_SETTINGS: self._bad_settings,
            Kind.HANGUP: self._hangup,
            Kind.APPLY: self._apply,
            Kind.SECOND: self._second,
            Kind.ATTACK: self._attack,
            Kind.BUS: self._restart_bus,
            Kind.KILL: self._kill,
            Kind.RESTART: self._restart,
        }

    def act(self, action: Action) -> None:
        """Wait as the plan says, then do it. What other programs do is done in both namespaces, and must end alike."""
        _pause.wait(action.pause)
        if action.kind in FOREIGN:
            for shell in self.site.shells:
                shell.outcomes.clear()
                shell.errors.clear()
                FOREIGN[action.kind](shell, action)
            beside, alone = self.site.shells
            note = "; ".join(command + ("" if done else " (failed)") for command, done in alone.outcomes)
            self.done.append(f"{action}: {note}")
            if beside.outcomes != alone.outcomes:
                raise Fault(f"other exit status than alone: {beside.outcomes}, {beside.errors}, not {alone.outcomes}")
        else:
            self.done.append(f"{action}: begun")
            self.done[-1] = f"{action}: {self._own[action.kind](action)}"

    def finish(self) -> None:
        """Wait for what goes on beside."""
        while self._attacks:
            attack = self._attacks.pop()
            said, error = attack.communicate(timeout=patience(30))
            if attack.returncode:
                raise Fault(f"the attacker ended with status {attack.returncode}: {error.decode(errors='replace')}")
            self.messages += int(said.split()[-2])

    # ---- the daemon's rules

    def _damage(self, action: Action) -> str:
        for shell in self.site.shells:
            foreign_chains(shell, action)
        with self.site.node.entered():
            found = self._mutations(action.family, action.choice)
            if not found:
                return "there is nothing to damage"
            mutation = found[action.choice * len(found) // CHOICES]
            try:
                mutation.do()
            except (MasqError, LookupError, StopIteration, RuntimeError) as error:
                return f"{mutation.name}: not possible now: {error!r}"
        eventually(lambda: self._undone(mutation))
        return mutation.name

    def _stale(self, action: Action) -> str:
        """Restore an old dump of the daemon's rules: of another lease, perhaps of another backend."""
        name, lease = BACKENDS[action.choice % len(BACKENDS)], tuple(LEASES.values())[action.choice // 3 % len(LEASES)]
        node, found = self.site.node, subnet_env.parse(lease.encode(), "old.env")
        desired = policy.desired(node.settings, (found,), action.family, frozenset(Group))
        with node.entered():
            backend = self.site.subject(action.family, name).backend
        dump = "".join(line for line in backend.render(desired).splitlines(keepends=True) if line[0] != "#")
        flavour = name.partition("-")[2]
        argv = (f"{action.family.data.tools}-{flavour}-restore", "-w", "--noflush") if flavour else ("nft", "-f", "-")
        try:
            node.tool(*argv, stdin=dump)
        except MasqError as error:  # a repair came in between
            return f"{name}: not possible now: {error}"
        return name

    def _mutations(self, family: Family, choice: int) -> list[Mutation]:
        """Those that leave the rules of others alone, of a group where it is now, if it is anywhere."""
        status = self.site.daemon.status().get("families", {}).get(str(family), {})
        groups = status.get("groups", {})
        if not groups:
            return []
        names = sorted({each["backend"] for carried in groups.values() for each in (carried, *carried.get("also", ()))})
        name = names[choice % len(names)]
        carried = frozenset(
            Group(group)
            for group, first in groups.items()
            if any(each["backend"] == name for each in (first, *first.get("also", ())))
        )
        node = self.site.node
        desired = policy.desired(node.settings, (node.lease(),), family, carried)
        try:
            return [each for each in self.site.subject(family, name).mutations(desired) if each.foreign_stays]
        except MasqError:  # gone since the status was written
            return []

    def _undone(self, mutation: Mutation) -> bool:
        """Undo the foreign part of a mutation. Return False until the daemon has removed its own part."""
        with self.site.node.entered():
            try:
                mutation.undo()
            except MasqError:
                return False
        return True

    # ---- files and signals

    def _lease(self, action: Action) -> str:
        self.site.lease = action.text
        self.site.node.write_subnet(action.text)
        return " ".join(action.text.split())

    def _bad_lease(self, action: Action) -> str:
        self.site.node.write_subnet(action.text)
        _pause.wait(action.choice / CHOICES * 0.2)
        self.site.node.write_subnet(self.site.lease)
        return repr(action.text)

    def _settings(self, action: Action) -> str:
        self.site.node.configure(action.text)
        self._hangup(action)
        return " ".join(action.text.split())

    def _bad_settings(self, action: Action) -> str:
        self._wait(lambda: bool(self.site.daemon.status()))  # at its start it would refuse to run
        good = self.site.settings_text
        known = good.splitlines()[:3]
        self.site.node.config_file.write_text("\n".join([*known, action.text]))
        self._hangup(action)
        self._wait(lambda: bool(self.site.daemon.status().get("reload_refused")))
        self.site.node.config_file.write_text(good)
        self._hangup(action)
        return repr(action.text)

    def _hangup(self, _: Action) -> str:
        self._wait(self.site.takes_hangup)
        self.site.daemon.signal(signal.SIGHUP)
        return "sent"

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the daemon does, and raise Fault if it ends instead."""

        def answered() -> bool:
            self.site.assert_runs()
            return condition()

        eventually(answered)

    # ---- programs and processes

    def _apply(self, _: Action) -> str:
        done = self.site.node.masq("apply")
        if done.returncode:
            raise Fault(f"apply ended with status {done.returncode}: {done.stderr}")
        return " ".join(done.stdout.split())

    def _second(self, _: Action) -> str:
        self._wait(lambda: bool(self.site.daemon.status()))
        done = self.site.node.masq("run")
        if done.returncode != 1 or f"pid {self.site.daemon.process.pid}" not in done.stderr:
            raise Fault(f"a second daemon ended with status {done.returncode}: {done.stderr}")
        return done.stderr.strip()

    def _attack(self, action: Action) -> str:
        script = self.site.directory / "attacker.py"
        if not script.exists():
            script.write_bytes(Path(attacker.__file__).read_bytes())
            script.chmod(0o644)
        seconds = action.choice / CHOICES * MAX_SECONDS_OF_ATTACK
        path = self.site.bus.address.partition("=")[2]
        user = NOBODY if is_root() else None
        attack = subprocess.Popen(
            ("/usr/bin/python3", str(script), path, NAME, action.text, f"{seconds:.2f}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            user=user,
            cwd="/",
        )
        self._attacks.append(attack)
        # A later action may restart the bus, so the attacker connects before it. It prints a line then, or fails.
        assert attack.stdout is not None
        if not select.select([attack.stdout], (), (), patience(10))[0]:
            raise Fault(f"the attacker has not begun with {action.text}")
        return f"{action.text} for {seconds:.2f} s"

    def _restart_bus(self, _: Action) -> str:
        self.site.bus.stop()
        self.site.bus.start()
        return "stopped and started"

    def _kill(self, action: Action) -> str:
        self.site.kill()
        _pause.wait(action.choice / CHOICES * 0.3)
        self.site.start()
        return f"pid {self.site.daemon.process.pid} from now on"

    def _restart(self, action: Action) -> str:
        self._wait(self.site.takes_hangup)
        status = self.site.daemon.stop()
        if status:
            raise Fault(f"SIGTERM ended it with status {status}: {self.site.daemon.lines()[-4:]}")
        return self._kill(action)
