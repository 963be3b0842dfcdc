"""scripts/release refuses trees that cannot be released. It builds nothing here: `release check`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.changelog import ROOT

from ...common import patience, unable

FILES = ("scripts/release", "scripts/changelog.py", "packaging/common.sh")
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-12-24\n\n- Something.\n"


class Repository:
    """A git repository with what a release reads, ready to be released as 1.2.3."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in FILES:
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, directory / name)
        self.write("flanneld_masq/__init__.py", '__version__ = "1.2.3"\n')
        self.write("CHANGELOG.md", CHANGELOG)
        self.git("init", "--quiet")
        self.commit()

    def write(self, name: str, text: str) -> None:
        (self.directory / name).parent.mkdir(exist_ok=True)
        (self.directory / name).write_text(text)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "--message=test")

    def git(self, *arguments: str) -> None:
        subprocess.run(("git", *arguments), cwd=self.directory, env=_environ(), check=True, timeout=patience(30))

    def release(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ("scripts/release", *arguments),
            cwd=self.directory,
            env=_environ(),
            capture_output=True,
            text=True,
            timeout=patience(30),
        )


def _environ() -> dict[str, str]:
    """Neither the settings of the user nor those of an outer git, such as a hook's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**kept, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", "KEY": ""}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    if not shutil.which("git"):
        unable("git is missing")
    return Repository(tmp_path)


def test_a_clean_tree_passes(repository: Repository) -> None:
    done = repository.release("check")
    assert (done.returncode, done.stderr) == (0, "release: 1.2.3 can be released\n")


def test_uncommitted_changes_are_refused(repository: Repository) -> None:
    repository.write("new", "")
    assert "not committed" in refusal(repository)


def test_a_version_with_a_tag_is_refused(repository: Repository) -> None:
    repository.git("tag", "v1.2.3")
    assert "v1.2.3 is a tag already" in refusal(repository)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("CHANGELOG.md", CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n"), "under Unreleased"),
        ("CHANGELOG.md", CHANGELOG.replace("1.2.3", "1.2.4"), "the versions disagree"),
        ("flanneld_masq/__init__.py", '__version__ = "1.2.4"\n', "the versions disagree"),
    ],
)
def test_a_changelog_that_does_not_fit_is_refused(repository: Repository, name: str, text: str, said: str) -> None:
    repository.write(name, text)
    repository.commit()
    assert said in refusal(repository)


def test_a_version_of_another_form_is_refused(repository: Repository) -> None:
    repository.write("flanneld_masq/__init__.py", '__version__ = "1.2.3rc1"\n')
    repository.write("CHANGELOG.md", CHANGELOG.replace("1.2.3", "1.2.3rc1"))
    repository.commit()
    assert "not of the form" in refusal(repository)


def test_a_release_without_a_key_builds_nothing(repository: Repository) -> None:
    done = repository.release()
    assert (done.returncode, done.stdout) == (1, "")
    assert "KEY is empty" in done.stderr
    assert not (repository.directory / "dist").exists()


def refusal(repository: Repository) -> str:
    done = repository.release("check")
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr
