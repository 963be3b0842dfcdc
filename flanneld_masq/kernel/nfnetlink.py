"""Reads objects of nf_tables, deletes those just read, and writes those of the daemon.

Formats: include/uapi/linux/netfilter/nf_tables.h of the kernel. Dumps are asked for by table and chain, so their cost
does not depend on foreign rules.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import transactions, uapi
from flanneld_masq.kernel.fingerprint import FingerprintRequest, contents_of, fingerprint_of
from flanneld_masq.kernel.netlink_socket import Interrupted, NetlinkSocket
from flanneld_masq.kernel.netlink_wire import attributes, be32, nfnl_msg_type, nft_msg_type, string, u32
from flanneld_masq.kernel.objects import (
    Chain,
    KernelRule,
    Table,
    chain_key,
    parse_chain,
    parse_counter,
    parse_rule,
    parse_table,
    rules_key,
    table_key,
)
from flanneld_masq.kernel.transactions import Message
from flanneld_masq.model import SLOTS, Family, Traffic

_GETTABLE, _GETCHAIN = nft_msg_type(uapi.NFT_MSG_GETTABLE), nft_msg_type(uapi.NFT_MSG_GETCHAIN)
_GETRULE, _GETGEN = nft_msg_type(uapi.NFT_MSG_GETRULE), nft_msg_type(uapi.NFT_MSG_GETGEN)
_COMPAT_GET = nfnl_msg_type(uapi.NFNL_SUBSYS_NFT_COMPAT, uapi.NFNL_MSG_COMPAT_GET)
_DUMP_TRIES = 10


@dataclass(frozen=True, **SLOTS)
class AddedRule:
    """A rule and its place: `ahead` of all others of its chain, directly `before` the rule with that handle, or after
    all others."""

    table: str
    rule: KernelRule
    ahead: bool = False
    before: int = 0


class Nfnetlink:
    """nf_tables in the network namespace of the thread that makes this object.

    Every method raises KernelError if the kernel refuses, or answers what cannot be read; an object that is
    not there is None or an empty tuple.
    """

    def __init__(self, netlink: NetlinkSocket | None = None) -> None:
        self._netlink = netlink or NetlinkSocket()

    def close(self) -> None:
        self._netlink.close()

    def fileno(self) -> int:
        return self._netlink.fileno()

    @property
    def port(self) -> int:
        """The netlink port that the kernel names as owner of the tables of this object."""
        return self._netlink.port

    def generation(self) -> int:
        """Return the number of the ruleset's generation; every transaction of any program adds one."""
        reply = self._one("reading the ruleset generation", _GETGEN, uapi.NFPROTO_UNSPEC, b"")
        return u32(dict(attributes(reply)).get(uapi.NFTA_GEN_ID))

    def has_inet_table(self, name: str) -> bool:
        """Return True if there is a table of that name in the family inet."""
        return self._get(f"reading table inet {name}", _GETTABLE, uapi.NFPROTO_INET, table_key(name)) is not None

    def table(self, family: Family, name: str) -> Table | None:
        attempt = f"reading table {family.data.nft} {name}"
        reply = self._get(attempt, _GETTABLE, family.data.nfproto, table_key(name))
        return None if reply is None else parse_table(reply)

    def chain(self, family: Family, table: str, name: str) -> Chain | None:
        attempt = f"reading chain {family.data.nft} {table} {name}"
        reply = self._get(attempt, _GETCHAIN, family.data.nfproto, chain_key(table, name))
        return None if reply is None else parse_chain(reply)

    def rules(self, family: Family, table: str, chain: str | None = None) -> tuple[KernelRule, ...]:
        """Return the rules of one chain, or of the whole table, in order; none if it does not exist."""
        return self._rules(family.data.nft, family.data.nfproto, table, chain)

    def inet_rules(self, table: str) -> tuple[KernelRule, ...]:
        """Return the rules of a table of the family inet; none if it does not exist."""
        return self._rules("inet", uapi.NFPROTO_INET, table, None)

    def counted(self, family: Family, table: str, chain: str) -> tuple[tuple[KernelRule, Traffic], ...]:
        """Return the rules of one chain, and what each has counted; none if it does not exist."""
        replies = self._rule_replies(family.data.nft, family.data.nfproto, table, chain)
        return tuple((rule, parse_counter(reply)) for reply, rule in replies)

    def _rules(self, family: str, nfproto: int, table: str, chain: str | None) -> tuple[KernelRule, ...]:
        return tuple(rule for _, rule in self._rule_replies(family, nfproto, table, chain))

    def _rule_replies(self, family: str, nfproto: int, table: str, chain: str | None) -> list[tuple[bytes, KernelRule]]:
        """Return each reply with the rule in it."""
        place = f"{family} {table} {chain or ''}".rstrip()
        attempt, body = f"listing the rules of {place}", rules_key(table, chain)
        for _ in range(_DUMP_TRIES):
            try:
                replies = self._netlink.request(attempt, _GETRULE, nfproto, body, dump=True)
            except Interrupted:
                continue
            except KernelError as error:
                if error.errno == errno.ENOENT:
                    return []
                raise
            # kernels that do not filter by table answer with more than was asked for
            parsed = [(reply, *parse_rule(reply)) for reply in replies]
            return [(reply, rule) for reply, of, rule in parsed if of == table and chain in (None, rule.chain)]
        raise KernelError(attempt, f"the ruleset changed during each of {_DUMP_TRIES} dumps")

    def holds_rules(self, family: Family, table: str) -> bool:
        """Return True if a table holds any rule. Unlike `rules`, this reads only the first ones of a large table, and a
        kernel that does not filter by table may answer for another one."""
        asker = NetlinkSocket()
        try:
            body = rules_key(table)
            return asker.begins(f"searching for rules of table {table}", _GETRULE, family.data.nfproto, body)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        finally:
            asker.close()

    def fingerprint(self, request: FingerprintRequest) -> bytes:
        """Return what the kernel answers, counters left out: equal bytes mean equal objects.

        It takes a fraction of the time of `rules`. Raises KernelError if the ruleset changes meanwhile.
        """
        return fingerprint_of(self._netlink.replies("fingerprinting the ruleset", request))

    def contents(self, request: FingerprintRequest) -> bytes:
        """Return the same for dumps of rules, with handles and positions left out too.

        Equal bytes mean rules that do the same. Raises KernelError if the ruleset changes meanwhile.
        """
        return contents_of(self._netlink.replies("fingerprinting the rules", request))

    def has_extension(self, family: Family, name: str, revision: int, *, target: bool) -> bool:
        """Return True if the kernel's nft_compat offers an xtables match or target of that revision."""
        body = string(uapi.NFTA_COMPAT_NAME, name)
        body += be32(uapi.NFTA_COMPAT_REV, revision) + be32(uapi.NFTA_COMPAT_TYPE, target)
        try:
            self._netlink.request(f"asking for extension {name}", _COMPAT_GET, family.data.nfproto, body)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):
                return False
            raise
        return True

    def delete(self, family: Family, table: str, rules: tuple[tuple[str, int], ...], chain: str | None = None) -> None:
        """Delete these rules (chain and handle), and then `chain` if given, in one transaction."""
        messages = [transactions.delete_rule(table, place, handle) for place, handle in rules]
        if chain is not None:
            messages.append(transactions.delete_chain(table, chain))
        attempt = f"deleting {len(rules)} rules" + (f" and chain {chain}" if chain else "")
        self._netlink.commit(f"{attempt} in table {family.data.nft} {table}", family.data.nfproto, messages)

    def refill(
        self,
        family: Family,
        chains: Mapping[tuple[str, str], tuple[KernelRule, ...]],
        added: Iterable[AddedRule] = (),
        *,
        made: Iterable[tuple[str, Chain]] = (),
    ) -> None:
        """Empty these chains (table, chain) and write the rules into them, in one transaction.

        The rules of `added` go to the chains that they were read from. The chains of `made` (table, chain) come back if
        they or their tables are gone; one that is there keeps its policy.
        """
        messages: list[Message] = []
        for table, chain in made:
            messages += [transactions.new_table(table), transactions.new_chain(table, chain)]
        for (table, name), rules in chains.items():
            messages.append(transactions.flush_chain(table, name))
            messages += [transactions.new_rule(table, rule) for rule in rules]
        messages += [
            transactions.new_rule(addition.table, addition.rule, ahead=addition.ahead, before=addition.before)
            for addition in added
        ]
        places = ", ".join(f"{family.data.nft} {table} {name}" for table, name in chains)
        self._netlink.commit(f"writing chains {places}", family.data.nfproto, messages)

    def rebuild(
        self,
        family: Family,
        table: str,
        chains: Mapping[Chain, tuple[KernelRule, ...]],
        flags: int = 0,
        *,
        dry_run: bool = False,
    ) -> None:
        """Make the table, or replace it, so that it has these flags (NFT_TABLE_F_*) and holds exactly these base chains
        and their rules. With `dry_run` the kernel only checks the transaction, and changes nothing."""
        new, again = transactions.new_table(table), transactions.new_table(table, flags)
        messages = [new, transactions.delete_table(table), again]
        for chain, rules in chains.items():
            messages.append(transactions.new_chain(table, chain, policy=chain.policy))
            messages += [transactions.new_rule(table, rule) for rule in rules]
        attempt = f"{'checking' if dry_run else 'writing'} table {family.data.nft} {table}"
        self._netlink.commit(attempt, family.data.nfproto, messages, dry_run=dry_run)

    def claim(self, family: Family, table: str, flags: int) -> None:
        """Give these flags to a table that persists and has no owner. With NFT_TABLE_F_OWNER, only this object can
        change it from then on."""
        attempt = f"claiming table {family.data.nft} {table}"
        self._netlink.commit(attempt, family.data.nfproto, [transactions.new_table(table, flags)])

    def remove_table(self, family: Family, table: str) -> None:
        """Delete the table with all that is in it. Raises KernelError if it is not there."""
        self._netlink.commit(
            f"deleting table {family.data.nft} {table}", family.data.nfproto, [transactions.delete_table(table)]
        )

    def _get(self, attempt: str, kind: int, nfproto: int, body: bytes) -> bytes | None:
        """Return the attributes of one object; None if it is not there."""
        try:
            return self._one(attempt, kind, nfproto, body)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.EAFNOSUPPORT):
                return None
            raise

    def _one(self, attempt: str, kind: int, nfproto: int, body: bytes) -> bytes:
        """Return the attributes of the only reply."""
        replies = self._netlink.request(attempt, kind, nfproto, body)
        if len(replies) != 1:
            raise KernelError(attempt, f"the kernel gave {len(replies)} answers")
        return replies[0]
