"""Selects the backend of each group: probes the backends and gathers the evidence for `backend_choice`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flanneld_masq.errors import MasqError
from flanneld_masq.hookspecs import Backend
from flanneld_masq.model import AUTO, BackendName, Family, Group, MarkEvidence, Probe, Protection, Settings
from flanneld_masq.reconcile.values import Assignment, Choices, DesiredState
from flanneld_masq.ruleset import backend_choice, mark_choice, policy
from flanneld_masq.ruleset.mark_choice import MarkChoice


class BackendSelector:
    """Selects the backends of one family, for one thread. `backends` are in the order of preference.

    `assignment` has the groups that each backend carries since the last pass that succeeded. `unsettled` is True while
    every backend must be read, even if nothing seems to have changed: at the start, after `recheck` and `reprobe`, and
    during a switch. `leaving` is True if the last choice kept the forward group where nothing drops any more.
    """

    def __init__(self, family: Family, backends: Mapping[BackendName, Backend], missing: Callable[[], str]) -> None:
        self.assignment: Assignment = {}
        self.unsettled = True
        self._family = family
        self._backends = backends
        self._missing = missing
        self._probes: dict[BackendName, Probe] = {}
        self._evidence: dict[BackendName, str] = {}  # the last readable answer of each `drops_forwarding`
        self._dropped: dict[BackendName, str] = {}  # the last evidence of each that was not empty
        self.leaving = False
        self._weighed = False  # the last choice depended on the evidence
        self._marks: dict[BackendName, MarkEvidence | None] = {}  # the last readable answer of each `kube_proxy_mark`
        self._unread: MasqError | None = None  # why a backend's evidence is missing that was never readable

    def probe(self, name: BackendName) -> Probe:
        """Return what the backend said when it was first needed since `reprobe`."""
        probe = self._probes.get(name)
        if probe is None:
            probe = self._probes[name] = self._ask(name)
        return probe

    def probes(self) -> dict[BackendName, Probe]:
        """Return the probe of every backend, in the order of preference."""
        return {name: self.probe(name) for name in self._backends}

    def reprobe(self) -> None:
        """Forget the probes, because tools come and go. The next pass reads all backends."""
        self._probes.clear()
        self.recheck()

    def recheck(self) -> None:
        """Make the next pass read all backends."""
        self.unsettled = True

    def usable(self) -> tuple[Backend, ...]:
        """Return the backends that can be used, in the order of preference."""
        return tuple(backend for name, backend in self._backends.items() if self.probe(name).usable)

    def randomises(self, name: BackendName) -> bool:
        """Return True if the backend can masquerade to fully random ports here."""
        return self.probe(name).random_fully

    def offered(self, names: Iterable[BackendName]) -> Protection | None:
        """Return the protection that the first of these backends offers that has tables of its own; None for none."""
        return next((offered for name in names if (offered := self.probe(name).protection) is not None), None)

    def protection(self, settings: Settings, names: Iterable[BackendName]) -> Protection | None:
        """Return the protection of the tables of these backends; None if none of them has tables of its own."""
        offered = self.offered(names)
        return None if offered is None else policy.protection(settings, offered)

    @property
    def evidence(self) -> Mapping[BackendName, str]:
        """The last answer of each backend's `drops_forwarding`; empty if the last choice did not depend on them."""
        return self._evidence if self._weighed else {}

    @property
    def unhelped(self) -> tuple[str, ...]:
        """The drops of forwarded packets where no accept can be put, each with the reason and the remedy."""
        return tuple(
            f"{evidence}, where only an accept lets pods' packets pass, but {name} cannot be used ({probe.reason}); "
            f"{probe.remedy}"
            for name, evidence in self.evidence.items()
            if evidence and not (probe := self.probe(name)).usable
        )

    def choices(self, desired_state: DesiredState, *, stay: bool = False) -> Choices:
        """Return the backends of each group; nothing for a family that no lease names. Raise what `choose` raises.

        With `stay` the forward group does not leave a backend because nothing drops there any more.
        """
        if not any(lease.of(self._family) for lease in desired_state.leases):
            self._unread, self._weighed, self.leaving = None, False, False
            return {}
        return self.candidates(desired_state.settings, desired_state.flannel_uses_nftables, stay=stay)

    def candidates(self, settings: Settings, flannel_uses_nftables: bool, *, stay: bool = False) -> Choices:
        """Return the backends that each group would get if a lease named the family. Raise what `choose` raises."""
        self._unread = None
        self._weighed = settings.forward.enabled and settings.forward.backend == AUTO
        drops = self.drops() if self._weighed else {}
        left = {name: self._dropped[name] for name in self._left(drops)} if self._weighed and stay else {}
        self.leaving = bool(left)
        drops = {name: drops.get(name) or left[name] for name in self._backends if name in drops or name in left}
        return backend_choice.choose(
            settings, self._backends, self.probe, flannel_uses_nftables=flannel_uses_nftables, drops=drops
        )

    def drops(self) -> dict[BackendName, str]:
        """Read in each usable backend what drops forwarded packets, because docker and the like come and go.

        An answer that cannot be read is taken to be the last one that could. If there was none, `check_evidence`
        raises the error.
        """
        for name, backend in self._backends.items() if not self._missing() else ():
            try:
                self._evidence[name] = backend.drops_forwarding()
            except MasqError as error:
                if name not in self._evidence and self.probe(name).usable:
                    self._unread = error
        drops = {name: evidence for name, evidence in self._evidence.items() if evidence and self.probe(name).usable}
        self._dropped.update(drops)
        return drops

    def _left(self, drops: Mapping[BackendName, str]) -> list[BackendName]:
        """Return the usable backends with the forward group in which something dropped, and nothing does now."""
        carriers = (name for name, groups in self.assignment.items() if Group.FORWARD in groups and name not in drops)
        return [name for name in carriers if name in self._dropped and self.probe(name).usable]

    def kube_proxy_mark(self, settings: Settings) -> MarkChoice:
        """Return the mark that the masquerade rules test. For "auto", read kube-proxy's rules in each backend, usable
        or not; an answer that cannot be read is taken to be the last one that could."""
        masquerade, unread = settings.masquerade, ""
        auto = masquerade.kube_proxy_mark == "auto" and policy.masquerades(masquerade, self._family)
        for name, backend in self._backends.items() if auto and not self._missing() else ():
            try:
                self._marks[name] = backend.kube_proxy_mark()
            except MasqError as error:
                unread = unread if name in self._marks else str(error)
        evidence = (found for name in self._backends if (found := self._marks.get(name)) is not None)
        return mark_choice.choose(masquerade, evidence, unread)

    def check_evidence(self) -> None:
        """Raise the error that left the last choice without evidence: no rule may be removed because of it."""
        if self._unread is not None:
            raise self._unread

    def adopt(self, assignment: Assignment, *, settled: bool = True) -> None:
        """Note that a pass has brought the backends to this assignment; `settled` if no other holds any rule."""
        self.assignment = assignment
        self.unsettled = not settled

    def _ask(self, name: BackendName) -> Probe:
        missing = self._missing()
        if missing:
            return Probe(False, missing, "boot a kernel with it, or leave the family out of the subnet file")
        return self._backends[name].probe()


def assignment_of(choices: Choices) -> Assignment:
    """Return the groups of each backend that the choices name."""
    groups: dict[BackendName, frozenset[Group]] = {}
    for group, chosen in choices.items():
        for choice in chosen:
            groups[choice.backend] = groups.get(choice.backend, frozenset()) | {group}
    return groups


def missing_family(root: Path, family: Family) -> str:
    """Return why the kernel cannot carry the family at all; empty if it can."""
    if (root / family.data.proc).exists():
        return ""
    return f"the kernel runs without {family} (/{family.data.proc} is missing)"
