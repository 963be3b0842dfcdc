"""Finds files that the user of the service may not read, for a command that root runs: root itself may read them."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.errors import CommandError
from flanneld_masq.model import SLOTS
from flanneld_masq.process import ProcessRunner

UNIT = "flanneld-masq.service"
_ROOT_GROUP = 0  # SupplementaryGroups= of the unit


@dataclass(frozen=True, **SLOTS)
class Unreadable:
    """A file that the service may not read, the path that keeps it out, and the right that it lacks there.

    `who` is the letter of chmod for the bits that count for the user: those of its group, or of all others.
    """

    user: str
    file: str
    path: str
    right: str
    who: str = "o"

    def __str__(self) -> str:
        verb = "enter" if self.right == "x" else "read"
        return f"{self.file}: the user {self.user} of {UNIT} may not {verb} {self.path}; {self.remedy}"

    @property
    def remedy(self) -> str:
        name = shlex.quote(self.path)
        return f"`setfacl -m u:{self.user}:{self.right} {name}` or `chmod {self.who}+{self.right} {name}`"


def unreadable(paths: Iterable[str], run: ProcessRunner) -> Iterator[Unreadable]:
    """Yield the existing files of these that the user of the service may not read.

    Yield nothing if this process is not root, or if there is no such service or user.
    """
    user = _user(run) if os.geteuid() == 0 else None
    for path in map(Path, paths if user is not None else ()):
        if user is None or not path.exists() or _may(user, "r", path, run):
            continue
        closed = next((above for above in reversed(path.absolute().parents) if not _may(user, "x", above, run)), None)
        at = closed or path
        who = "g" if at.stat().st_gid in (user.pw_gid, _ROOT_GROUP) else "o"
        yield Unreadable(user.pw_name, str(path), str(at), "r" if closed is None else "x", who)


def _user(run: ProcessRunner) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(run(("systemctl", "show", "--property=User", "--value", UNIT)).stdout.strip())
    except (CommandError, KeyError):
        return None


def _may(user: pwd.struct_passwd, right: str, path: Path, run: ProcessRunner) -> bool:
    """Return False if the kernel says no to that user. Modes alone do not tell: there may be access lists."""
    identity = (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", f"--groups={user.pw_gid},{_ROOT_GROUP}")
    try:
        run(("setpriv", *identity, "--", "test", f"-{right}", str(path)))
    except CommandError as error:
        return error.status != 1
    return True
