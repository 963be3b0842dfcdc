"""Protects the daemon's table: the flags owner and persist of nf_tables.

Only the socket that owns a table can change it, and `nft flush ruleset` skips it. With the flag persist (Linux 6.9) the
table stays without an owner when that socket ends, and the next owner claims it. With owner alone (Linux 5.12) it
ends with the socket.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from flanneld_masq.errors import KernelError, MasqError, RulesetError
from flanneld_masq.hookspecs import Host
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_socket import NetlinkSocket
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.objects import Chain, KernelRule, Table
from flanneld_masq.model import Family, Protection
from flanneld_masq_nft import netlink_ports

FLAGS = {
    Protection.NONE: 0,
    Protection.OWNER: uapi.NFT_TABLE_F_OWNER,
    Protection.PERSIST: uapi.NFT_TABLE_F_OWNER | uapi.NFT_TABLE_F_PERSIST,
}
_SERVICE_MANAGER = 1  # pid
_UNKNOWN_FLAG = (errno.EOPNOTSUPP, errno.EINVAL)


def offered(
    netlink: Nfnetlink, family: Family, table: str, chains: Mapping[Chain, tuple[KernelRule, ...]]
) -> Protection:
    """Have the kernel check a table with these chains, which it does not keep, and return the best protection for it.

    Raises KernelError if the kernel refuses the table with any. A check takes some 12 ms, an RCU grace period.
    """
    for protection in (Protection.PERSIST, Protection.OWNER):
        try:
            netlink.rebuild(family, table, chains, FLAGS[protection], dry_run=True)
        except KernelError as error:
            if error.errno not in _UNKNOWN_FLAG:
                raise
        else:
            return protection
    netlink.rebuild(family, table, chains, dry_run=True)
    return Protection.NONE


class Ownership:
    """Tells whose the table of one family is, and keeps the socket that owns it."""

    def __init__(self, family: Family, host: Host) -> None:
        self._family = family
        self._host = host
        self._stored = False

    @property
    def resident(self) -> bool:
        """True in the daemon, which stays; a command ends at once, and its sockets with it."""
        return self._host.daemon == os.getpid()

    def open(self) -> Nfnetlink:
        """Return nf_tables over the socket that an earlier process left, or over a new one."""
        left = self._host.sockets.take(self._name) if self._host.sockets is not None else None
        return Nfnetlink(None if left is None else NetlinkSocket.inherited(left))

    def keep(self, netlink: Nfnetlink) -> None:
        """Have systemd keep the socket, so that the table has its owner while the service restarts, and even after
        SIGKILL. A table without owner could be flushed meanwhile, and one that does not persist would end."""
        if self._host.sockets is not None and not self._stored:
            self._host.sockets.keep(self._name, netlink.fileno())
            self._stored = True

    def feasible(self, protection: Protection) -> Protection:
        """Return the protection that can be had: where no daemon stays, a table with an owner alone would end."""
        daemon = self._host.daemon or self._host.daemon_elsewhere
        return Protection.NONE if protection is Protection.OWNER and not daemon else protection

    def flags(self, protection: Protection) -> int:
        """Return the flags of a new table. A command leaves it to the daemon to own one, as does another command that
        runs at the same time."""
        return FLAGS[protection] if self.resident else FLAGS[protection] & ~uapi.NFT_TABLE_F_OWNER

    def found(self, netlink: Nfnetlink, table: Table) -> Protection | None:
        """Return the protection of a table; None if another program owns it. One that persists without an owner waits
        for its next one."""
        if table.owner and not self._is_ours(netlink, table.owner):
            return None
        if table.flags & uapi.NFT_TABLE_F_PERSIST:
            return Protection.PERSIST
        return Protection.OWNER if table.owner else Protection.NONE

    def obstacle(self, place: str, port: int) -> str:
        """Return the error text that names the owner of the table in that place."""
        who = netlink_ports.owner(self._host.root, port)
        return (
            f"table {place} is owned by another program ({f'{who}, ' if who else ''}netlink port {port}), "
            f"and no other program can change it; end that program"
        )

    def explained(self, netlink: Nfnetlink, error: KernelError, table: str) -> MasqError:
        """Return the error of a write; if the reason is that another program owns the table, one that says so."""
        if error.errno != errno.EPERM:
            return error
        held = netlink.table(self._family, table)
        if held is None or held.owner in (0, netlink.port):
            return error
        place = f"{self._family.data.nft} {table}"
        if self._is_ours(netlink, held.owner):
            daemon = f"pid {self._host.daemon}" if self._host.daemon else "systemd keeps its socket"
            daemon = "in another pid namespace" if self._host.daemon_elsewhere else daemon
            return RulesetError(
                f"table {place} is owned by the daemon ({daemon}), and no other program can change it; stop the "
                f"daemon first, for instance with `systemctl stop flanneld-masq`"
            )
        return RulesetError(self.obstacle(place, held.owner))

    def _is_ours(self, netlink: Nfnetlink, port: int) -> bool:
        """Return True for a port of this process. In a command, return True also for a port of the daemon, or of the
        service manager: it keeps the daemon's socket while the service restarts. Of a daemon in another pid namespace
        the ports cannot be found out; it reports itself if the table is another program's."""
        if port == netlink.port or self._host.daemon_elsewhere:
            return True
        holders = () if self.resident else (self._host.daemon or _SERVICE_MANAGER, _SERVICE_MANAGER)
        return any(netlink_ports.holds(self._host.root, pid, port) for pid in holders)

    @property
    def _name(self) -> str:
        return f"nft-{self._family}"
