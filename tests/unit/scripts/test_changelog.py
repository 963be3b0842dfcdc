"""One version in all places: the changelogs of the packages are made from CHANGELOG.md."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from flanneld_masq import __version__
from scripts.changelog import ROOT, ChangelogError, Release, as_deb, as_rpm, checked, main, noon, plain, releases

from ...common import patience, unable

CHANGELOG = """\
# Changelog

## [Unreleased]

### Added

- Something that nobody has yet.

## [1.1.0] - 2026-12-24

### Changed

- A setting of [a link](docs/install.md), which has 100% more
  words than fit on one line of a changelog of the package that it is in.

## [1.0.0] - 2026-02-03

First packages.

[Unreleased]: https://example.org/commits/main
"""


def test_the_project_has_one_version() -> None:
    assert checked(ROOT)[0].version == __version__


def test_unreleased_changes_are_left_out() -> None:
    newest, first = releases(CHANGELOG)
    assert newest.items() == [
        "Changed: A setting of a link, which has 100% more words than fit on one line of a changelog of the"
        " package that it is in."
    ]
    assert first == Release("1.0.0", noon("2026-02-03"), "First packages.")


def test_debian_changelog_has_its_format() -> None:
    assert as_deb(releases(CHANGELOG)) == (
        "flanneld-masq (1.1.0-1) unstable; urgency=medium\n\n"
        "  * Changed: A setting of a link, which has 100% more words than fit on one\n"
        "    line of a changelog of the package that it is in.\n\n"
        " -- flanneld-masq maintainers <flanneld-masq@users.noreply.github.com>  Thu, 24 Dec 2026 12:00:00 +0000\n\n"
        "flanneld-masq (1.0.0-1) unstable; urgency=medium\n\n"
        "  * First packages.\n\n"
        " -- flanneld-masq maintainers <flanneld-masq@users.noreply.github.com>  Tue, 03 Feb 2026 12:00:00 +0000\n"
    )


def test_debian_reads_the_changelog_of_the_project() -> None:
    if not shutil.which("dpkg-parsechangelog"):
        unable("dpkg-parsechangelog is missing; `scripts/setup-packaging deb` installs it")
    done = subprocess.run(
        ("dpkg-parsechangelog", "--file", "-", "--show-field", "Version"),
        input=as_deb(checked(ROOT)),
        capture_output=True,
        text=True,
        timeout=patience(30),
    )
    assert (done.stdout, done.stderr) == (f"{__version__}-1\n", "")


def test_rpm_changelog_has_its_format() -> None:
    assert as_rpm(releases(CHANGELOG)) == (
        "* Thu Dec 24 2026 flanneld-masq maintainers <flanneld-masq@users.noreply.github.com> - 1.1.0-1\n"
        "- Changed: A setting of a link, which has 100%% more words than fit on one line\n"
        "  of a changelog of the package that it is in.\n\n"
        "* Tue Feb 03 2026 flanneld-masq maintainers <flanneld-masq@users.noreply.github.com> - 1.0.0-1\n"
        "- First packages.\n"
    )


def test_links_become_their_text() -> None:
    assert plain("see [a\n  b](c.md) and `d`") == "see a b and `d`"


@pytest.mark.parametrize("text", ["", "## [Unreleased]\n", "## [1.0.0] - 2026-02-30\n"])
def test_a_changelog_without_a_release_is_refused(text: str) -> None:
    with pytest.raises(ChangelogError):
        releases(text)


@pytest.mark.parametrize("program", ['__version__ = "9.9.9"\n', ""])
def test_another_version_of_the_program_is_refused(tmp_path: Path, program: str) -> None:
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / "flanneld_masq").mkdir()
    (tmp_path / "flanneld_masq/__init__.py").write_text(program)
    with pytest.raises(ChangelogError, match=r"the versions disagree: .* is 1\.1\.0"):
        checked(tmp_path)


@pytest.mark.parametrize("what", [[], ["rubbish"], ["deb", "rpm"]])
def test_an_unknown_output_is_refused(what: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(what) == 2
    assert "version" in capsys.readouterr().err


def test_the_version_is_printed_for_the_builds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
