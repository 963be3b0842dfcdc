"""Enters private network namespaces, and makes more of them.

`enter` moves the process into a mount and network namespace of its own, with an empty /run: the names of `ip netns`,
the lock of xtables and the state of a daemon live there. The kernel removes all of it with the last process inside.
There is no pid namespace, so the pids in the kernel's events are those of this machine. As a program,
`python3 -m flanneld_masq.selftest.netns COMMAND...` runs a command inside.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Optional

from flanneld_masq.errors import MasqError

DIRECTORY = Path("/run/flanneld-masq-lab")

_NETNS = Path("/run/netns")
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(MasqError):
    """This process can get no private network namespace."""


def inside() -> bool:
    """Return True if this process, or one of its ancestors, called `enter`."""
    return DIRECTORY.is_dir()


def enter() -> None:
    """Move this process, and every process that it starts from now on, into private namespaces. Idempotent.

    The process must have a single thread: the kernel refuses a user namespace to any other.
    """
    if inside():
        return
    uid, gid = os.geteuid(), os.getegid()
    if uid:
        _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWNET, attempt="making a user namespace")
        _map_root(uid, gid)
    else:
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWNET, attempt="making a mount and a network namespace")
    _mount(None, b"/", None, _MS_REC | _MS_PRIVATE, attempt="making the mounts private")
    _mount(b"tmpfs", b"/run", b"tmpfs", 0, attempt="mounting an empty /run")
    if os.statvfs("/proc/sys").f_flag & os.ST_RDONLY:  # as container engines leave it
        _mount(None, b"/proc/sys", None, _MS_REMOUNT | _MS_BIND, attempt="making /proc/sys writable")
    DIRECTORY.mkdir()


def command(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command line that runs `argv` inside, for a process that itself stays outside."""
    return (sys.executable, "-m", "flanneld_masq.selftest.netns", *argv)


def _mount(source: Optional[bytes], target: bytes, kind: Optional[bytes], flags: int, *, attempt: str) -> None:
    _call("mount", source, target, kind, ctypes.c_ulong(flags), None, attempt=attempt)


def _call(function: str, *arguments: object, attempt: str) -> None:
    uid = os.geteuid()
    if getattr(_libc, function)(*arguments) == 0:
        return
    reason = os.strerror(ctypes.get_errno())
    raise NamespaceError(f"no private network namespaces here: {attempt} as uid {uid}: {reason}; {_remedy()}")


def _map_root(uid: int, gid: int) -> None:
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise NamespaceError(
            f"no private network namespaces here: mapping uid {uid} to root, {error.filename}: {error.strerror}; "
            + _remedy()
        ) from error


def _remedy() -> str:
    mapping = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    if os.geteuid() == 0 and mapping == ["0", "0", "4294967295"]:
        return "a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN for it (`--privileged`)"
    return (
        "run it as root, or let users have user namespaces: sysctl kernel.unprivileged_userns_clone=1 (Debian), "
        "user.max_user_namespaces above 0 (RHEL), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), "
        "whichever of them is there"
    )


class Netns:
    """A network namespace that `ip netns` knows by name, if it is not opened as `unnamed` or `current`."""

    def __init__(self, name: str, descriptor: Optional[int] = None) -> None:
        self.name = name
        self._fd = os.open(_NETNS / name, os.O_RDONLY | os.O_CLOEXEC) if descriptor is None else descriptor

    @classmethod
    def unnamed(cls, name: str) -> Netns:
        """Make one that only this process has: the kernel removes it with the process, also after SIGKILL.

        `name` is for messages. Raises NamespaceError.
        """
        back = cls.current()
        try:
            _call("unshare", _CLONE_NEWNET, attempt="making a network namespace")
            try:
                return cls(name, _open_current())
            finally:
                back._setns(back._fd)
        finally:
            back.close()

    @classmethod
    def current(cls, name: str = "this host") -> Netns:
        """Open the namespace of the calling thread."""
        return cls(name, _open_current())

    @property
    def path(self) -> str:
        """Return a path that `ip` takes for a namespace, for as long as this object is open."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread into this namespace. Processes started and sockets made meanwhile stay in it."""
        back = _open_current()
        try:
            self._setns(self._fd)
            try:
                yield
            finally:
                self._setns(back)
        finally:
            os.close(back)

    def argv(self, *argv: str) -> tuple[str, ...]:
        """Return the command line that runs `argv` in this namespace, with its own /sys."""
        return ("ip", "netns", "exec", self.name, *argv)

    def sysctl(self, settings: Mapping[str, int]) -> None:
        """Set keys below /proc/sys/net; keys that the kernel does not have are skipped."""
        with self.entered():
            for key, value in settings.items():
                path = Path("/proc/sys/net", key)
                if path.exists():
                    path.write_text(str(value))

    def close(self) -> None:
        os.close(self._fd)

    def _setns(self, fd: int) -> None:
        # os.setns came with Python 3.12.
        if _libc.setns(fd, _CLONE_NEWNET):
            raise NamespaceError(f"entering the network namespace {self.name}: {os.strerror(ctypes.get_errno())}")


def _open_current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def spawn(argv: Sequence[str], *, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program in the background. The kernel kills it when this process ends."""
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=die_with_parent)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    enter()
    os.execvp(sys.argv[1], sys.argv[1:])
