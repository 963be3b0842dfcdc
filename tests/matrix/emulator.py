"""Boots a machine by qemu and reads what it prints on its console."""

from __future__ import annotations

import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .guest.__main__ import ARGUMENT
from .guest.console import Outcome, parse
from .image import Disk
from .plan import Boot, Machine

_MEMORY = "1024"


def boot(
    machine: Machine, boot: Boot, cells: tuple[str, ...], disk: Disk, log: Path, heard: Callable[[Outcome], None]
) -> str:
    """Boot once for these cells, and pass on each outcome when it comes. What the machine writes is lost with it.

    Returns why it did not power off by itself; empty if it did. The console goes to the file `log`.
    """
    deadline = time.monotonic() + boot.seconds
    argv = command(machine, boot, cells, disk)
    with _running(argv) as process, log.open("ab") as console:
        assert process.stdout is not None
        pending = b""
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([process.stdout], [], [], left)[0]:
                break
            some = process.stdout.read1(65536)  # type: ignore[attr-defined]
            if not some:
                return "" if process.wait() == 0 else f"qemu ended with status {process.returncode}; see {log}"
            console.write(some)
            console.flush()
            *lines, pending = (pending + some).split(b"\n")
            for line in lines:
                outcome = parse(line.decode(errors="replace"))
                if outcome is not None:
                    heard(outcome)
    return f"not powered off within {boot.seconds:.0f} s"


def command(machine: Machine, boot: Boot, cells: tuple[str, ...], disk: Disk) -> tuple[str, ...]:
    """Return the command line of qemu."""
    root = "rdinit=/init" if disk.image is None else "root=LABEL=matrix rw"
    drive = () if disk.image is None else ("-drive", f"file={disk.image},format=raw,if=virtio,snapshot=on")
    append = (
        f"{root} console={machine.console} quiet loglevel=1 systemd.show_status=false panic=-1 "
        f"mitigations=off {ARGUMENT}{','.join(cells)} {boot.append}"
    )
    return (
        *machine.emulator,
        *("-accel", "tcg,tb-size=256", "-smp", "1", "-m", _MEMORY),
        *("-display", "none", "-no-reboot", "-nodefaults", "-serial", "stdio", "-monitor", "none"),
        *drive,
        *("-kernel", str(disk.kernel), "-initrd", str(disk.initrd), "-append", append.strip()),
    )


@contextmanager
def _running(argv: tuple[str, ...]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with process:
        try:
            yield process
        finally:
            process.kill()
