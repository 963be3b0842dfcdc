"""One node with the daemon, the same node without it, and a bus. What they hold is read here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from flanneld_masq.inputs import config, subnet_env
from flanneld_masq.model import BackendName, Desired, Family, Group
from flanneld_masq.ruleset import policy
from flanneld_masq.selftest.netns import DIRECTORY

from ..bench.usage import resident
from ..bus import POLICY, Bus
from ..kernel.conftest import Daemon, Node
from ..kernel.mutations import IptablesSubject, NftSubject, Subject
from .dumps import FLAVOURS, Listings
from .foreign import Shell, nft_ruleset
from .growth import Sample
from .plan import LEASES, configuration

NOT_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_HANGUP = 1 << 0  # SIGHUP in the masks of /proc/PID/status


class Fault(Exception):
    """The daemon did something that it must not do."""


class Site:
    """Everything that a run works on. Call `close` at the end."""

    def __init__(self, name: str) -> None:
        self.directory = DIRECTORY / name
        self.directory.mkdir()
        self.node, self.reference = self._node(f"{name}-daemon"), self._node(f"{name}-alone")
        self.shells = (Shell(self.node), Shell(self.reference))
        self.bus = Bus(self.directory, f"<include>{POLICY}</include>")
        self.bus.start()
        os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = self.bus.address
        for variable in NOT_SYSTEMD:
            os.environ.pop(variable, None)
        self._process = ExitStack()
        self._subjects: dict[tuple[Family, str], Subject] = {}
        self.lease = next(iter(LEASES.values()))
        self.node.write_subnet(self.lease)
        self.node.configure(configuration("nft", ""))
        self.start()

    def close(self) -> None:
        self._process.close()
        self.bus.stop()
        for node in (self.node, self.reference):
            node.close()
        shutil.rmtree(self.directory)

    # ---- the daemon

    def start(self) -> None:
        self.daemon: Daemon = self._process.enter_context(self.node.running())

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.close()

    def assert_runs(self) -> None:
        """Raise Fault if the daemon has ended by itself."""
        status = self.daemon.process.poll()
        if status is not None:
            raise Fault(f"the daemon ended with status {status}: {self.daemon.lines()[-4:]}")

    def takes_hangup(self) -> bool:
        """Return True once the process has a handler for SIGHUP, or ignores it: the interpreter is that far."""
        status = Path(f"/proc/{self.daemon.process.pid}/status").read_text().splitlines()
        masks = [int(line.split()[1], 16) for line in status if line.startswith(("SigCgt:", "SigIgn:"))]
        return any(mask & _HANGUP for mask in masks)

    def sample(self, seconds: float) -> Sample:
        pid = self.daemon.process.pid
        counts = [len(list(Path(f"/proc/{pid}/{name}").iterdir())) for name in ("fd", "task")]
        return Sample(seconds, pid, resident(pid), *counts)

    def repairs(self) -> int:
        """Repairs that the process now running has counted."""
        return sum(int(family.get("repairs") or 0) for family in self.daemon.status().get("families", {}).values())

    # ---- its settings, and the rules that follow from them

    @property
    def settings_text(self) -> str:
        return self.node.config_file.read_text()

    def desired(self) -> Mapping[Family, Desired]:
        """Return the rules that the files ask for, by the policy alone."""
        settings, lease = config.load(self.node.config_file), subnet_env.read(self.node.subnet_file)
        assert lease is not None
        return {family: policy.desired(settings, (lease,), family, frozenset(Group)) for family in Family}

    def listings(self, node: Node) -> Listings:
        saved = {
            (family, flavour): node.tool(f"{family.data.tools}-{flavour}-save")
            for family in Family
            for flavour in FLAVOURS
        }
        return Listings(nft_ruleset(node, "-s"), saved)

    def subject(self, family: Family, name: str) -> Subject:
        """Return a backend as the mutations take it. Call it while the node is entered: it keeps its sockets."""
        if (family, name) not in self._subjects:
            backend = self.node.backends(family)[BackendName(name)]
            kind = NftSubject if name == "nft" else IptablesSubject
            self._subjects[family, name] = kind(family, backend, self.node.run)
        return self._subjects[family, name]

    def _node(self, name: str) -> Node:
        directory = self.directory / name
        directory.mkdir()
        return Node(name, directory)
