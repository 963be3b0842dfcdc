"""A process never loads OpenSSL, and loads asyncio and the code of a command only where they are needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..common import patience

DAEMON = "from flanneld_masq import footprint; footprint.load_asyncio(); import flanneld_masq.service.daemon"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import flanneld_masq.cli.main", "asyncio ssl _ssl _hashlib"),
        ("from flanneld_masq import plugin_loader; plugin_loader.load()", "asyncio ssl _ssl"),
        (f"import flanneld_masq.cli.main; {DAEMON}", "ssl _ssl _hashlib"),
        ("import flanneld_masq.cli.main; from flanneld_masq.dbus import client", "asyncio"),
    ],
    ids=["a command", "the plugins", "the daemon", "the client of the bus"],
)
def test_modules_that_are_not_needed_are_not_loaded(code: str, absent: str) -> None:
    show = f"{code}; import sys; print(*(name for name in '{absent}'.split() if name in sys.modules))"
    done = subprocess.run(
        (sys.executable, "-c", show), capture_output=True, text=True, timeout=patience(30), check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("line", "absent"),
    [
        ("--version", "dataclasses pluggy flanneld_masq.model"),
        ("plan --config /nonexistent --subnet-file /nonexistent", "asyncio flanneld_masq.controller.status"),
    ],
    ids=["--version", "plan"],
)
def test_a_command_loads_no_code_of_other_commands(line: str, absent: str) -> None:
    show = (
        "import atexit, sys; from flanneld_masq.cli import main\n"
        f"atexit.register(lambda: print('loaded:', *(set({absent.split()}) & set(sys.modules))))\n"
        f"main.main({line.split()})"
    )
    done = subprocess.run(
        (sys.executable, "-c", show), capture_output=True, text=True, timeout=patience(30), check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_a_backend_is_loaded_with_its_plugin() -> None:
    """Not at the first pass, which may come when an upgrade has replaced the files of a daemon that runs."""
    code = "from flanneld_masq import plugin_loader; plugin_loader.load(); import sys; print(*sys.modules)"
    done = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, timeout=patience(30), check=True
    )
    names = ("flanneld_masq_nft.backend", "flanneld_masq_iptables.nft_backend", "flanneld_masq_iptables.legacy_backend")
    assert set(names) <= set(done.stdout.split())


def test_asyncio_works_without_openssl() -> None:
    code = f"{DAEMON}; import asyncio; asyncio.run(asyncio.sleep(0)); import ssl; print(ssl.OPENSSL_VERSION)"
    done = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, timeout=patience(30), check=True
    )
    assert done.stdout.startswith("OpenSSL"), "a plugin that needs it can still load it"
