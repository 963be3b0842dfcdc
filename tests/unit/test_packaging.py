"""One version in all places, and the same files in both packages' descriptions."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from flanneld_masq import __version__

from ..common import patience

ROOT = Path(__file__).parents[2]
SCRIPT = "source packaging/common.sh; checked_version"
VERSIONED = ("flanneld_masq/__init__.py", "packaging/debian/changelog", "packaging/rpm/flanneld-masq.spec")


def checked_version(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("bash", "-c", SCRIPT, "build"), cwd=root, capture_output=True, text=True, timeout=patience(30)
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the versions are read from, to be changed."""
    for name in (*VERSIONED, "packaging/common.sh"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return tmp_path


def test_all_packages_say_the_version_of_the_program() -> None:
    done = checked_version(ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        (VERSIONED[0], r'(?<=__version__ = ")[^"]+'),
        (VERSIONED[1], r"(?<=flanneld-masq \()[^-]+"),
        (VERSIONED[2], r"(?<=Version:        ).+"),
        (VERSIONED[2], r"(?<=\.com> - )[^-]+"),
    ],
)
def test_a_build_stops_where_one_says_another(tree: Path, name: str, pattern: str) -> None:
    file = tree / name
    changed, count = re.subn(pattern, "9.9.9", file.read_text(), count=1)
    assert count == 1
    file.write_text(changed)
    done = checked_version(tree)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the versions disagree" in done.stderr
    assert "9.9.9" in done.stderr


def test_each_file_that_systemd_or_d_bus_reads_is_in_both_packages() -> None:
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


def test_the_rpm_starts_the_same_function_as_the_console_script() -> None:
    (module, function) = re.findall(
        r'^flanneld-masq = "(.*):(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )[0]
    assert f"from {module} import {function}\n" in (ROOT / "packaging/rpm/flanneld-masq").read_text()
