"""A system bus of the test's own: the real dbus-daemon, at an address that only the test knows."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from .common import eventually, patience, unable

POLICY = Path(__file__).parents[1] / "systemd" / "io.github.flanneld_masq.conf"
# What a distribution's system.conf says, which is that nothing is allowed but signals and replies.
_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  {policy}
</busconfig>
"""
# Its service, object path and interface.
_ITSELF = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_ALL_ALLOWED = '<policy context="mandatory"><allow own="*"/><allow send_destination="*"/></policy>'


class Bus:
    """Not started yet. Anyone may do anything on it, or what `policy` allows."""

    def __init__(self, directory: Path, policy: str = _ALL_ALLOWED) -> None:
        if not shutil.which("dbus-daemon"):
            unable("dbus-daemon is missing; `make setup` installs it")
        self._socket = directory / "bus"
        self.address = f"unix:path={self._socket}"
        self._config = directory / "bus.conf"
        self._log = directory / "bus.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.allow(policy)

    def allow(self, policy: str) -> None:
        """Change the policy; a bus that runs has read it when this returns."""
        self._config.write_text(_CONFIG.format(address=self.address, policy=policy))
        if self._process is not None:
            done = self.ctl("call", *_ITSELF, "ReloadConfig")
            assert done.returncode == 0, done.stderr

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ("dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile", "--nosyslog"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(self._answers)

    def stop(self) -> None:
        """As by a crash: nothing is said to those who are connected."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._socket.unlink()

    def freeze(self) -> None:
        """It keeps all connections, and reads no more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ctl(self, *arguments: str, user: int = 0) -> subprocess.CompletedProcess[str]:
        """Run busctl, a client that this project did not write."""
        if not shutil.which("busctl"):
            unable("busctl is missing; it comes with systemd")
        return subprocess.run(
            ("busctl", f"--address={self.address}", f"--timeout={patience(10):g}", *arguments),
            capture_output=True,
            text=True,
            timeout=patience(30),
            user=user or None,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            return client.connect_ex(str(self._socket)) == 0
