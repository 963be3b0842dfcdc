"""The rules of a real kube-proxy: read, loaded into a network namespace, and changed as kube-proxy changes them.

`kernel/kube_proxy/README.md` says where they come from.
"""

from __future__ import annotations

import itertools
import lzma
import re
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import message, nfnl_msg_type, string
from flanneld_masq.model import Family

MODES = ("iptables-nft", "iptables-legacy", "nftables")
NETWORK = "10.244.0.0/16", "fd00:10:244::/48"  # clusterCIDR
RELEASE, OLD_RELEASE = "1.36", "1.30"
Run = Callable[..., str]  # (*argv, stdin=text)

_pause = threading.Event()
_DIRECTORY = Path(__file__).parent / "kernel" / "kube_proxy"
_NFNL_SUBSYS_ACCT, _NFNL_MSG_ACCT_NEW, _NFACCT_NAME = 7, 0, 1  # linux/netfilter/nfnetlink_acct.h
_NLM_F_REPLACE = 0x100
_NFACCT = re.compile(r" -m nfacct --nfacct-name +(\w+)")
_TOP_CHAINS = {  # which every partial restore writes again
    "filter": (
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-FORWARD",
        "KUBE-NODEPORTS",
        "KUBE-PROXY-FIREWALL",
    ),
    "nat": ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"),
}


class Rules:
    """kube-proxy's rules of one mode and family for 5, 500 or 5,000 services (IPv4 alone).

    `option` is `all` for masqueradeAll, `bit0` or `bit15` for another masqueradeBit.
    """

    def __init__(
        self, mode: str, family: Family, *, services: int = 5, release: str = RELEASE, option: str = ""
    ) -> None:
        self.mode, self.family = mode, family
        kind, suffix = ("nftables", "nft") if mode == "nftables" else ("iptables", "save")
        size = f"{services:04}" + (f"-{option}" if option else "")
        name = f"{release}-{kind}-{size}.v{family.data.version}.{suffix}.xz"
        self.text = lzma.decompress((_DIRECTORY / name).read_bytes()).decode()

    @property
    def uncounted(self) -> str:
        """The rules without objects that count packets, which a restore does not make."""
        return _NFACCT.sub("", re.sub(r".*localhost_nps_accepted_pkts.*\n", "", self.text))

    def load(self, run: Run) -> None:
        """Load all rules, in the place of whatever is in their tables. Call it inside the namespace."""
        self._account()
        table = f"table {self.family.data.nft} kube-proxy"
        before = f"add {table}\ndelete {table}\n" if self.mode == "nftables" else ""
        run(*self._argv(), stdin=before + self.text)

    def commit(self, run: Run, text: str) -> None:
        """Commit one of `changes`."""
        run(*self._argv("-w", "5", "--noflush", "--counters"), stdin=text)

    def changes(self) -> Changes:
        """Return the changes of endpoints. Call it after `load`."""
        return NftChanges(self) if self.mode == "nftables" else IptablesChanges(self)

    def _argv(self, *options: str) -> tuple[str, ...]:
        if self.mode == "nftables":
            return ("nft", "-f", "-")
        return (f"{self.mode.replace('iptables', self.family.data.tools)}-restore", *options)

    def _account(self) -> None:
        """Make the objects that rules count packets in. Where the kernel has none, take them out of the rules."""
        for name in sorted(set(_NFACCT.findall(self.text))):
            if not _make_nfacct(name):
                self.text = self.uncounted
                return


def _make_nfacct(name: str) -> bool:
    """Do as `nfacct add` does. Return False if the kernel does not know nfacct."""
    kind = nfnl_msg_type(_NFNL_SUBSYS_ACCT, _NFNL_MSG_ACCT_NEW)
    flags = uapi.NLM_F_REQUEST | uapi.NLM_F_ACK | uapi.NLM_F_CREATE | _NLM_F_REPLACE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, uapi.NETLINK_NETFILTER) as found:
        found.send(message(kind, flags, 0, 0, string(_NFACCT_NAME, name), 1))
        return int.from_bytes(found.recv(4096)[16:20], "little") == 0


def other_pod(address: str) -> str:
    """Return the address of the pod on the remote node that takes the place of an endpoint."""
    if ":" in address:
        return f"fd00:10:244:2::f0{address.rpartition(':')[2]:0>2}"
    return f"10.244.2.{int(address.rpartition('.')[2]) ^ 128}"


class Changes(ABC):
    """Endpoints that come and go. Each change puts another pod in the place of an endpoint of the next service.

    When all services had their turn, the endpoints come back one by one.
    """

    @abstractmethod
    def next(self, number: int = 1) -> str:
        """Return the input that commits the next changes at once, as kube-proxy does with those that it is late for.

        There are at most as many as services, for a service has one state.
        """


# ---- mode iptables

_DNAT = re.compile(r"--to-destination (?:\[([0-9a-f:]+)\]|([0-9.]+)):(\d+)")


class IptablesChanges(Changes):
    """Partial restores: the chains for all services, and the chains of the services that changed."""

    def __init__(self, rules: Rules) -> None:
        self._tables = _tables(rules.text)
        services = [name for name, lines in self._tables["nat"].items() if _changes(name, lines)]
        self._services = len(services)
        self._order = ((name, new) for new in itertools.cycle([True, False]) for name in services)

    def next(self, number: int = 1) -> str:
        chains: dict[str, list[str]] = {}
        gone: list[str] = []
        for name, new in itertools.islice(self._order, min(number, self._services)):
            own, left = self._service(name, new)
            chains.update(own)
            gone.append(left)
        top = {table: {name: self._tables[table][name] for name in names} for table, names in _TOP_CHAINS.items()}
        nat = {**top["nat"], **chains, **{name: [] for name in gone}}
        return _restore("filter", top["filter"], []) + _restore("nat", nat, [f"-X {name}" for name in gone])

    def _service(self, name: str, new: bool) -> tuple[dict[str, list[str]], str]:
        """Return the chains of a service, and the one that it has no longer."""
        nat = self._tables["nat"]
        endpoints = _endpoints(nat[name])
        own = [f"KUBE-{kind}-{name[9:]}" for kind in ("SVC", "EXT", "FW", "SVL")]
        chains = {chain: nat[chain] for chain in (*own, *endpoints) if chain in nat}
        renamed = _renaming(endpoints[0], nat[endpoints[0]])
        if not new:
            return chains, renamed(endpoints[0])
        return {renamed(chain): list(map(renamed, lines)) for chain, lines in chains.items()}, endpoints[0]


def _changes(name: str, lines: Sequence[str]) -> bool:
    """Return True for the chain of a service that has endpoints and, for simplicity, no affinity."""
    return name.startswith("KUBE-SVC-") and bool(_endpoints(lines)) and not any("--rcheck" in line for line in lines)


def _endpoints(lines: Sequence[str]) -> list[str]:
    targets = [line.rpartition(" -j ")[2] for line in lines]
    return [target for target in targets if target.startswith("KUBE-SEP-")]


def _renaming(chain: str, lines: Sequence[str]) -> Callable[[str], str]:
    """Return what puts another pod, with a chain of its own, in the place of the endpoint of this chain."""
    match = _DNAT.search("\n".join(lines))
    assert match is not None
    address = match[1] or match[2]
    pairs = (
        (chain, f"KUBE-SEP-OTHER{chain[14:]}"),
        (f"-s {address}/", f"-s {other_pod(address)}/"),
        (match[0], match[0].replace(address, other_pod(address))),
    )

    def renamed(text: str) -> str:
        for old, new in pairs:
            text = text.replace(old, new)
        return text

    return renamed


def _restore(table: str, chains: dict[str, list[str]], more: Sequence[str]) -> str:
    lines = [line for rules in chains.values() for line in rules]
    return "\n".join([f"*{table}", *(f":{chain} - [0:0]" for chain in chains), *lines, *more, "COMMIT", ""])


def _tables(saved: str) -> dict[str, dict[str, list[str]]]:
    """Return the rules by table and chain."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in saved.splitlines():
        if line.startswith("*"):
            chains = found.setdefault(line[1:], {})
        elif line.startswith(":"):
            chains[line[1:].split()[0]] = []
        elif line.startswith("-A"):
            chains[line.split()[1]].append(line)
    return found


# ---- mode nftables

_SERVICE = re.compile(r"\tchain (service-\S+) \{\n\t\t(.* numgen random mod \d+ map \{ 0 : (\S+) \. (\d+).*)\n")


class NftChanges(Changes):
    """Transactions that write the chains of the services that changed, and the set of local endpoints."""

    def __init__(self, rules: Rules) -> None:
        self._table, self._text = f"{rules.family.data.nft} kube-proxy", rules.text
        services = [match.groups() for match in _SERVICE.finditer(rules.text)]
        self._order = (self._service(new, *found) for new in itertools.cycle([True, False]) for found in services)

    def next(self, number: int = 1) -> str:
        return "".join(itertools.islice(self._order, number))

    def _service(self, new: bool, chain: str, rule: str, address: str, port: str) -> str:
        if new:
            rule = rule.replace(f" {address} . {port}", f" {other_pod(address)} . {port}", 1)
        text = f"flush chain {self._table} {chain}\nadd rule {self._table} {chain} {rule}\n"
        local = f"{address} . {address} . {chain.split('/')[-2]} . {port}"
        if local in self._text:
            element = f"element {self._table} hairpin-connections {{ {local} }}\n"
            text += f"add {element}" + (f"delete {element}" if new else "")
        return text


# ---- churn

CHANGES_PER_SECOND = 50


def churn(rules: Rules, run: Run, seconds: float) -> list[float]:
    """Change endpoints for so long, and return the seconds that each commit took.

    A change that is due while a commit runs waits for the next one, as in kube-proxy.
    """
    changes = rules.changes()
    taken: list[float] = []
    done = 0
    started = now = time.monotonic()
    while now < started + seconds:
        due = int((now - started) * CHANGES_PER_SECOND) + 1 - done
        if due:
            rules.commit(run, changes.next(due))
            taken.append(time.monotonic() - now)
            done += due
        else:
            _pause.wait(started + done / CHANGES_PER_SECOND - now)
        now = time.monotonic()
    return taken
