"""Every error that flanneld-masq raises on purpose.

    MasqError
     +-- ConfigError           a configuration file, or an option of the command line, is wrong
     +-- SubnetFileError       a subnet file cannot be used; the last good lease stays in force
     +-- BackendUnavailable    a backend cannot be used here (binary, module, kernel, Python module)
     +-- PluginError           a plugin raised, or returned what the hook does not allow
     +-- CommandError          a program could not be started, failed, timed out or was cut short
     +-- KernelError           netlink said no, or answered what cannot be read
     +-- RulesetError          the kernel holds something that keeps our rules from taking effect
     +-- AlreadyRunning        another instance holds the state directory
     +-- StateError            the state directory cannot be used
     +-- BusError              D-Bus cannot be used, or who was called there said no

A message says what was tried, what happened, and what to do next. Only `cli` and `service` decide
whether an error ends the process. What an error is called outside of it stands in one table, `OUTSIDE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

DBUS_PREFIX = "io.github.flanneld_masq.Error."


class MasqError(Exception):
    """Base of all. `exit_code` is what a command ends with when nobody handles it."""

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
        self.reason = reason


class SubnetFileError(MasqError):
    """`line` is 1-based; 0 stands for the file as a whole."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}" if line else f"{path}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason


class BackendUnavailable(MasqError):
    def __init__(self, backend: str, reason: str, remedy: str = "") -> None:
        super().__init__(f"backend {backend} cannot be used: {reason}" + (f"; {remedy}" if remedy else ""))
        self.backend = backend
        self.reason = reason
        self.remedy = remedy


class PluginError(MasqError):
    def __init__(self, plugin: str, hook: str, reason: str) -> None:
        super().__init__(f"plugin {plugin} failed in {hook}: {reason}")
        self.plugin = plugin
        self.hook = hook
        self.reason = reason


class CommandError(MasqError):
    """`status` is the exit status, a negative signal number, or None where there is none."""

    def __init__(self, argv: tuple[str, ...], reason: str, *, status: int | None = None, stderr: str = "") -> None:
        said = "; ".join(line.strip() for line in stderr.splitlines() if line.strip())  # a log line is one line
        super().__init__(f"`{' '.join(argv)}` {reason}" + (f": {said}" if said else ""))
        self.argv = argv
        self.reason = reason
        self.status = status
        self.stderr = stderr


class KernelError(MasqError):
    """`errno` is the kernel's error number, or 0 where the answer could not be read."""

    def __init__(self, attempt: str, reason: str, errno: int = 0) -> None:
        super().__init__(f"{attempt}: {reason}")
        self.attempt = attempt
        self.reason = reason
        self.errno = errno


class RulesetError(MasqError):
    pass


class AlreadyRunning(MasqError):
    pass


class StateError(MasqError):
    """`lasting` is whether it stays so until somebody mends it: we may not use what is there."""

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting


class BusError(MasqError):
    """`name` is the D-Bus name of the error; empty where the bus itself failed, or nobody answered."""

    def __init__(self, attempt: str, reason: str, name: str = "") -> None:
        super().__init__(f"{attempt}: {reason}")
        self.attempt = attempt
        self.reason = reason
        self.name = name

    @property
    def exit_code(self) -> int:
        """What was one of our errors on the other side is that error here."""
        for found in OUTSIDE.values():
            if self.name == DBUS_PREFIX + found.dbus_name:
                return found.exit_code
        return super().exit_code

    @property
    def dbus_name(self) -> str:
        return self.name or super().dbus_name


class Outside(NamedTuple):
    """How others see an error: as the exit status of a command, and by its D-Bus name behind DBUS_PREFIX."""

    exit_code: int
    dbus_name: str


OUTSIDE: Mapping[type[MasqError], Outside] = {
    MasqError: Outside(1, "Failed"),
    ConfigError: Outside(2, "InvalidConfiguration"),
    SubnetFileError: Outside(1, "InvalidSubnetFile"),
    BackendUnavailable: Outside(1, "BackendUnavailable"),
    PluginError: Outside(1, "PluginFailed"),
    CommandError: Outside(1, "CommandFailed"),
    KernelError: Outside(1, "KernelRefused"),
    RulesetError: Outside(1, "RulesetInTheWay"),
    AlreadyRunning: Outside(1, "AlreadyRunning"),
    StateError: Outside(1, "StateUnusable"),
    BusError: Outside(1, "BusUnusable"),
}


def outside(kind: type[MasqError]) -> Outside:
    """Of a class that is not in the table, such as the selftest's own, that of the nearest base."""
    return next(OUTSIDE[base] for base in kind.__mro__ if base in OUTSIDE)
