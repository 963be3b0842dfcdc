"""Pages and links of the documentation site, and how broken ones are found. `make docs` builds it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from scripts import site

INSTALL = PurePosixPath("docs/install.md")
MANUAL = PurePosixPath("docs/man/flanneld-masq.8.rst")
PAGES = (INSTALL, MANUAL)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("README.md", "docs/install.md", "docs/bench/idle.svg", "flanneld_masq/model.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "[a](docs/install.md#removing)", "[a](docs/install.md#removing)"),
        ("docs/install.md", "[a](../README.md)", "[a](../index.md)"),
        ("README.md", "[a](docs/man/flanneld-masq.8.rst)", "[a](docs/man/flanneld-masq.8.rst)"),
        ("README.md", "[a b](docs/man/flanneld-masq.8.rst#x)", '<a href="docs/man/flanneld-masq.8.html#x">a b</a>'),
        ("README.md", "[a](docs/decisions)", "[a](docs/decisions/index.md)"),
        ("README.md", "![a](docs/bench/idle.svg)", "![a](docs/bench/idle.svg)"),
        ("docs/install.md", "[a](../flanneld_masq/model.py)", f"[a]({site.REPOSITORY}/flanneld_masq/model.py)"),
        ("README.md", "[a](https://example.org/b)", "[a](https://example.org/b)"),
        ("README.md", "[a](#figures)", "[a](#figures)"),
        ("README.md", "```\nx](nowhere)\n```", "```\nx](nowhere)\n```"),
    ],
)
def test_a_link_holds_on_the_site(tree: Path, page: str, link: str, expected: str) -> None:
    assert site.rewritten(f"# Page\n{link}\n", PurePosixPath(page), PAGES, tree) == f"# Page\n{expected}\n"


def test_a_link_to_no_file_is_an_error(tree: Path) -> None:
    with pytest.raises(site.SiteError, match=r"docs/install\.md: gone\.md leads to no file"):
        site.rewritten("[a](gone.md)", INSTALL, PAGES, tree)


def test_a_page_without_a_title_gets_one(tree: Path) -> None:
    page = PurePosixPath("docs/bench/results.md")
    assert site.rewritten("Measured", page, PAGES, tree) == "# Bench: results\n\nMeasured"


def test_each_document_is_in_one_table_of_contents() -> None:
    found = site.pages(site.ROOT)
    listed = [line for line in site.contents(found).splitlines() if line and line[0] not in "`:"]
    decisions = "docs/decisions/index"
    assert sorted(listed) == sorted(
        {str(page.with_suffix("")) if page.parent != site.DECISIONS else decisions for page in found}
    )


def test_the_whole_tree_is_assembled(tmp_path: Path) -> None:
    site.assemble(site.ROOT, tmp_path)
    assert "# flanneld-masq" in (tmp_path / "index.md").read_text()
    assert "@VERSION@" not in (tmp_path / MANUAL).read_text()
    assert (tmp_path / "docs/bench/idle.svg").is_file()
    decisions = sorted(path.stem for path in (site.ROOT / site.DECISIONS).glob("*.md"))
    assert [name for name in decisions if f"\n{name}\n" not in (tmp_path / "docs/decisions/index.md").read_text()] == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="top">A</h1><a href="b.html#end">b</a><a href="#top">A</a>')
    (tmp_path / "b.html").write_text(
        '<a href="a.html#gone">a</a><img src="no.svg"><a href="https://example.org/">e</a>'
    )
    assert list(site.broken(tmp_path)) == ["a.html: b.html#end", "b.html: a.html#gone", "b.html: no.svg"]


def test_a_site_with_a_broken_link_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.html").write_text('<a href="gone.html">gone</a>')
    assert site.main(["check", str(tmp_path)]) == 1
    assert "a.html: gone.html" in capsys.readouterr().err
    (tmp_path / "gone.html").touch()
    assert site.main(["check", str(tmp_path)]) == 0


@pytest.mark.parametrize("arguments", [[], ["assemble"], ["publish", "x"]])
def test_a_wrong_usage_is_refused(arguments: list[str]) -> None:
    assert site.main(arguments) == 2
