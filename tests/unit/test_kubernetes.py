"""The manifests, the chart and the plugin of node-problem-detector agree with each other and with the daemon.

`make kubernetes-check` renders the chart and validates all by the schemas of Kubernetes.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from flanneld_masq import __version__
from flanneld_masq.cli import main
from flanneld_masq.cli.doctor_brief import MAX_BYTES
from flanneld_masq.inputs import config
from flanneld_masq.model import Settings

PACKAGING = Path(__file__).parents[2] / "packaging"
KUBERNETES, CHART = PACKAGING / "kubernetes", PACKAGING / "helm/flanneld-masq"
DAEMON_SET = yaml.safe_load((KUBERNETES / "daemonset.yaml").read_text())
POD = DAEMON_SET["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
MONITOR = json.loads((KUBERNETES / "node-problem-detector/flanneld-masq-monitor.json").read_text())


def seconds(text: str) -> float:
    """Return a duration as Go writes it, in seconds alone."""
    assert text.endswith("s")
    return float(text[:-1])


def test_the_container_has_the_rights_that_it_needs_and_no_other() -> None:
    assert CONTAINER["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert POD["hostNetwork"] is True
    assert POD["automountServiceAccountToken"] is False
    assert {"hostPID", "hostIPC", "serviceAccountName"}.isdisjoint(POD)


def test_the_container_sees_these_paths_of_the_node_alone() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert len(volumes) == len(POD["volumes"]) == len(CONTAINER["volumeMounts"])
    paths = {
        mount["mountPath"]: (volumes[mount["name"]].get("hostPath", {}).get("path"), mount.get("readOnly", False))
        for mount in CONTAINER["volumeMounts"]
    }
    assert paths == {
        "/etc/flanneld-masq": (None, True),
        "/run/flannel": ("/run/flannel", True),
        "/run/xtables.lock": ("/run/xtables.lock", False),
        "/run/flanneld-masq": ("/run/flanneld-masq", False),
    }


def test_it_runs_on_every_node() -> None:
    assert POD["tolerations"] == [{"operator": "Exists"}]
    assert POD["priorityClassName"] == "system-node-critical"
    assert POD["nodeSelector"] == {"kubernetes.io/os": "linux"}


@pytest.mark.parametrize("kind", ["livenessProbe", "readinessProbe"])
def test_a_probe_runs_a_command_of_the_program(kind: str) -> None:
    program, *arguments = CONTAINER[kind]["exec"]["command"]
    options = main.parser().parse_args(arguments)
    assert program == "flanneld-masq"
    assert options.check


def test_the_selector_finds_the_pods() -> None:
    labels = DAEMON_SET["spec"]["template"]["metadata"]["labels"]
    assert DAEMON_SET["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_each_place_names_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (image,) = KUSTOMIZATION["images"]
    assert {chart["version"], chart["appVersion"], image["newTag"]} == {__version__}


def test_each_place_names_the_same_image() -> None:
    (built,) = re.findall(r"^name=(\S+):\$version$", (PACKAGING / "build-image").read_text(), re.MULTILINE)
    names = {KUSTOMIZATION["images"][0]["name"], CONTAINER["image"], VALUES["image"]["repository"]}
    assert names == {built}


def test_both_configurations_are_valid_and_the_same(tmp_path: Path) -> None:
    (tmp_path / "values.toml").write_text(VALUES["config"])
    (tmp_path / "values.toml").chmod(0o644)
    settings = config.load(KUBERNETES / "config.toml")
    assert settings == config.load(tmp_path / "values.toml")
    assert settings != Settings()
    assert not settings.dbus_enabled


def test_the_chart_uses_each_value_and_no_other() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    used = set(re.findall(r"\.Values\.([\w.]+)", templates))
    assert used == set(leaves(VALUES))


def leaves(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names that the templates use: those of the image one by one, the others whole."""
    for name, value in values.items():
        if name == "image":
            yield from (f"image.{part}" for part in value)
        else:
            yield name


def test_the_chart_differs_from_the_manifest_by_its_values_alone() -> None:
    """Helm is no package of Debian, so this compares the lines; `make kubernetes-check` has Helm render them."""
    manifest = (KUBERNETES / "daemonset.yaml").read_text().splitlines()
    template = (CHART / "templates/daemonset.yaml").read_text().splitlines()
    changes = [line for line in difflib.ndiff(manifest, template) if line[0] in "+-"]
    added = {line[2:].strip() for line in changes if line[0] == "+" and "{{" not in line}
    assert added == {
        "annotations:",
        "# A changed configuration rolls the DaemonSet out.",
        "imagePullSecrets:",
    }
    defaults = {
        "updateStrategy": DAEMON_SET["spec"]["updateStrategy"],
        "resources": CONTAINER["resources"],
        **{name: POD[name] for name in ("priorityClassName", "nodeSelector", "tolerations")},
    }
    assert {name: VALUES[name] for name in defaults} == defaults
    assert VALUES["image"]["pullPolicy"] == CONTAINER["imagePullPolicy"]


def test_the_plugin_runs_doctor_within_its_time_and_space() -> None:
    settings = MONITOR["pluginConfig"]
    (rule,) = MONITOR["rules"]
    options = main.parser().parse_args(rule["args"])
    assert rule["path"] == "/usr/bin/flanneld-masq"
    assert options.brief
    assert (
        options.timeout
        < seconds(rule["timeout"])
        <= seconds(settings["timeout"])
        < seconds(settings["invoke_interval"])
    )
    assert settings["max_output_length"] == MAX_BYTES


def test_the_plugin_sets_a_condition_that_it_declares() -> None:
    """node-problem-detector does not start with another configuration."""
    (rule,), (condition,) = MONITOR["rules"], MONITOR["conditions"]
    assert (MONITOR["plugin"], rule["type"]) == ("custom", "permanent")
    assert rule["condition"] == condition["type"]
    assert rule["reason"] != condition["reason"]
    assert len(condition["message"]) <= MAX_BYTES
