"""Damages the daemon's rules as other programs and people do: with the command-line tools.

For the self-test and the tests on a kernel. Each damage is done in the namespace of the calling thread, to the rules of
one backend and family; the rules of other flavours stay as they are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Callable, Protocol

from flanneld_masq.errors import CommandError, MasqError
from flanneld_masq.model import COMMENT_PREFIX, TAG_LENGTH, Family
from flanneld_masq.process import ProcessRunner

PROGRAMS = frozenset({"nft", "iptables-nft", "ip6tables-nft"})  # the kernel reports their changes

TABLE = "flanneld-masq"
_CHAIN = "FLANNELD-MASQ"
_FOREIGN = "lab-foreign"
_LIKE_OURS = "flanneld-masq: not its own"
_TAG = re.compile(f'{COMMENT_PREFIX}[0-9a-f]{{{TAG_LENGTH}}}(?![^"])')
_TRIES = 10


class InjectionError(MasqError):
    """The object to be damaged does not exist."""


class Tools(Protocol):
    """The tools of one backend for one family."""

    def ours(self) -> tuple[str, ...]:
        """Return the lines of a listing that show objects of flanneld-masq, in order."""

    def foreign(self) -> tuple[str, ...]:
        """Return all other lines."""

    def add_foreign(self) -> None:
        """Add a foreign rule to each hook that flanneld-masq uses."""

    @property
    def damages(self) -> Mapping[str, Callable[[], None]]:
        """The damages that can be done to the daemon's rules, by name."""


def _insist(damage: Callable[[], None]) -> None:
    """Try again: rules are removed by handle or number, which is void if the daemon writes at the same time."""
    for _ in range(_TRIES - 1):
        try:
            return damage()
        except (CommandError, InjectionError):
            continue
    return damage()


class NftTools:
    """The tools of the backend `nft`."""

    def __init__(self, family: Family, run: ProcessRunner) -> None:
        self._family = family.data.nft
        self._run = run
        self.damages: Mapping[str, Callable[[], None]] = MappingProxyType(
            {
                "rule deleted": lambda: _insist(self._delete_rule),
                "rule duplicated": lambda: _insist(self._duplicate_rule),
                "chain flushed": lambda: self._script(f"flush chain {self._family} {TABLE} postrouting"),
                "table deleted": lambda: self._script(f"delete table {self._family} {TABLE}"),
                # Like `systemctl reload nftables`, in one transaction.
                "ruleset flushed": lambda: self._script(f"flush ruleset {self._family}\n{self._foreign()}"),
            }
        )

    def ours(self) -> tuple[str, ...]:
        return tuple(line for name, line in self._lines() if name == TABLE)

    def foreign(self) -> tuple[str, ...]:
        return tuple(line for name, line in self._lines() if name != TABLE)

    def add_foreign(self) -> None:
        self._script(self._foreign())

    def _foreign(self) -> str:
        destination = "203.0.113.9" if self._family == "ip" else "2001:db8:ffff::9"
        match = f'{self._family} daddr {destination} accept comment "{_LIKE_OURS}"'
        return (
            f"table {self._family} {_FOREIGN} {{\n"
            f"  chain sources {{ type nat hook postrouting priority 100; {match}; }}\n"
            f"  chain crossing {{ type filter hook forward priority 0; {match}; }}\n"
            "}\n"
        )

    def _lines(self) -> list[tuple[str, str]]:
        lines, name = [], ""
        for line in self._run(("nft", "-s", "list", "ruleset", self._family)).stdout.splitlines():
            if line.startswith("table "):
                name = line.split()[2]
            lines.append((name, line))
        return lines

    def _masquerade_rule(self) -> tuple[str, str]:
        listing = self._run(("nft", "-s", "-a", "list", "chain", self._family, TABLE, "postrouting")).stdout
        for line in listing.splitlines():
            rule, _, handle = line.strip().partition(" # handle ")
            if " masquerade" in rule:
                return rule, handle
        raise InjectionError(f"no masquerade rule in {self._family} {TABLE} postrouting")

    def _delete_rule(self) -> None:
        _, handle = self._masquerade_rule()
        self._script(f"delete rule {self._family} {TABLE} postrouting handle {handle}")

    def _duplicate_rule(self) -> None:
        rule, _ = self._masquerade_rule()
        self._script(f"add rule {self._family} {TABLE} postrouting {rule}")

    def _script(self, text: str) -> None:
        self._run(("nft", "-f", "-"), stdin=text + "\n")


class IptablesTools:
    """The tools of `iptables-nft` and `iptables-legacy`."""

    def __init__(self, flavour: str, family: Family, run: ProcessRunner) -> None:
        self._tool = f"{family.data.tools}-{flavour}"
        self._flavour = flavour
        self._family = family
        self._run = run
        self.damages: Mapping[str, Callable[[], None]] = MappingProxyType(
            {
                "rule deleted": lambda: _insist(lambda: self._delete(_CHAIN, "MASQUERADE")),
                "rule duplicated": lambda: _insist(self._duplicate_rule),
                "chain flushed": self._flush_chain,
                "jump removed": lambda: _insist(lambda: self._delete("POSTROUTING", _CHAIN)),
                "ruleset flushed": self._flush,
            }
        )

    def ours(self) -> tuple[str, ...]:
        return tuple(filter(_is_ours, self._lines()))

    def foreign(self) -> tuple[str, ...]:
        return tuple(line for line in self._lines() if not _is_ours(line))

    def add_foreign(self) -> None:
        destination = "203.0.113.9" if self._family is Family.IPV4 else "2001:db8:ffff::9"
        for comment in (_FOREIGN, _LIKE_OURS):
            rule = ("-d", destination, "-m", "comment", "--comment", comment, "-j", "ACCEPT")
            self._nat("-A", "POSTROUTING", *rule)
            self._run((self._tool, "-w", "-t", "filter", "-A", "FORWARD", *rule))

    def _lines(self) -> list[str]:
        lines = self._run((f"{self._tool}-save",)).stdout.splitlines()
        return [re.sub(r" \[\d+:\d+\]$", "", line) for line in lines if not line.startswith("#")]

    def _nat(self, *arguments: str) -> str:
        return self._run((self._tool, "-w", "-t", "nat", *arguments)).stdout

    def _find(self, chain: str, target: str) -> tuple[int, str]:
        rules = [line for line in self._nat("-S", chain).splitlines() if line.startswith("-A ")]
        for number, line in enumerate(rules, start=1):
            if f" -j {target}" in line:
                return number, line
        raise InjectionError(f"no rule in {self._tool} nat {chain} goes to {target}")

    def _delete(self, chain: str, target: str) -> None:
        number, _ = self._find(chain, target)
        self._nat("-D", chain, str(number))

    def _duplicate_rule(self) -> None:
        _, line = self._find(_CHAIN, "MASQUERADE")
        self._nat(*shlex.split(line))

    def _flush_chain(self) -> None:
        self._nat("-F", _CHAIN)

    def _flush(self) -> None:
        if self._flavour == "nft":
            self._run(("nft", "flush", "ruleset", self._family.data.nft))
        else:
            for table in ("nat", "filter"):
                for action in ("-F", "-X"):
                    self._run((self._tool, "-w", "-t", table, action))
        self.add_foreign()


def _is_ours(line: str) -> bool:
    """Return True if a line of iptables-save names a chain or a tag of flanneld-masq."""
    return _CHAIN in line or _TAG.search(line) is not None


def tools(backend: str, family: Family, run: ProcessRunner) -> Tools | None:
    """Return the tools of a backend; None for a backend of an outside plugin."""
    if backend == "nft":
        return NftTools(family, run)
    if backend in ("iptables-nft", "iptables-legacy"):
        return IptablesTools(backend.partition("-")[2], family, run)
    return None
