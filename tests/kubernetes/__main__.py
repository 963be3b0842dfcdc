"""Renders the chart with Helm, and validates it and the manifests by the strict schemas of several Kubernetes releases.

Runs in an environment of its own (build/kubernetes), in which flanneld-masq is not installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

_PACKAGING = Path(__file__).parents[2] / "packaging"
_KUSTOMIZATION = _PACKAGING / "kubernetes"
_CHART = _PACKAGING / "helm/flanneld-masq"
_RELEASES = ("1.25", "1.29", "1.33", "1.37")
# Each value that is no text differs from its default, and is set the way that an administrator might.
_OTHER_VALUES: Mapping[str, Any] = {
    "image": {"repository": "registry.example/net/flanneld-masq", "tag": "9.9.9", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "config": 'backend = "iptables-legacy"\n\n[dbus]\nenabled = false\n',
    "hostPID": True,
    "priorityClassName": "high",
    "nodeSelector": {"pool": "a"},
    "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}],
    "updateStrategy": {"type": "OnDelete"},
    "resources": {"limits": {"memory": "1Gi"}},
}
Object = dict[str, Any]


def main() -> int:
    """Print a line for each check. Return 1 if one failed."""
    chart, kustomization = rendered({}), kustomized()
    failures = [
        *linted(),
        *validated("chart", chart),
        *validated("chart, other values", rendered(_OTHER_VALUES)),
        *validated("kustomization", kustomization),
        *differing(chart, kustomization),
    ]
    for failure in failures:
        print(f"failed: {failure}")
    print(f"{len(failures)} failures; Helm {helm_python.helm_sdk_version()}, Kubernetes {', '.join(_RELEASES)}")
    return bool(failures)


def rendered(values: Mapping[str, Any]) -> list[Object]:
    """Return the objects of the chart in the namespace kube-system."""
    texts = helm_python.Chart.load(str(_CHART)).render(values=dict(values), name="masq", namespace="kube-system")
    return [one for text in texts.values() for one in yaml.safe_load_all(text) if one]


def linted() -> Iterator[str]:
    """Yield what `helm lint` would say; severity 1 is advice."""
    result = helm_python.lint(str(_CHART))
    print(f"lint: {result['messages'] or 'nothing'}")
    yield from (f"lint: {message}" for message in result["messages"] if message["severity"] > 1)
    yield from (f"lint: {error}" for error in result["errors"])


def kustomized() -> list[Object]:
    """Return what `kubectl kustomize` prints; without kubectl, the DaemonSet with what the kustomization sets."""
    if kubectl := shutil.which("kubectl"):
        done = subprocess.run((kubectl, "kustomize", str(_KUSTOMIZATION)), capture_output=True, text=True, check=True)
        return list(yaml.safe_load_all(done.stdout))
    print("kubectl is missing: the kustomization is read and not built")
    settings = yaml.safe_load((_KUSTOMIZATION / "kustomization.yaml").read_text())
    daemon_set = yaml.safe_load((_KUSTOMIZATION / "daemonset.yaml").read_text())
    daemon_set["metadata"]["namespace"] = settings["namespace"]
    for container in daemon_set["spec"]["template"]["spec"]["containers"]:
        container["image"] += f":{settings['images'][0]['newTag']}"
    return [daemon_set]


def validated(what: str, objects: list[Object]) -> Iterator[str]:
    """Yield what the schemas say against the objects."""
    for release in _RELEASES:
        for one in objects:
            try:
                kubernetes_validate.validate(one, release, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{what}: {one['kind']} for {release}: {error.message}"
    print(f"{what}: {', '.join(one['kind'] for one in objects)} validated")


def differing(chart: list[Object], kustomization: list[Object]) -> Iterator[str]:
    """Yield a line if the chart with its defaults deploys another DaemonSet than the kustomization."""
    if daemon_set(chart) != daemon_set(kustomization):
        yield f"the chart deploys {daemon_set(chart)}, the kustomization {daemon_set(kustomization)}"
    print("chart and kustomization compared")


def daemon_set(objects: list[Object]) -> Object:
    """Return the DaemonSet without what lets a changed configuration roll out."""
    (found,) = (one for one in objects if one["kind"] == "DaemonSet")
    template = found["spec"]["template"]
    template["metadata"].pop("annotations", None)
    template["spec"].setdefault("hostPID", False)
    for volume in template["spec"]["volumes"]:
        volume.get("configMap", {}).pop("name", None)
    return dict(found)


if __name__ == "__main__":
    sys.exit(main())
