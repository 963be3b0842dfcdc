"""docs/troubleshooting.md has a section for each kind of finding, and for no other."""

from __future__ import annotations

import re
from pathlib import Path

from flanneld_masq.doctor.findings import Kind

TEXT = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text()
SECTIONS = dict(re.findall(r"^### `([a-z0-9-]+)`\n(.*?)(?=^##)", TEXT, re.DOTALL | re.MULTILINE))


def test_each_kind_has_a_section_and_no_other() -> None:
    assert list(SECTIONS) == sorted(kind.value for kind in Kind)


def test_each_section_has_a_remedy() -> None:
    assert [name for name, section in SECTIONS.items() if "\n\nRemedy: " not in section] == []


def test_each_link_within_the_page_leads_to_a_heading() -> None:
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", TEXT, re.M)}
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= slugs
