"""The node under test: its service, its status, its configuration and its modules, as an administrator reaches them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flanneld_masq.errors import CommandError
from flanneld_masq.process import ProcessRunner

UNIT = "flanneld-masq.service"
CONFIG = Path("/etc/flanneld-masq/config.toml")
STATUS = Path("/run/flanneld-masq/status.json")
BEFORE = Path("/run/modules-before")
MODULES = Path("/proc/modules")
_NETFILTER = re.compile(
    r"^(nf_|nft_|nfnetlink|x_tables|xt_|ip_tables|ip6_tables|iptable_|ip6table_|ipt_|ip6t_|arp_tables|ebt)"
)
_SECONDS = 60.0  # for anything that a node is waited for, on the machine that the limits were chosen on
_PAUSE_SECONDS = 0.2  # the daemon needs the same processor


class NodeError(Exception):
    """The node did not do what the scenario expects."""


class Node:
    """The machine that runs this. `factor` says how many times as slow it is as the one that limits were chosen on."""

    def __init__(self, run: ProcessRunner, factor: float) -> None:
        self.run = run
        self.factor = factor

    # ---- the service

    def configure(self, backend: str, *, protect: bool = False, then: str = "reload-or-restart") -> None:
        """Write the configuration, have the service read it, and wait until it is synced with the backend."""
        self.write_config(backend, protect=protect)
        self.systemctl(then, UNIT)
        self.synced(backend, protect=protect)

    @staticmethod
    def write_config(backend: str, *, protect: bool) -> None:
        """Write the configuration. The service reads it at the next reload or start."""
        nft = "" if protect else "[nft]\nprotect = false\n"
        CONFIG.parent.mkdir(exist_ok=True)
        CONFIG.write_text(f'backend = "{backend}"\n{nft}', encoding="ascii")

    def synced(self, backend: str = "auto", *, protect: bool = True) -> None:
        """Wait until the running daemon is synced, with this backend for every family of the subnet file. Without
        `protect`, wait also until no table is protected: a daemon that reloads is synced already."""

        def found() -> bool:
            status = self.status()
            families = [
                family
                for family in status.get("families", {}).values()
                if family.get("in_subnet_file") and family["state"] != "waiting"
            ]
            backends = {family["groups"].get("masquerade", {}).get("backend") for family in families}
            unprotected = all(family.get("protection", "none") == "none" for family in families)
            right = bool(backends) and (backend == "auto" or backends == {backend})
            return status.get("state") == "synced" and right and (protect or unprotected)

        self.until(found, f"the daemon is synced with {backend}")

    def status(self) -> dict[str, Any]:
        """Return the daemon's status; an empty one while there is none of a process that runs."""
        try:
            found: dict[str, Any] = json.loads(STATUS.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if Path(f"/proc/{found.get('pid')}").exists() else {}

    def repairs(self) -> int:
        """Return how many repairs of drift the daemon counts, in all families."""
        families = self.status().get("families", {})
        return sum(family.get("repairs") or 0 for family in families.values())

    def show(self, name: str, unit: str = UNIT) -> str:
        """Return a property of a unit."""
        return self.run(("systemctl", "show", "--value", f"--property={name}", unit)).stdout.strip()

    def cpu_seconds(self) -> float:
        """Return the CPU time that the service and its tools have taken since its start."""
        return int(self.show("CPUUsageNSec")) / 1e9

    def systemctl(self, *arguments: str) -> None:
        self.run(("systemctl", "--no-pager", *arguments), timeout=300.0)

    def masq(self, *arguments: str) -> str:
        """Return what the installed program prints. Raises CommandError unless it exits with 0."""
        return self.run(("flanneld-masq", *arguments), timeout=600.0).stdout

    def backends(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return what `flanneld-masq backends` says: by family, then by backend."""
        document = json.loads(self.masq("backends", "--json"))
        return {
            family: {backend["name"]: backend for backend in found["backends"]}
            for family, found in document["families"].items()
        }

    def journal(self, message: str) -> list[dict[str, Any]]:
        """Return the entries of the service since the boot whose message contains a text."""
        self.run(("journalctl", "--sync"), timeout=120.0)
        said = self.run(("journalctl", "--boot", "--quiet", "--all", "--output=json", f"--unit={UNIT}"), timeout=120.0)
        entries = [json.loads(line) for line in said.stdout.splitlines()]
        return [entry for entry in entries if message in str(entry.get("MESSAGE", ""))]

    def until(self, condition: Callable[[], object], what: str, seconds: float = _SECONDS) -> float:
        """Wait until the condition is true; return the seconds. Raises NodeError after `seconds` times `factor`."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > seconds * self.factor:
                raise NodeError(f"{what}: not within {seconds * self.factor:.0f} s; status: {self._last()}")
            time.sleep(_PAUSE_SECONDS)
        return time.monotonic() - started

    def _last(self) -> str:
        state = f"{self.show('ActiveState')}, {self.show('StatusText')}"
        return f"{state}; {'; '.join(str(entry['MESSAGE']) for entry in self.journal('')[-3:])}"

    # ---- modules

    def without_modules(self, *names: str) -> None:
        """Make a node of a kernel that was built without these modules: unload all of netfilter, move them away.

        The files lose their names, and the index of modules forgets them. Raises NodeError if one of them stays loaded.
        """
        self.systemctl("stop", UNIT)
        self.masq("cleanup")
        self.run(("nft", "flush", "ruleset"))
        for name in names:
            for path in Path("/lib/modules").glob(f"*/kernel/net/**/{name}.ko*"):
                path.rename(path.with_name(f"{path.name}.away"))
        self.run(("depmod",), timeout=60.0)
        self.unload()
        if left := set(names) & set(loaded()):
            raise NodeError(f"still loaded: {', '.join(sorted(left))}")

    def with_modules(self) -> None:
        """Put back what `without_modules` moved away."""
        for path in Path("/lib/modules").glob("*/kernel/net/**/*.away"):
            path.rename(path.with_suffix(""))
        self.run(("depmod",), timeout=60.0)

    def unload(self) -> None:
        """Unload the modules of netfilter until none can be unloaded any more."""
        before: list[str] = []
        while (names := loaded()) != before:
            before = names
            for name in names:
                try:
                    self.run(("rmmod", name))
                except CommandError:
                    continue  # in use, for now


def netfilter(listing: Iterable[str]) -> list[str]:
    """Return the names of the netfilter modules in the lines of /proc/modules, in their order."""
    return [name for line in listing if _NETFILTER.match(name := line.split(" ", 1)[0])]


def loaded() -> list[str]:
    """Return the netfilter modules that are loaded now."""
    return netfilter(MODULES.read_text(encoding="ascii").splitlines())
