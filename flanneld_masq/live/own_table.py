"""Tables of nf_tables that never outlive their use: the one that traces flows, and the one that guards a throwaway pod.

Where the kernel can (5.12 and later), a table belongs to a netlink socket of this process: the kernel removes it with
the socket, also after SIGKILL. Otherwise the next run removes it: its name has the pid of its process.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import transactions, uapi
from flanneld_masq.kernel.flow_match import Flow, guard_rule, trace_rule
from flanneld_masq.kernel.netlink_socket import NetlinkSocket
from flanneld_masq.kernel.netlink_wire import nft_msg_type
from flanneld_masq.kernel.objects import Chain, KernelRule, Table, parse_table
from flanneld_masq.model import Address, Family, family_of

TRACE, GUARD = "flanneld-masq-trace-", "flanneld-masq-probe-"  # then the pid
_GETTABLE = nft_msg_type(uapi.NFT_MSG_GETTABLE)
_FIRST, _LAST = -(1 << 31) + 1, (1 << 31) - 2  # priorities before every other chain, and behind
_BEGINNINGS = (("prerouting", uapi.NF_INET_PRE_ROUTING), ("output", uapi.NF_INET_LOCAL_OUT))
_ENDS = (("input", uapi.NF_INET_LOCAL_IN), ("postrouting", uapi.NF_INET_POST_ROUTING))
_RATE, _BURST = 20, 10  # packets a second, and at once: a busy flow must not flood


class OwnTable:
    """A table while it exists. Raises KernelError if the kernel refuses it."""

    def __init__(self, prefix: str, family: Family, chains: Mapping[Chain, Sequence[KernelRule]]) -> None:
        self.name = f"{prefix}{os.getpid()}"
        self._nfproto = family.data.nfproto
        self._netlink = NetlinkSocket()
        remove_leftovers(self._netlink)
        try:
            self._write(chains, uapi.NFT_TABLE_F_OWNER)
        except KernelError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            self._write(chains, 0)

    def close(self) -> None:
        """Remove the table."""
        try:
            self._netlink.commit(f"deleting table {self.name}", self._nfproto, [transactions.delete_table(self.name)])
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
        finally:
            self._netlink.close()

    def _write(self, chains: Mapping[Chain, Sequence[KernelRule]], flags: int) -> None:
        messages = [transactions.new_table(self.name, flags=flags)]
        for chain, rules in chains.items():
            messages.append(transactions.new_chain(self.name, chain))
            messages += [transactions.new_rule(self.name, rule) for rule in rules]
        self._netlink.commit(f"writing table {self.name}", self._nfproto, messages)


def trace_table(flows: Sequence[Flow]) -> OwnTable:
    """Trace flows of one family. The first chains that a packet meets turn tracing on, the last ones mark its end."""
    chains: dict[Chain, list[KernelRule]] = {}
    for name, hook in _BEGINNINGS:
        arriving = name == "prerouting"
        rules = [trace_rule(flow, name, rate=_RATE, burst=_BURST, arriving=arriving) for flow in flows]
        chains[_base_chain(name, hook, _FIRST)] = rules
    chains.update((_base_chain(name, hook, _LAST), []) for name, hook in _ENDS)
    return OwnTable(TRACE, flows[0].family, chains)


def guard_table(pod: Address, devices: Sequence[int]) -> OwnTable:
    """Drop what the pod sends if it is about to leave by another device than these (indexes), wherever it is routed."""
    chain = _base_chain("postrouting", uapi.NF_INET_POST_ROUTING, _FIRST)
    return OwnTable(GUARD, family_of(pod), {chain: [guard_rule(pod, chain.name, devices)]})


def remove_leftovers(netlink: NetlinkSocket) -> None:
    """Remove the tables of runs that SIGKILL ended, on kernels that do not do so themselves."""
    for family in Family:
        for table in _tables(netlink, family):
            if not table.owner and is_leftover(table.name, TRACE, GUARD):
                with contextlib.suppress(KernelError):
                    message = transactions.delete_table(table.name)
                    netlink.commit(f"deleting table {table.name}", family.data.nfproto, [message])


def _base_chain(name: str, hook: int, priority: int) -> Chain:
    return Chain(name, 0, 0, 0, hook, priority, "filter")


def _tables(netlink: NetlinkSocket, family: Family) -> tuple[Table, ...]:
    try:
        attempt = f"listing the tables of {family}"
        replies = netlink.request(attempt, _GETTABLE, family.data.nfproto, b"", dump=True)
        return tuple(map(parse_table, replies))
    except KernelError:  # the ruleset changed meanwhile: the next run removes what is left
        return ()


def is_leftover(name: str, *prefixes: str) -> bool:
    """Return True if the name has one of the prefixes and then a pid that no process has."""
    pids = (name[len(prefix) :] for prefix in prefixes if name.startswith(prefix))
    return any(pid.isdecimal() and not Path("/proc", pid).exists() for pid in pids)
