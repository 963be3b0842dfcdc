"""Finds the process behind a netlink port, which the kernel names as the owner of a table.

Format: /proc/net/netlink of the kernel (netlink_native_seq_show in net/netlink/af_netlink.c): address, protocol, port,
six numbers, inode.
"""

from __future__ import annotations

from pathlib import Path

from flanneld_masq.inputs.text import read_start
from flanneld_masq.kernel.uapi import NETLINK_NETFILTER

_SOCKETS = "proc/thread-self/net/netlink"
_MAX_BYTES = 1 << 20
_PROTOCOL, _PORT, _INODE = 1, 2, 9  # columns
_MAX_COMM = 64  # bytes; the kernel keeps 16


def holds(root: Path, pid: int, port: int) -> bool:
    """Return True if a process has the netfilter socket with that port, as far as this process may see its files."""
    inode = _inode(root, port)
    if not inode:
        return False
    directory = root / "proc" / str(pid) / "fd"
    try:
        return any(_link(entry) == f"socket:[{inode}]" for entry in directory.iterdir())
    except OSError:  # it has ended, or belongs to another user
        return False


def owner(root: Path, port: int) -> str:
    """Return name and pid of the process with that port; empty if it is not known.

    The kernel makes the port of the first netlink socket of a process from its pid, so only that process is asked.
    """
    if not holds(root, port, port):
        return ""
    try:
        name = read_start(root / "proc" / str(port) / "comm", _MAX_COMM)
    except (OSError, ValueError):
        return ""
    return f"{name.decode(errors='replace').strip()}, pid {port}"


def _inode(root: Path, port: int) -> str:
    """Return the inode number of the netfilter socket with that port; empty for none."""
    try:
        lines = read_start(root / _SOCKETS, _MAX_BYTES).decode("ascii", "replace").splitlines()
    except (OSError, ValueError):
        return ""
    for columns in (line.split() for line in lines[1:]):
        if len(columns) > _INODE and columns[_PROTOCOL : _PORT + 1] == [str(NETLINK_NETFILTER), str(port)]:
            return columns[_INODE]
    return ""


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:  # it was closed meanwhile
        return ""
