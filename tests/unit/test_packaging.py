"""The same files in both packages' descriptions, and no module from elsewhere in what they start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from flanneld_masq import __version__
from flanneld_masq.selftest import daemon

ROOT = Path(__file__).parents[2]
PLUGINS = "from flanneld_masq import plugin_loader; print(*plugin_loader.load().backends)"


class Evil:
    """A plugin and a module of Python's own name in a home directory, in PYTHONPATH and in the working directory. Each
    leaves a mark where it is loaded."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.marker = directory / "loaded"
        user_site = directory / f".local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        for place in (directory, user_site):
            info = place / "evil-1.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
            (info / "entry_points.txt").write_text("[flanneld_masq]\nevil = evilplug\n")
            for name in ("evilplug", "pluggy", "argparse", "usercustomize"):
                (place / f"{name}.py").write_text(f"open({str(self.marker)!r}, 'w')\n")
        self.environ = {**os.environ, "HOME": str(directory), "PYTHONPATH": str(directory)}
        self.trusted = [str(ROOT), str(ROOT / "plugins")]


def test_each_file_of_systemd_and_d_bus_is_in_both_packages() -> None:
    deb = "".join((ROOT / "packaging/debian" / name).read_text() for name in ("install", "rules"))
    rpm = (ROOT / "packaging/rpm/flanneld-masq.spec").read_text().split("%install")[1].split("%post")[0]
    for file in sorted((ROOT / "systemd").rglob("*")):
        if file.is_file():
            names = {str(file.relative_to(ROOT)), f"systemd/*{file.suffix}"}
            assert any(name in deb for name in names), f"{file} is not in the deb"
            assert any(name in rpm for name in names), f"{file} is not in the rpm"


def test_the_rpm_makes_the_user_that_sysusers_d_describes() -> None:
    lines = (ROOT / "systemd/sysusers.d/flanneld-masq.conf").read_text().splitlines()
    (user,) = (line for line in lines if not line.startswith("#"))
    assert f"\necho '{user}' |\n" in (ROOT / "packaging/rpm/flanneld-masq.spec").read_text()


def test_packages_load_no_module_from_home_or_pythonpath(tmp_path: Path) -> None:
    """This test runs the script of the rpm; tests/system runs the one that the build of the deb makes."""
    script = (ROOT / "packaging/rpm/flanneld-masq").read_text()
    first = script.splitlines()[0]
    assert first == "#!/usr/bin/python3 -I"
    assert f"grep -qxF '{first}'" in (ROOT / "packaging/debian/rules").read_text(), "the build insists on it"
    evil = Evil(tmp_path)
    run = subprocess.run(
        (sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {evil.trusted!r}; {PLUGINS}"),
        env=evil.environ,
        cwd=evil.directory,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr, "nft" in run.stdout) == (0, "", True)
    assert not evil.marker.exists()


def test_the_daemon_of_the_selftest_loads_what_the_command_loads(tmp_path: Path) -> None:
    evil = Evil(tmp_path)
    argv = (*daemon.program(), "--version")
    run = subprocess.run(argv, env=evil.environ, cwd=evil.directory, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"flanneld-masq {__version__}\n")
    assert not evil.marker.exists()


def test_the_rpm_starts_the_same_function_as_the_console_script() -> None:
    (module, function) = re.findall(
        r'^flanneld-masq = "(.*):(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )[0]
    assert f"from {module} import {function}\n" in (ROOT / "packaging/rpm/flanneld-masq").read_text()


def test_each_package_of_the_tree_is_installed() -> None:
    (block,) = re.findall(r"^packages = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    trees = (
        (ROOT, "flanneld_masq"),
        *((ROOT / "plugins", path.name) for path in (ROOT / "plugins").glob("flanneld_*")),
    )
    found = {
        ".".join(path.parent.relative_to(top).parts)
        for top, name in trees
        for path in (top / name).rglob("__init__.py")
    }
    assert set(re.findall(r'"(.*)"', block)) == found


def test_a_machine_a_hundred_times_slower_starts_the_service() -> None:
    """It takes two minutes there until the daemon can ask systemd for more time. The usual limit is 90 s."""
    unit = (ROOT / "systemd" / "flanneld-masq.service").read_text()
    limit = re.search(r"^TimeoutStartSec=(\d+)$", unit, re.MULTILINE)
    assert limit is not None
    assert int(limit[1]) >= 300
