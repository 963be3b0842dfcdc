"""Collects a snapshot of this node with nft, iptables-save, ip and ipset. The edge of this package.

The programs only read, and each is bounded in time and output. What cannot be read is a line of `unread`. A legacy
table is listed only if it exists, for a listing creates it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from flanneld_masq.errors import CommandError, SnapshotError
from flanneld_masq.inputs.text import read_regular, read_start
from flanneld_masq.model import Family
from flanneld_masq.packet_path import nft_tables, save_format
from flanneld_masq.packet_path.snapshot import LEGACY, NFT, XTABLES, Save, Snapshot
from flanneld_masq.process import ProcessRunner

TIMEOUT = 30.0  # seconds for each program
MANY_CHAINS = 1000  # beyond which nft takes seconds, and more memory than this process may
MAX_TABLES = 64  # that are listed one by one
MAX_DEVICES = 4096  # whose sysctls are read
MAX_BYTES = 4096  # of a file below /proc
MAX_QUEUES = 1 << 20  # bytes of the list of queues
_QUEUES = "proc/thread-self/net/netfilter/nfnetlink_queue"
_OWN_TABLE = '"table": "flanneld-masq"'
_OF_DEVICES = {
    "net/ipv4/conf": ("forwarding", "rp_filter", "accept_local", "src_valid_mark"),
    "net/ipv6/conf": ("forwarding", "force_forwarding", "disable_ipv6", "accept_ra"),
}
_OF_NODE = (
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
)


# What nft lists as text alone: the tables of a ruleset in JSON, and how their listing is read.
_LISTED: Sequence[tuple[Callable[[str], Iterator[tuple[str, str]]], Callable[[str, str, str], str]]] = (
    (nft_tables.garbled, nft_tables.dormant),
    (nft_tables.without_devices, nft_tables.devices),
)


class Collector:
    """Collects one snapshot. `root` is the directory that stands for /."""

    def __init__(self, run: ProcessRunner, root: Path = Path("/")) -> None:
        self._run = run
        self._root = root
        self._unread: list[str] = []

    def snapshot(self) -> Snapshot:
        """Return what this node has now. It raises nothing."""
        chains = self._output("nft", "-j", "list", "chains")
        saves = tuple(self._saves(chains))
        ruleset = self._ruleset(chains, saves)
        families = {family: f"-{family.data.version}" for family in Family if self._has(family)}
        return Snapshot(
            ruleset=ruleset,
            saves=saves,
            links=self._output("ip", "-j", "-d", "link"),
            addresses=self._output("ip", "-j", "-d", "addr"),
            routes={
                family: self._output("ip", "-j", flag, "route", "show", "table", "all")
                for family, flag in families.items()
            },
            rules={family: self._output("ip", "-j", flag, "rule") for family, flag in families.items()},
            neighbours=self._output("ip", "-j", "neigh", "show", "nud", "permanent", needed=False),
            ends=self._output("bridge", "-j", "fdb", needed=False),
            ipsets=self._ipsets(saves),
            sysctls=dict(self._sysctls()),
            unread=tuple(self._unread),
            queues=self._queues(),
        )

    def _has(self, family: Family) -> bool:
        """Return True if the kernel carries the family. ip fails for one that is switched off at boot."""
        return (self._root / family.data.proc).exists()

    def _ruleset(self, chains: str, saves: tuple[Save, ...]) -> str:
        """Return the ruleset of nft; of many chains only the tables that iptables-nft-save does not show.

        nft needs 4 s and 370 MB for 43,000 rules of kube-proxy, iptables-nft-save 2 s and 44 MB. The handles of the
        rules are missing then. Beside many rules, nft 1.0 ends by SIGABRT where it lists them together with a table
        whose flags it garbles, as it does those of a protected table. So tables are listed one by one there, too.
        """
        many = nft_tables.count(chains) > MANY_CHAINS
        if many or _OWN_TABLE in chains:
            try:
                shown = [save for save in saves if save.flavour == NFT] if many else []
                parsed = {save.family.data.nft: save_format.tables(save.text) for save in shown}
                known, others = nft_tables.divided(chains, parsed)
            except SnapshotError as error:
                self._unread.append(str(error))
                return ""
            if len(others) <= MAX_TABLES:
                listed = [self._output("nft", "-j", "list", "table", *names) for names in others]
                return self._completed(nft_tables.joined([known, *listed]))
        return self._completed(self._output("nft", "-j", "list", "ruleset")) if chains else ""

    def _completed(self, ruleset: str) -> str:
        """Return the ruleset with what nft lists of tables whose flags it garbles in JSON, or whose devices it leaves
        out."""
        said: list[str] = []
        for find, read in _LISTED:
            for names in islice(find(ruleset), MAX_TABLES):
                listing = self._output("nft", "-t", "list", "table", *names, needed=False)
                said += filter(None, [read(*names, listing)])
        return nft_tables.joined([ruleset, *said]) if said else ruleset

    def _at_once(self, argvs: Sequence[tuple[str, ...]], *, needed: bool) -> list[str]:
        """Return what each program prints. Two run at a time: each takes seconds for many rules, and little memory."""
        with ThreadPoolExecutor(2) as threads:
            try:
                return list(threads.map(lambda argv: self._output(*argv, needed=needed), argvs))
            except BaseException:  # Ctrl-C, or the time limit of a command: the threads wait for their programs
                self._run.stop()
                raise

    def _output(self, *argv: str, needed: bool = True) -> str:
        """Return what a program prints, empty if it fails; without what is needed, the snapshot lacks something."""
        try:
            return self._run(argv, timeout=TIMEOUT).stdout
        except CommandError as error:
            if needed:
                self._unread.append(str(error))
            return ""

    def _saves(self, chains: str) -> Iterator[Save]:
        """Yield the rules of iptables. Without those of iptables-nft the matches of what nft lists are unknown."""
        nft = [one for one in Family if not chains or any(name in chains for name in _named_like_xtables(one))]
        legacy = [one for one in Family if self._legacy_tables(one)]
        for flavour, families, needed in ((NFT, nft, not chains), (LEGACY, legacy, True)):
            programs = [(f"{family.data.tools}-{flavour}-save",) for family in families]
            for family, text in zip(families, self._at_once(programs, needed=needed)):
                yield Save(family, flavour, text)

    def _legacy_tables(self, family: Family) -> bool:
        return bool(self._text(self._root / family.data.legacy_names).split())

    def _ipsets(self, saves: tuple[Save, ...]) -> str:
        """Return the sets if a rule names one. Without them such a match is unknown."""
        if not any("--match-set" in save.text for save in saves):
            return ""
        return self._output("ipset", "save", needed=False)

    def _queues(self) -> str | None:
        """Return the queues that programs read, None if that is not known. Without its module the kernel has none."""
        path = self._root / _QUEUES
        try:
            return read_regular(path, MAX_QUEUES)[0].decode("ascii", "replace")
        except FileNotFoundError:
            return "" if path.parent.is_dir() else None
        except (OSError, ValueError):
            return None

    def _sysctls(self) -> Iterator[tuple[str, str]]:
        base = self._root / "proc/sys"
        for key in _OF_NODE:
            yield from self._sysctl(base, key)
        for directory, keys in _OF_DEVICES.items():
            for device in self._devices(base / directory):
                for key in keys:
                    yield from self._sysctl(base, f"{directory}/{device}/{key}")

    def _devices(self, directory: Path) -> list[str]:
        try:
            return sorted(path.name for path in directory.iterdir())[:MAX_DEVICES]
        except OSError:
            return []

    def _sysctl(self, base: Path, key: str) -> Iterator[tuple[str, str]]:
        text = self._text(base / key).strip()
        if text:
            yield key.replace("/", "."), text

    def _text(self, path: Path) -> str:
        try:
            return read_start(path, MAX_BYTES).decode("ascii", "replace")
        except (OSError, ValueError):
            return ""


def _named_like_xtables(family: Family) -> tuple[str, ...]:
    """Return what nft prints of chains in tables that iptables-nft may keep."""
    return tuple(f'"family": "{family.data.nft}", "table": "{name}"' for name in XTABLES)


def collect(run: ProcessRunner, root: Path = Path("/")) -> Snapshot:
    """Return a snapshot of this node, or of the network namespace of the calling thread."""
    return Collector(run, root).snapshot()
