"""What others do to the rules: begun here, and not waited for, since the rules are looked at meanwhile."""

from __future__ import annotations

import shlex
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Optional, Protocol

from flanneld_masq_nft.libnftables import Nftables

from .clock import BenchError
from .site import Site
from .watch import NftWatch, Watch

Command = Callable[[], tuple[str, ...]]


class Damage(Protocol):
    name: str

    def __call__(self) -> None:
        """Begin it."""

    def check(self) -> None:
        """Wait for its end. Raises MasqError if it failed."""


class ByProgram:
    """Done by a program that ends when it has done it, as nft and iptables do."""

    def __init__(self, site: Site, name: str, command: Command) -> None:
        self.name = name
        self._site = site
        self._command = command

    def __call__(self) -> None:
        with self._site.entered():
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )

    def check(self) -> None:
        _, error = self._process.communicate()
        if self._process.returncode:
            raise BenchError(f"{self._site}: {self.name}: {error.decode(errors='replace').strip()}")


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

    def check(self) -> None:
        self._ended.result()

    def _commit(self, text: str) -> None:
        with self._site.entered():  # where it makes its socket
            if self._library is None:
                self._library = Nftables()
                self._library.commit("")
            self._library.commit(text)


def content(site: Site, watch: Watch) -> list[Damage]:
    """What the chain holds is removed, all of it or a rule, by a process that goes on running."""
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
    return _fixed(site, "ruleset flushed", "nft flush ruleset")


def duplicate(site: Site) -> list[Damage]:
    """The last rule of our chain, once more."""
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
