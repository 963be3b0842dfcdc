"""Says what became of a packet, and which rule decided it. Pure, over what `rule_texts` looks up."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flanneld_masq_iptables import save_format

from flanneld_masq.errors import CommandError
from flanneld_masq.kernel.trace_events import Header, LegacyStep, NftStep, StepKind
from flanneld_masq.live.journey import Fate, Journey, translated_destination, translated_source
from flanneld_masq.live.rule_texts import FAMILIES, RuleTexts, hook_name
from flanneld_masq.model import SLOTS
from flanneld_masq.packet_path.owners import owner_by_text

_QUOTED = re.compile(r' (?:comment|prefix) (?:"(?:[^"\\]|\\.)*"|"[^"]*")')  # as nft prints text
_LEGACY = "legacy"
_LEGACY_VERDICTS = {"DROP": "drop", "REJECT": "drop", "ACCEPT": "accept", "RETURN": "return", "NFQUEUE": "queue"}
_NAT = re.compile(r"\b(?:masquerade|snat|dnat|redirect|netmap|full-?nat)\b", re.IGNORECASE)
_SOURCE_HOOKS, _DESTINATION_HOOKS = ("postrouting", "input"), ("prerouting", "output")


@dataclass(frozen=True, **SLOTS)
class Passed:
    """One rule or policy that a packet met. `handle` names a rule of nf_tables; `number` one of ip_tables, counted from
    1 in its chain. Both are 0 for a policy."""

    backend: str
    hook: str
    table: str
    chain: str
    kind: StepKind
    verdict: str
    handle: int = 0
    number: int = 0
    text: str = ""
    owner: str = ""

    def __str__(self) -> str:
        place = f"{self.table} {self.chain}"
        rule = f" handle {self.handle}" if self.handle else f" rule {self.number}" if self.number else ""
        return place + (" policy" if self.kind is StepKind.POLICY else rule)


@dataclass(frozen=True, **SLOTS)
class Traced:
    """A packet: its header at its beginning and at its end, the rules that it passed, and the ones that decided.

    `end` is None unless it left netfilter: for a socket of this host if it is `local`, else on device `oif`.
    """

    begin: Header | None
    end: Header | None
    fate: Fate
    steps: tuple[Passed, ...]
    decided: tuple[Passed, ...]
    device_in: str = ""
    device_out: str = ""
    local: bool = False

    @property
    def hook(self) -> str:
        """The hook where it was seen last."""
        return self.steps[-1].hook if self.steps else ""


def judge(journey: Journey, texts: RuleTexts, device: Callable[[int], str]) -> Traced:
    """Return what became of the packet. `device` names the device of an index."""
    steps = tuple(_passed(journey, texts))
    fate = _fate(journey, steps)
    begin, end = journey.header, journey.end
    return Traced(
        begin,
        end,
        fate,
        steps,
        tuple(_deciding(journey, fate, steps)),
        device(begin.iif) if begin and begin.iif else "",
        device(end.oif) if end and end.oif else "",
        journey.local,
    )


def _passed(journey: Journey, texts: RuleTexts) -> Iterator[Passed]:
    hook = ""
    for step in journey.steps:
        if isinstance(step, LegacyStep):
            hook = hook_name(step.hook)
            yield _legacy(step, hook, texts)
        else:
            hook = hook_name(texts.chain(step.nfproto, step.table, step.chain).hook) or hook
            yield _nft(step, hook, texts)


def _nft(step: NftStep, hook: str, texts: RuleTexts) -> Passed:
    table = f"{FAMILIES.get(step.nfproto, step.nfproto)} {step.table}"
    handle = step.handle if step.kind is StepKind.RULE else 0
    text = texts.text(step.nfproto, step.table, step.chain, handle) if handle else ""
    verdict = f"{step.verdict} {step.target}".rstrip()
    owner = owner_by_text(table, step.chain, text)
    return Passed("nf_tables", hook, table, step.chain, step.kind, verdict, handle, 0, text, owner)


def _legacy(step: LegacyStep, hook: str, texts: RuleTexts) -> Passed:
    """The kernel reports a rule without any match, such as `-j DROP`, as if it were the policy or the end of the chain;
    only its number tells."""
    chain = texts.legacy(step.table, step.chain)
    text = chain.rules[step.number - 1] if 0 < step.number <= len(chain.rules) else ""
    kind = StepKind.RULE if text else step.kind
    verdict = chain.policy.lower() if kind is StepKind.POLICY else "return"
    if kind is StepKind.RULE:
        verdict = _legacy_verdict(text, lambda target: texts.has_legacy_chain(step.table, target))
    number = step.number if kind is StepKind.RULE else 0
    owner = owner_by_text(step.table, step.chain, text)
    return Passed(_LEGACY, hook, step.table, step.chain, kind, verdict, 0, number, text, owner)


def _legacy_verdict(text: str, is_chain: Callable[[str], bool]) -> str:
    """Return the effect of a rule: a verdict, a jump, or the name of another target, such as MARK or LOG."""
    option, target = _legacy_target(text)
    if not target:
        return "continue"
    if is_chain(target):
        return f"{'goto' if option == '-g' else 'jump'} {target}"
    return "accept" if _NAT.search(target) else _LEGACY_VERDICTS.get(target, target)


def _legacy_target(text: str) -> tuple[str, str]:
    """Return `-j` or `-g` and the target behind it; empty for a rule without one, or that cannot be read."""
    with contextlib.suppress(CommandError):
        return next((found for found in save_format.options(text) if found[0] in ("-j", "-g")), ("", ""))
    return "", ""


def _fate(journey: Journey, steps: tuple[Passed, ...]) -> Fate:
    if journey.end is not None:
        translated = translated_source(journey) or translated_destination(journey)
        return Fate.TRANSLATED if translated else Fate.DELIVERED
    last = steps[-1].verdict if steps else ""
    if last == "drop":
        return Fate.DROPPED
    return Fate.QUEUED if last in ("queue", "stolen") else Fate.LOST


def _deciding(journey: Journey, fate: Fate, steps: tuple[Passed, ...]) -> Iterator[Passed]:
    """Yield the rule that ended the packet, or the rules that translated its destination and source."""
    if fate in (Fate.DROPPED, Fate.QUEUED):
        yield steps[-1]
    if translated_destination(journey):
        yield from _translating(steps, _DESTINATION_HOOKS)
    if translated_source(journey):
        yield from _translating(steps, _SOURCE_HOOKS)


def _translating(steps: tuple[Passed, ...], hooks: tuple[str, ...]) -> Iterator[Passed]:
    """Yield the first rule in these hooks that translates."""
    rules = (step for step in steps if step.hook in hooks and step.kind is StepKind.RULE)
    translating = [step for step in rules if step.verdict == "accept" and _NAT.search(_statements(step))]
    yield from translating[:1]


def _statements(step: Passed) -> str:
    """Return what a rule does: its target in ip_tables, else its text without comments and the prefixes of logs."""
    return _legacy_target(step.text)[1] if step.backend == _LEGACY else _QUOTED.sub("", step.text)
