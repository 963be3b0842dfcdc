"""Looks up the texts of the rules in steps: with `nft -s -a list chain` for nf_tables, with iptables-legacy-save for
ip_tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from flanneld_masq_iptables import binaries, save_format

from flanneld_masq.errors import CommandError, MasqError
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_socket import NetlinkSocket
from flanneld_masq.kernel.netlink_wire import nft_msg_type
from flanneld_masq.kernel.objects import Chain, chain_key, parse_chain
from flanneld_masq.model import SLOTS, BackendName, Family
from flanneld_masq.printable import printable
from flanneld_masq.process import ProcessRunner

FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_* as nft names them
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_MAX_CHAINS = 200  # that are listed: one process for each
_WORD = re.compile(r"[A-Za-z_.][A-Za-z0-9/_.-]*", re.ASCII)  # what nft reads as one name
_HANDLE = re.compile(r"# handle ([0-9]{1,20})\Z", re.ASCII)
_GETCHAIN = nft_msg_type(uapi.NFT_MSG_GETCHAIN)
_UNKNOWN_CHAIN = Chain("", 0, 0, 0)


@dataclass(frozen=True, **SLOTS)
class LegacyChain:
    """A chain of ip_tables: its policy, empty for a chain of a user, and its rules in order."""

    policy: str
    rules: tuple[str, ...]


class RuleTexts:
    """Reads chains when they are first asked for. `troubles` says what could not be read."""

    def __init__(self, run: ProcessRunner, family: Family) -> None:
        self.troubles: list[str] = []
        self._run = run
        self._no_nft = False
        self._family = family
        self._chains: dict[tuple[int, str, str], Chain] = {}
        self._texts: dict[tuple[int, str, str], dict[int, str]] = {}
        self._legacy: dict[str, dict[str, LegacyChain]] = {}

    def chain(self, nfproto: int, table: str, name: str) -> Chain:
        """Return a chain of nf_tables; one without a hook if it is gone."""
        key = (nfproto, table, name)
        if key not in self._chains:
            self._chains[key] = self._read_chain(*key)
        return self._chains[key]

    def text(self, nfproto: int, table: str, chain: str, handle: int) -> str:
        """Return a rule as nft prints it; empty if that is not known."""
        key = (nfproto, table, chain)
        if key not in self._texts:
            self._texts[key] = self._list(*key)
        return self._texts[key].get(handle, "")

    def legacy(self, table: str, chain: str) -> LegacyChain:
        """Return a chain of ip_tables; an empty one if it cannot be read."""
        if table not in self._legacy:
            self._legacy[table] = self._save(table)
        return self._legacy[table].get(chain, LegacyChain("", ()))

    def has_legacy_chain(self, table: str, name: str) -> bool:
        """Return True for a chain of ip_tables that is known."""
        self.legacy(table, name)
        return name in self._legacy[table]

    def _read_chain(self, nfproto: int, table: str, name: str) -> Chain:
        netlink = NetlinkSocket()
        try:
            (reply,) = netlink.request(f"reading chain {name}", _GETCHAIN, nfproto, chain_key(table, name))
            return parse_chain(reply)
        except (MasqError, ValueError):
            return _UNKNOWN_CHAIN
        finally:
            netlink.close()

    def _list(self, nfproto: int, table: str, chain: str) -> dict[int, str]:
        family = FAMILIES.get(nfproto)
        enough = self._no_nft or len(self._texts) >= _MAX_CHAINS
        if family is None or enough or not all(map(_WORD.fullmatch, (table, chain))):
            return {}
        try:
            printed = self._run(("nft", "-s", "-a", "list", "chain", family, table, chain)).stdout
        except CommandError as error:
            self._no_nft = error.status is None  # it cannot run; otherwise this chain may be gone
            self._complain(f"the text of rules is not known: {error}")
            return {}
        return dict(listed_rules(printed))

    def _save(self, table: str) -> dict[str, LegacyChain]:
        try:
            program = binaries.find(binaries.LEGACY, BackendName("iptables-legacy"), self._run)
            printed = program.save(self._run, self._family.data.tools, table)
            return saved_chains(save_format.table_lines(printed, table))
        except MasqError as error:
            self._complain(f"the text of rules in legacy table {table} is not known: {error}")
            return {}

    def _complain(self, trouble: str) -> None:
        if trouble not in self.troubles:
            self.troubles.append(trouble)


def listed_rules(printed: str) -> Iterator[tuple[int, str]]:
    """Yield handle and text of each rule in the output of `nft -s -a list chain`, on one line each. Pure."""
    waiting: list[str] = []
    inside = False
    for line in printed.split("\n"):
        stripped = line.strip()
        if not inside:
            inside = stripped.startswith("chain ")
        elif not waiting and (stripped.startswith(("type ", "policy ", "comment ")) or stripped in ("", "}")):
            continue  # the properties of the chain, which have no handle
        else:
            waiting.append(stripped)
            if handle := _HANDLE.search(stripped):
                yield int(handle[1]), printable(" ".join(waiting)[: -len(handle[0])].rstrip())
                waiting.clear()


def saved_chains(lines: Iterator[str]) -> dict[str, LegacyChain]:
    """Return the chains in the lines of one table of iptables-save. Pure."""
    policies: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith(":"):
            name, _, policy = line[1:].partition(" ")
            policies[name] = "" if policy == "-" else policy
        else:
            rules.setdefault(save_format.chain_of(line), []).append(printable(line))
    return {name: LegacyChain(policy, tuple(rules.get(name, ()))) for name, policy in policies.items()}


def hook_name(hook: Optional[int]) -> str:
    return HOOKS[hook] if hook is not None and hook < len(HOOKS) else ""
