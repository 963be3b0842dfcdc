"""Text never becomes markup."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.report.markup import Markup, escaped, joined, tag

from .hostile import Form


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b & c", tag("b", "'\"")) == "<p>a &lt; b &amp; c<b>&#x27;&quot;</b></p>"


def test_text_made_from_markup_is_escaped_again() -> None:
    bold = tag("b", "x")
    assert escaped(bold) is bold
    assert joined([f"{bold}", bold + ""]) == "&lt;b&gt;x&lt;/b&gt;" * 2
    assert type(bold.upper()) is not Markup


def test_attributes() -> None:
    assert tag("i", class_="a", text_anchor="middle", x=0) == '<i class="a" text-anchor="middle" x="0"></i>'
    assert tag("details", open=True, title=None, lang=False) == "<details open></details>"


def test_control_characters_are_shown_as_escapes() -> None:
    assert escaped("a\x1b[2J\n\u202eb") == "a\\x1b[2J\\n\\u202eb"


@given(st.text(max_size=200))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    form = Form(tag("p", text, title=text))
    assert [name for name, _ in form.tags] == ["p"]
    assert form.text == form.tags[0][1]["title"]
    assert text.isprintable() is (form.text == text) or len(form.text) >= len(text)
