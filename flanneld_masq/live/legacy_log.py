"""Has ip_tables report the rules that a traced packet passes, to nfnetlink_log, for as long as a trace lasts.

The kernel reports to the logger that /proc/sys/net/netfilter/nf_log names for the family. It is set for a while and put
back, also after SIGKILL. Rules with LOG and NFLOG do not use it; connection tracking does, for invalid packets.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from flanneld_masq.errors import MasqError
from flanneld_masq.inputs.text import read_start
from flanneld_masq.kernel.trace_events import TraceSocket
from flanneld_masq.model import Family
from flanneld_masq.process import ExitHook

_LOGGER = "nfnetlink_log"


class LegacyLog:
    """The log while it is bound. Raises MasqError if it cannot be, for example if another program receives group 0."""

    def __init__(self, family: Family, socket: TraceSocket, root: Path = Path("/")) -> None:
        self._file = root / f"proc/sys/net/netfilter/nf_log/{family.data.nfproto}"
        socket.receive_logs()
        before = _read(self._file)
        with ExitStack() as undo:
            if before != _LOGGER:
                hook = ExitHook(("sh", "-c", 'echo "$1" >"$2"', "sh", before, str(self._file)))
                undo.callback(hook.cancel)
                undo.callback(_write, self._file, before)
                _write(self._file, _LOGGER)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Put the logger back that was there before."""
        self._undo.close()


def _read(path: Path) -> str:
    try:
        return read_start(path, 128).decode("ascii", "replace").strip()
    except OSError as error:
        raise MasqError(f"{path}: {error.strerror}") from error


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        raise MasqError(f"{path}: {error.strerror}") from error
