"""Changes that other programs make to the rules. A call starts one and returns, because a `Watch` runs meanwhile."""

from __future__ import annotations

import shlex
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Optional, Protocol

from flanneld_masq.errors import MasqError

from .clock import BenchError
from .libnft import Nftables
from .site import Site
from .watch import NftWatch, Watch

_REFUSED = "Operation not permitted"  # the answer to a change of a table that belongs to another socket
Command = Callable[[], tuple[str, ...]]
_FIREWALLD = Path(__file__).with_name("firewalld_reload.py")
RULESET = "nft flush ruleset"


class Damage(Protocol):
    name: str

    def __call__(self) -> None:
        """Begin it."""

    def ended(self) -> bool:
        """Return True once it did or failed to do what it began."""

    def check(self) -> None:
        """Wait for its end. Raises BenchError if it failed for any reason but that the kernel protects the table."""


class ByProgram:
    """Done by a program that ends when it has done it, as nft and iptables do."""

    def __init__(self, site: Site, name: str, command: Command) -> None:
        self.name = name
        self._site = site
        self._command = command

    def __call__(self) -> None:
        with self._site.entered():
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=self._site.environment,
            )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def check(self) -> None:
        error = self._process.communicate()[1].decode(errors="replace").strip()
        if self._process.returncode and _REFUSED not in error:
            raise BenchError(f"{self._site}: {self.name}: {error}")

    @property
    def program(self) -> str:
        """The name that the kernel has for the program."""
        return self._command()[0][:15]


class ByLibrary:
    """Done by a process that goes on running, as firewalld does: this one, in a thread."""

    _library: Optional[Nftables] = None
    _ended: Future[None]

    def __init__(self, site: Site, name: str, command: Callable[[], str]) -> None:
        self.name = name
        self._site = site
        self._command = command
        self._thread = ThreadPoolExecutor(1)

    def __call__(self) -> None:
        self._ended = self._thread.submit(self._commit, self._command())

    def ended(self) -> bool:
        return self._ended.done()

    def check(self) -> None:
        committed(self._ended.result)

    def _commit(self, text: str) -> None:
        with self._site.entered():  # where it makes its socket
            if self._library is None:
                self._library = Nftables()
                self._library.commit("")
            self._library.commit(text)


def committed(commit: Callable[[], object]) -> bool:
    """Return False if the kernel refuses a commit because it protects the table. Raises MasqError for all else."""
    try:
        commit()
    except MasqError as error:
        if _REFUSED in str(error):
            return False
        raise
    return True


def content(site: Site, watch: Watch) -> list[Damage]:
    """Return changes that remove a rule or all rules of the chain, made by a process that goes on running."""
    if not isinstance(watch, NftWatch):
        return []
    table, chain = ("flanneld-masq", "postrouting") if site.backend == "nft" else ("nat", "FLANNELD-MASQ")
    place = f"ip {table} {chain}"
    return [
        ByLibrary(site, "chain flushed", lambda: f"flush chain {place}"),
        ByLibrary(site, "rule deleted", lambda: f"delete rule {place} handle {watch.handle(table, chain)}"),
    ]


def content_by_program(site: Site) -> list[Damage]:
    """The same, by the tool that an administrator takes."""
    if site.backend == "nft":
        return [_fixed(site, "chain flushed", "nft flush chain ip flanneld-masq postrouting")]
    return [_fixed(site, "chain flushed", f"iptables-{site.flavour} -w -t nat -F FLANNELD-MASQ")]


def table(site: Site) -> list[Damage]:
    """The rules go together with what holds them. A whole ruleset is flushed only where nobody else's is lost."""
    if site.flavour == "legacy":
        return []
    whole = [] if site.foreign else [_fixed(site, "ruleset flushed", "nft flush ruleset")]
    if site.backend == "nft":
        return [_fixed(site, "table deleted", "nft delete table ip flanneld-masq"), *whole]
    line = next(line for line in _listed(site, "POSTROUTING") if line.endswith(" -j FLANNELD-MASQ"))
    return [_fixed(site, "jump removed", f"iptables-nft -w -t nat {line.replace('-A ', '-D ', 1)}"), *whole]


def everything(site: Site) -> Damage:
    return _fixed(site, RULESET, "nft flush ruleset")


def gaps(site: Site) -> list[Damage]:
    """Return what administrators and other programs do to all rules of a node. Each leaves no foreign rules."""
    flavour = site.flavour
    flush = _fixed(site, "iptables -t nat -F", f"iptables-{flavour} -w -t nat -F")
    if flavour == "legacy":
        return [flush, _restored(site, f"iptables-{flavour}-restore --wait=60"), _reload(site, flavour)]
    table_name = "flanneld-masq" if site.backend == "nft" else "nat"
    whole = [everything(site), _fixed(site, "nft delete table", f"nft delete table ip {table_name}")]
    if site.backend == "nft":
        return [*whole, flush, _restored(site, "nft -f"), _reload(site, "nftables")]
    return [*whole, flush, _restored(site, f"iptables-{flavour}-restore --wait=60"), _reload(site, flavour)]


def _restored(site: Site, command: str) -> Damage:
    """Restore rules that were saved before the daemon's came, as nftables.service and netfilter-persistent do."""
    file = site.directory / "saved"
    chains = "".join(f":{chain} ACCEPT [0:0]\n" for chain in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"))
    file.write_text("flush ruleset\n" if command.startswith("nft") else f"*nat\n{chains}COMMIT\n")
    return _fixed(site, "a restore", f"{command} {file}")


def _reload(site: Site, how: str) -> Damage:
    argv = (sys.executable, str(_FIREWALLD), how)
    return ByProgram(site, "a reload of firewalld", lambda: argv)


def duplicate(site: Site) -> list[Damage]:
    """Append the last rule of the daemon's chain once more."""
    if site.backend != "nft":
        return [_fixed(site, "rule doubled", f"iptables-{site.flavour} -w -t nat {_listed(site, 'FLANNELD-MASQ')[-1]}")]
    lines = site.run("nft", "list", "chain", "ip", "flanneld-masq", "postrouting").splitlines()
    rule = next(line.strip() for line in reversed(lines) if " masquerade" in line)
    # nft takes its own language as one argument as well, quotes and all
    return [ByProgram(site, "rule doubled", lambda: ("nft", f"add rule ip flanneld-masq postrouting {rule}"))]


def flannel(site: Site) -> Damage:
    return _fixed(site, "chain flushed", f"iptables-{site.flavour} -w -t nat -F FLANNEL-POSTRTG")


def flannel_duplicate(site: Site) -> Damage:
    line = _listed(site, "FLANNEL-POSTRTG")[-1]
    return _fixed(site, "rule doubled", f"iptables-{site.flavour} -w -t nat {line}")


def flannel_nftables(site: Site) -> Damage:
    return _fixed(site, "chain flushed", "nft flush chain ip flannel-ipv4 postrtg")


def _fixed(site: Site, name: str, command: str) -> Damage:
    argv = tuple(shlex.split(command))
    return ByProgram(site, name, lambda: argv)


def _listed(site: Site, chain: str) -> list[str]:
    printed = site.run(f"iptables-{site.flavour}", "-w", "-t", "nat", "-S", chain)
    return [line for line in printed.splitlines() if line.startswith("-A ")]
