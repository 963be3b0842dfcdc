"""Every error that flanneld-masq raises on purpose.

    MasqError
     +-- ConfigError           a configuration file, or an option of the command line, is wrong
     +-- SubnetFileError       a subnet file cannot be used; the last good lease stays in force
     +-- BackendUnavailable    a backend cannot be used here (binary, kernel module, Python module)
     +-- PluginError           a plugin raised, or returned what the hook does not allow
     +-- CommandError          a program could not be started, failed, timed out or was cut short
     +-- LockHeld              another program holds a lock that a tool needs; the daemon waits for it
     +-- KernelError           the kernel refused a request, or its answer cannot be read
     +-- RulesetError          an object in the kernel keeps the daemon's rules from taking effect
     +-- AlreadyRunning        another instance holds the state directory
     +-- StateError            the state directory cannot be used
     +-- SnapshotError         a snapshot of a node, or what a tool printed for it, cannot be read
     +-- BusError              D-Bus cannot be used, or the called service returned an error

A message names the attempt, the failure, and the remedy. It is one line of printable text, whatever the tool, the
kernel or the file that it quotes has written. Only `cli` and `service` decide if an error ends the process. The table
`OUTSIDE` gives each error its exit status and its D-Bus name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flanneld_masq.printable import one_line

DBUS_PREFIX = "io.github.flanneld_masq.Error."
MAX_SHOWN_CHARACTERS = 1000  # of a command line, and of what the program printed


class MasqError(Exception):
    """Base of all errors. `exit_code` is the exit status of a command that does not handle the error."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))

    @property
    def exit_code(self) -> int:
        return outside(type(self)).exit_code

    @property
    def dbus_name(self) -> str:
        return DBUS_PREFIX + outside(type(self)).dbus_name


class ConfigError(MasqError):
    def __init__(self, source: str, key: str, reason: str) -> None:
        super().__init__(f"{source}: {key}: {reason}" if key else f"{source}: {reason}")
        self.source = source
        self.key = key
        self.reason = one_line(reason)


class SubnetFileError(MasqError):
    """A subnet file cannot be used. `line` is 1-based; 0 stands for the file as a whole."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}" if line else f"{path}: {reason}")
        self.path = path
        self.line = line
        self.reason = one_line(reason)


class BackendUnavailable(MasqError):
    def __init__(self, backend: str, reason: str, remedy: str = "") -> None:
        super().__init__(f"backend {backend} cannot be used: {reason}" + (f"; {remedy}" if remedy else ""))
        self.backend = backend
        self.reason = one_line(reason)
        self.remedy = one_line(remedy)


class PluginError(MasqError):
    def __init__(self, plugin: str, hook: str, reason: str) -> None:
        super().__init__(f"plugin {plugin} failed in {hook}: {reason}")
        self.plugin = plugin
        self.hook = hook
        self.reason = one_line(reason)


class CommandError(MasqError):
    """A program failed. `status` is its exit status, a negative signal number, or None if it did not end by itself."""

    def __init__(self, argv: tuple[str, ...], reason: str, *, status: int | None = None, stderr: str = "") -> None:
        command, output = (one_line(text, MAX_SHOWN_CHARACTERS) for text in (" ".join(argv), stderr.strip()))
        super().__init__(f"`{command}` {reason}" + (f": {output}" if output else ""))
        self.argv = argv
        self.reason = one_line(reason)
        self.status = status
        self.stderr = stderr


class LockHeld(MasqError):
    """Another program holds a lock that a tool needs. It is not a failure: the same call will succeed later."""


class KernelError(MasqError):
    """A request to the kernel failed. `errno` is the kernel's error number, or 0 if the answer could not be read."""

    def __init__(self, attempt: str, reason: str, errno: int = 0) -> None:
        super().__init__(f"{attempt}: {reason}")
        self.attempt = attempt
        self.reason = one_line(reason)
        self.errno = errno


class RulesetError(MasqError):
    pass


class AlreadyRunning(MasqError):
    pass


class StateError(MasqError):
    """A file of the state directory cannot be written, or another process holds it."""


class SnapshotError(MasqError):
    """A snapshot of a node cannot be read, or what a tool printed for it."""


class BusError(MasqError):
    """A D-Bus call failed. `name` is the D-Bus name of the error; empty if the bus failed or no answer came."""

    def __init__(self, attempt: str, reason: str, name: str = "") -> None:
        super().__init__(f"{attempt}: {reason}")
        self.attempt = attempt
        self.reason = one_line(reason)
        self.name = name

    @property
    def exit_code(self) -> int:
        """The exit status of the error that the daemon raised, if this module defines that error."""
        for names in OUTSIDE.values():
            if self.name == DBUS_PREFIX + names.dbus_name:
                return names.exit_code
        return super().exit_code

    @property
    def dbus_name(self) -> str:
        return self.name or super().dbus_name


class Outside(NamedTuple):
    """How an error appears to other programs: as an exit status, and as a D-Bus name without DBUS_PREFIX."""

    exit_code: int
    dbus_name: str


OUTSIDE: Mapping[type[MasqError], Outside] = {
    MasqError: Outside(1, "Failed"),
    ConfigError: Outside(2, "InvalidConfiguration"),
    SubnetFileError: Outside(1, "InvalidSubnetFile"),
    BackendUnavailable: Outside(1, "BackendUnavailable"),
    PluginError: Outside(1, "PluginFailed"),
    CommandError: Outside(1, "CommandFailed"),
    LockHeld: Outside(1, "LockHeld"),
    KernelError: Outside(1, "KernelRefused"),
    RulesetError: Outside(1, "RulesetInTheWay"),
    AlreadyRunning: Outside(1, "AlreadyRunning"),
    StateError: Outside(1, "StateUnusable"),
    SnapshotError: Outside(1, "SnapshotUnreadable"),
    BusError: Outside(1, "BusUnusable"),
}


def outside(kind: type[MasqError]) -> Outside:
    """Return exit status and D-Bus name of an error class. A class without an entry, such as those of the self-test,
    has those of its nearest base class."""
    return next(OUTSIDE[base] for base in kind.__mro__ if base in OUTSIDE)
