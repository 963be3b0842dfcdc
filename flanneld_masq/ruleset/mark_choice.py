"""Chooses the mark of kube-proxy that the rules test. Pure: the evidence is passed in as values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

from flanneld_masq.model import DEFAULT_KUBE_PROXY_MARK, SLOTS, Mark, MarkEvidence, MasqueradeSettings

NO_EVIDENCE = "the default: no backend has rules of kube-proxy"


@dataclass(frozen=True, **SLOTS)
class MarkChoice:
    """The mark, None for none, and the reason for it in words for people. `read` is True if kube-proxy's rules say
    so, `unread` if they could not be read."""

    mark: Optional[Mark]
    why: str
    read: bool = False
    unread: bool = False


def choose(settings: MasqueradeSettings, evidence: Iterable[MarkEvidence], unread: str = "") -> MarkChoice:
    """Return the mark that the settings name, or for "auto" the first one in evidence.

    `evidence` is in the order of the backends' preference: a kube-proxy in nftables mode comes before the iptables
    chains that an older kubelet, or a kube-proxy in another mode, left behind. `unread` is why some of it is missing.
    """
    mark = settings.kube_proxy_mark
    if mark != "auto":
        return MarkChoice(mark, f'kube_proxy_mark = "{mark or ""}"')
    first = next(iter(evidence), None)
    if first is None and unread:
        why = f"the default: kube-proxy's rules cannot be read: {unread}"
        return MarkChoice(DEFAULT_KUBE_PROXY_MARK, why, unread=True)
    if first is None:
        return MarkChoice(DEFAULT_KUBE_PROXY_MARK, NO_EVIDENCE)
    return MarkChoice(first.mark, first.where, read=True)
