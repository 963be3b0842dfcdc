"""Which mark the rules test, and why."""

from __future__ import annotations

from flanneld_masq.model import DEFAULT_KUBE_PROXY_MARK, Mark, MarkEvidence, MasqueradeSettings
from flanneld_masq.ruleset.mark_choice import NO_EVIDENCE, MarkChoice, choose

TABLE = MarkEvidence(Mark(0x8000, 0x8000), "chain masquerading of table ip kube-proxy")
CHAIN = MarkEvidence(Mark(1, 1), "chain KUBE-MARK-MASQ of table ip nat")


def test_setting_comes_before_evidence() -> None:
    settings = MasqueradeSettings(kube_proxy_mark=Mark(2, 2))
    assert choose(settings, [TABLE]) == MarkChoice(Mark(2, 2), 'kube_proxy_mark = "0x2/0x2"')
    assert choose(MasqueradeSettings(kube_proxy_mark=None), [TABLE]) == MarkChoice(None, 'kube_proxy_mark = ""')


def test_auto_is_the_first_evidence() -> None:
    assert choose(MasqueradeSettings(), [TABLE, CHAIN]) == MarkChoice(TABLE.mark, TABLE.where, read=True)
    assert choose(MasqueradeSettings(), [CHAIN], "unreadable").mark == CHAIN.mark


def test_auto_without_evidence_is_the_default() -> None:
    assert choose(MasqueradeSettings(), []) == MarkChoice(DEFAULT_KUBE_PROXY_MARK, NO_EVIDENCE)
    unread = choose(MasqueradeSettings(), [], "not permitted")
    assert (unread.mark, unread.unread) == (DEFAULT_KUBE_PROXY_MARK, True)
    assert unread.why == "the default: kube-proxy's rules cannot be read: not permitted"
