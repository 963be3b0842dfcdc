"""The scenarios, one for each cell. Each returns what it found, or raises."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flanneld_masq.errors import CommandError
from flanneld_masq.model import Family
from flanneld_masq.selftest.fault_injection import Tools, tools

from .node import BEFORE, UNIT, Node, NodeError, loaded, netfilter

BACKENDS = ("nft", "iptables-nft", "iptables-legacy")
DEBS = Path("/opt/matrix")
REPAIRS = 2  # of each damage, for the CPU seconds of one
BOOTED = Path("/run/systemd/system")
_UNIT_FIELD = "FLANNELD_MASQ_CULPRIT_UNIT"  # of the journal
PERSIST = (6, 9)  # the first Linux whose nft tables persist without their owner
_DAMAGES = ("chain flushed", "rule deleted", "table deleted", "jump removed")
_BY_SYSTEMD = frozenset({"ip_tables", "x_tables", "nfnetlink"})  # what systemd 247 to 257 loads at each boot
# As the unit says where legacy is asked for by name, and nothing else on the node loads its modules.
_LEGACY_MODULES = """\
[Unit]
Wants=modprobe@ip_tables.service modprobe@ip6_tables.service
After=modprobe@ip_tables.service modprobe@ip6_tables.service
"""
_SELFTEST = ("flanneld-masq", "selftest", "--json", "--backend")
_SELFTEST_SECONDS = 300.0
Found = tuple[str, Mapping[str, Any]]  # a sentence, and values
Scenario = Callable[[Node], Found]


class CannotRun(Exception):
    """The machine lacks what the scenario is about; the message says what."""


def expect(holds: object, what: str) -> None:
    """Raise NodeError unless it holds."""
    if not holds:
        raise NodeError(what)


# ---- the boot


def versions(node: Node) -> Found:
    """Not a cell: what the machine is made of."""

    def version(*argv: str) -> str:
        words = node.run(argv).stdout.split("\n", 1)[0]
        found = re.search(r"\d+(\.\d+)+", words) or re.search(r"\d+", words)
        return found[0] if found else words

    facts = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "bits": 64 if sys.maxsize > 1 << 32 else 32,
        "byte order": sys.byteorder,
        "systemd": version("systemctl", "--version") if BOOTED.exists() else "",
        "iptables": version("iptables", "--version"),
        "nft": version("nft", "--version"),
        "python": platform.python_version(),
        "factor": node.factor,
    }
    return f"Linux {facts['kernel']}", facts


def no_modules(node: Node) -> Found:
    """Before the service starts, the kernel has no module of netfilter, but for what systemd itself loads."""
    found = netfilter(BEFORE.read_text(encoding="ascii").splitlines())
    expect(_BY_SYSTEMD.issuperset(found), f"loaded before the service: {', '.join(found)}")
    return f"only {', '.join(sorted(found))}, by systemd" if found else "none of netfilter", {}


def service(node: Node) -> Found:
    """Enabled at the boot, the service is synced, and it was started once."""
    node.synced()
    expect(node.show("NRestarts") == "0", f"restarted {node.show('NRestarts')} times")
    before = netfilter(BEFORE.read_text(encoding="ascii").splitlines())
    modules = sorted(set(loaded()) - set(before))
    started, ready = (
        int(node.show(name)) for name in ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    )
    seconds = round((ready - started) / 1e6, 2)
    chosen = {family: one["groups"]["masquerade"]["backend"] for family, one in _families(node).items()}
    facts = {"seconds": seconds, "modules": modules, "backends": chosen}
    return f"synced {seconds:g} s after the start of the process; the kernel loaded {len(modules)} modules", facts


def backends(node: Node) -> Found:
    """Every backend can be used for every family of the node."""
    found = node.backends()
    unusable = [
        f"{name} for {family}: {one['reason']}"
        for family, named in found.items()
        for name, one in named.items()
        if not one["usable"]
    ]
    expect(not unusable, "; ".join(unusable))
    return f"{', '.join(found['ipv4'])} usable for {' and '.join(found)}", {}


def _families(node: Node) -> dict[str, Any]:
    """Return the families that the node works for."""
    families = node.status()["families"]
    return {name: one for name, one in families.items() if one["in_subnet_file"] and one["groups"]}


# ---- the backends


def of_backend(backend: str) -> Scenario:
    """With this backend, each damage by a tool is repaired; tells the CPU seconds of a repair."""

    def scenario(node: Node) -> Found:
        if backend == "iptables-legacy":
            _load_legacy(node)
        node.configure(backend)
        facts: dict[str, Any] = {}
        for family in map(Family, _families(node)):
            damaged = tools(backend, family, node.run)
            assert damaged is not None
            facts[family.value] = {name: _cost(node, damaged, name) for name in _DAMAGES if name in damaged.damages}
        costs = [cost for named in facts.values() for cost in named.values()]
        mean = round(sum(costs) / len(costs), 4)
        return f"{len(costs) * REPAIRS} damages repaired, {mean:g} CPU seconds each", {**facts, "cpu_seconds": mean}

    return scenario


def _load_legacy(node: Node) -> None:
    drop_in = Path(f"/etc/systemd/system/{UNIT}.d/legacy.conf")
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(_LEGACY_MODULES, encoding="ascii")
    node.systemctl("daemon-reload")
    node.systemctl("restart", UNIT)


def _cost(node: Node, damaged: Tools, name: str) -> float:
    """Do one damage some times; return the CPU seconds of a repair."""
    verified = damaged.ours()
    cpu = node.cpu_seconds()
    for _ in range(REPAIRS):
        repairs = node.repairs()
        damaged.damages[name]()
        # Listing the rules again and again would take the processor from the daemon.
        node.until(lambda: node.repairs() > repairs, f"a repair after {name}")
        node.until(lambda: damaged.ours() == verified, f"repaired after {name}")
    return round((node.cpu_seconds() - cpu) / REPAIRS, 4)


def selftest(backend: str) -> Scenario:
    """`flanneld-masq selftest`: real packets and damages, in namespaces of its own."""

    def scenario(node: Node) -> Found:
        document = json.loads(node.run((*_SELFTEST, backend), timeout=_SELFTEST_SECONDS).stdout)
        results = document["results"]
        if not any(one["usable"] for one in results):
            raise CannotRun("; ".join(dict.fromkeys(one["reason"] for one in results)))
        packets, repairs = (sum(len(one[key]) for one in results) for key in ("packets", "repairs"))
        families = " and ".join(one["family"] for one in results if one["usable"])
        return f"{families}: {packets} packets and {repairs} repairs as expected", {"speed": document["speed"]}

    return scenario


# ---- the life of the package


def restart(node: Node) -> Found:
    """A restart writes nothing: the tables keep their handles."""
    node.configure("nft")
    before = _listing(node)
    node.systemctl("restart", UNIT)
    node.synced("nft")
    expect(_listing(node) == before, "the restart wrote rules")
    return "nothing written", {}


def upgrade(node: Node) -> Found:
    """An older package in place of the installed one, then the new one again: the service goes on, with its rules."""
    node.configure("nft")
    before = _listing(node)
    old, new = sorted(DEBS.glob("*.deb"))
    for deb in (old, new):
        pid = node.show("MainPID")
        node.run(("dpkg", "--install", "--force-confold", str(deb)), timeout=600.0)
        node.until(lambda: node.show("MainPID") not in (pid, "0"), f"restarted by {deb.name}")
        node.synced("nft")
        expect(_listing(node) == before, f"{deb.name} changed the rules")
    return f"{old.name} to {new.name}: restarted, rules untouched", {}


def _listing(node: Node) -> str:
    return "".join(
        node.run(("nft", "-s", "-a", "list", "table", Family(family).data.nft, "flanneld-masq")).stdout
        for family in _families(node)
    )


def protected(node: Node) -> Found:
    """From Linux 6.9 other programs cannot change the tables; before that they can, and the daemon repairs them."""
    persists = tuple(map(int, platform.release().split(".")[:2])) >= PERSIST
    node.configure("nft", protect=True)
    said = {one.get("protection") for one in _families(node).values()}
    handles = _listing(node)
    for family in map(Family, _families(node)):
        try:
            node.run(("nft", "flush", "chain", family.data.nft, "flanneld-masq", "postrouting"))
            refused = False
        except CommandError as error:
            refused = "Operation not permitted" in str(error)
        expect(refused == persists, f"{family}: a flush was {'refused' if refused else 'possible'}; status: {said}")
    node.run(("nft", "flush", "ruleset"))
    node.until(lambda: bool(_plain(node)) and (not persists or _listing(node) == handles), "the rules are there")
    node.synced("nft")
    text = "other programs cannot change them" if persists else "unprotected as on this kernel, and repaired"
    return f"{text}; status says {', '.join(map(str, said))}", {}


def _plain(node: Node) -> str:
    try:
        return re.sub(r" # handle \d+", "", _listing(node))
    except CommandError:
        return ""


# ---- kernels that lack something


def lacking(modules: tuple[str, ...], unusable: frozenset[str]) -> Scenario:
    """On a node without these modules, `backends` names the backends that cannot be used, and the service works."""

    def scenario(node: Node) -> Found:
        try:
            node.without_modules(*modules)
            found = node.backends()
            for family, named in found.items():
                lost = {name for name, one in named.items() if not one["usable"]}
                expect(lost == unusable, f"{family}: unusable are {sorted(lost)}, expected {sorted(unusable)}")
            reasons = {one["reason"] for one in found["ipv4"].values() if not one["usable"]}
            node.configure("auto")
            chosen = {one["groups"]["masquerade"]["backend"] for one in _families(node).values()}
            back = _repaired(node, chosen)
            return f"{', '.join(sorted(chosen))} in use, {back}; {'; '.join(sorted(reasons))}", {}
        finally:
            node.with_modules()

    return scenario


def _repaired(node: Node, chosen: set[str]) -> str:
    """Flush the chain of each family once, and wait for the repair."""
    (backend,) = chosen
    for family in map(Family, _families(node)):
        damaged = tools(backend, family, node.run)
        assert damaged is not None
        verified = damaged.ours()
        damaged.damages["chain flushed"]()
        node.until(lambda: damaged.ours() == verified, "repaired after a flush")
    return "damage repaired"


def without_ipv6(node: Node) -> Found:
    """With IPv6 off at the boot, IPv4 is in sync although the subnet file names both."""
    expect(not Path("/proc/net/if_inet6").exists(), "this kernel has IPv6")
    node.write_config("auto", protect=False)
    node.systemctl("reload-or-restart", UNIT)

    def synced() -> object:
        ipv4 = node.status().get("families", {}).get("ipv4", {})
        return ipv4.get("state") == "synced" and ipv4.get("protection", "none") == "none"

    node.until(synced, "IPv4 is synced, without protection")
    status = node.status()
    ipv6 = status["families"]["ipv6"]
    repaired = _repaired(node, {status["families"]["ipv4"]["groups"]["masquerade"]["backend"]})
    return f"state {status['state']}, {repaired}; IPv6: {ipv6['state']} {ipv6['last_error']}".strip(), {}


# ---- control groups


def cgroup(version: int) -> Scenario:
    """With this version of control groups, the daemon names the unit of the program that removed rules."""

    def scenario(node: Node) -> Found:
        unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        if unified != (version == 2):
            raise CannotRun(f"this systemd runs with version {2 if unified else 1} of control groups")
        node.configure("iptables-nft")
        repairs = node.repairs()
        # The program is still there when a slow daemon looks for it.
        script = "(printf '*nat\\n-F FLANNELD-MASQ\\nCOMMIT\\n'; sleep 900) | iptables-nft-restore --noflush"
        node.run(("systemd-run", "--unit=vandal", "--collect", "/bin/sh", "-c", script))
        node.until(lambda: node.repairs() > repairs, "repaired after a flush")
        node.systemctl("stop", "vandal.service")
        units = {str(entry[_UNIT_FIELD]) for entry in node.journal("") if _UNIT_FIELD in entry}
        expect("vandal.service" in units, f"the journal names {sorted(units)} as the unit that flushed")
        limits = f"MemoryMax {node.show('MemoryMax')}, TasksMax {node.show('TasksMax')}"
        return f"the unit that flushed is named; {limits}", {}

    return scenario


SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        "versions": versions,
        "no-modules": no_modules,
        "service": service,
        "backends": backends,
        **{name: of_backend(name) for name in BACKENDS},
        "restart": restart,
        "upgrade": upgrade,
        "protected": protected,
        "cgroup-v2": cgroup(2),
        "cgroup-v1": cgroup(1),
        **{f"selftest-{name}": selftest(name) for name in BACKENDS},
        "no-ip_tables": lacking(("ip_tables", "ip6_tables"), frozenset({"iptables-legacy"})),
        "no-nft_compat": lacking(("nft_compat",), frozenset({"iptables-nft"})),
        "no-nft_masq": lacking(("nft_masq",), frozenset({"nft"})),
        "ipv6-off": without_ipv6,
    }
)
