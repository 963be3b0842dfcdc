"""flanneld-masq in a container, as packaging/kubernetes/daemonset.yaml says, run by podman on a machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .machine import Machine
from .packages import TREE

KUBERNETES = TREE / "packaging/kubernetes"
ARCHIVE = TREE / "dist/flanneld-masq-image.tar"
LOAD_SECONDS = 120.0
_NAME = "flanneld-masq"
_CONFIG = "/etc/flanneld-masq"  # on the machine; a ConfigMap is a directory there too
_DAEMON = ("--detach", f"--name={_NAME}")
_MADE_BY = {"DirectoryOrCreate": ("mkdir", "-p"), "FileOrCreate": ("touch",)}


class Container:
    """The container of the DaemonSet. The machine has neither the project nor a cluster."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._pod: dict[str, Any] = yaml.safe_load((KUBERNETES / "daemonset.yaml").read_text())["spec"]["template"][
            "spec"
        ]
        (self._spec,) = self._pod["containers"]
        # What podman unpacks goes into memory, for the machine's root is an overlay, which cannot carry another.
        machine.run("mkdir", "-p", "/var/lib/containers")
        machine.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib/containers")
        archive = Path("/var/tmp/image.tar")
        shutil.copy(ARCHIVE, machine.path(str(archive)))
        machine.run("podman", "load", f"--input={archive}", timeout=LOAD_SECONDS)
        machine.run("rm", str(archive))
        self._image = f"{self._spec['image']}:{_version()}"
        self.configure()

    def configure(self, text: str = "") -> None:
        """Write the configuration of the ConfigMap, with `text` ahead of it."""
        self._machine.write(f"{_CONFIG}/config.toml", text + (KUBERNETES / "config.toml").read_text())

    def start(self) -> None:
        """Do what the kubelet does for the pod."""
        for volume in self._pod["volumes"]:
            if host := volume.get("hostPath"):
                self._machine.run(*_MADE_BY[host["type"]], host["path"])
        self._podman("run", *_DAEMON, *self._options(), self._image)

    def again(self) -> None:
        self._podman("start", _NAME)

    def stop(self) -> None:
        """End it by SIGTERM, in the time that the pod has."""
        self._podman("stop", f"--time={self._pod['terminationGracePeriodSeconds']}", _NAME)

    def kill(self) -> None:
        self._podman("kill", "--signal=KILL", _NAME)
        self._podman("wait", _NAME)

    def masq(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run flanneld-masq in it."""
        return self._machine.run("podman", "exec", _NAME, "flanneld-masq", *arguments, check=check)

    def beside(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run flanneld-masq in another container with the same rights and mounts, which ends with it."""
        return self._machine.run("podman", "run", "--rm", *self._options(), self._image, *arguments, check=False)

    def probe(self, kind: str) -> int:
        """Run `livenessProbe` or `readinessProbe`; the exit status."""
        command: list[str] = self._spec[kind]["exec"]["command"]
        return self._machine.run("podman", "exec", _NAME, *command, check=False).returncode

    def log(self) -> str:
        done = self._machine.run("podman", "logs", _NAME)
        return done.stdout + done.stderr

    def _podman(self, *arguments: str) -> None:
        self._machine.run("podman", *arguments, timeout=LOAD_SECONDS)

    def _options(self) -> Iterator[str]:
        context: Mapping[str, Any] = self._spec["securityContext"]
        yield "--cgroups=disabled"
        yield from ("--network=host",) if self._pod["hostNetwork"] else ()
        yield from ("--pid=host",) if self._pod.get("hostPID") else ()
        yield f"--user={context['runAsUser']}:{context['runAsGroup']}"
        yield from (f"--cap-drop={name}" for name in context["capabilities"]["drop"])
        yield from (f"--cap-add={name}" for name in context["capabilities"]["add"])
        yield from ("--read-only", "--read-only-tmpfs=false") if context["readOnlyRootFilesystem"] else ()
        yield from () if context["allowPrivilegeEscalation"] else ("--security-opt=no-new-privileges",)
        yield from ("--privileged",) if context["privileged"] else ()
        yield from self._mounts()

    def _mounts(self) -> Iterator[str]:
        volumes = {volume["name"]: volume for volume in self._pod["volumes"]}
        for mount in self._spec["volumeMounts"]:
            source = volumes[mount["name"]].get("hostPath", {"path": _CONFIG})["path"]
            yield f"--volume={source}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}"


def _version() -> str:
    (image,) = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["images"]
    return str(image["newTag"])
