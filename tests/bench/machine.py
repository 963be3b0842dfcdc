"""Where it was measured."""

from __future__ import annotations

import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flanneld_masq.errors import CommandError
from flanneld_masq.process import ProcessRunner

_VERSIONS = {
    "nft": ("nft", "--version"),
    "iptables-nft": ("iptables-nft", "--version"),
    "iptables-legacy": ("iptables-legacy", "--version"),
}


def described() -> dict[str, Any]:
    run = ProcessRunner()
    versions = {}
    for name, argv in _VERSIONS.items():
        try:
            versions[name] = run(argv).stdout.strip()
        except CommandError as error:
            versions[name] = str(error)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kernel": f"{platform.release()} {platform.machine()}",
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "python": platform.python_version(),
        "system": _field("/etc/os-release", "PRETTY_NAME", "="),
        "versions": versions,
        "load_before": os.getloadavg(),
    }


def line(found: dict[str, Any]) -> str:
    return (
        f"{found['date'][:10]}, Linux {found['kernel']}, {found['cpus']} x {found['cpu']}, {found['system']}, "
        f"Python {found['python']}, {', '.join(found['versions'].values())}"
    )


def _field(path: str, name: str, separator: str = ":") -> str:
    found = re.search(rf"^{re.escape(name)}\s*{separator}\s*(.*)$", Path(path).read_text(), re.MULTILINE)
    return found[1].strip('"') if found else "unknown"
