"""Finds and removes the rules that flannel and the CNI bridge plugin keep, in the backends that can be used."""

from __future__ import annotations

from collections.abc import Iterable

from flanneld_masq.hookspecs import Backend
from flanneld_masq.model import FamilyLease, Lease
from flanneld_masq.reconcile.values import DesiredState, Effects, Removed, Surveys
from flanneld_masq.ruleset import flannel_effect


def survey_backends(backends: Iterable[Backend], leases: tuple[Lease, ...]) -> Surveys:
    """Read what flannel and the CNI bridge plugin keep in each backend. Raise MasqError if one cannot be read."""
    return tuple((backend, backend.survey(_leases_of(backend, leases))) for backend in backends)


def flannel_effects(surveys: Surveys, desired_state: DesiredState) -> Effects:
    """Compare flannel's masquerade rules in each backend that has any with the policy. Pure."""
    return {
        backend.name: flannel_effect.evaluate(
            survey.flannel_nat,
            desired_state.settings,
            desired_state.leases,
            backend.family,
            desired_state.exceptions,
        )
        for backend, survey in surveys
        if survey.flannel_nat
    }


def remove_flannel_rules(backends: Iterable[Backend], leases: tuple[Lease, ...]) -> Removed:
    """Remove the rules that any release of flannel wrote, and return them. Raise MasqError if that fails."""
    removed = []
    for backend, survey in survey_backends(backends, leases):
        if survey.flannel:
            backend.remove(survey.flannel)
            removed.append((backend.name, survey.flannel))
    return tuple(removed)


def _leases_of(backend: Backend, leases: tuple[Lease, ...]) -> tuple[FamilyLease, ...]:
    return tuple(family_lease for lease in leases if (family_lease := lease.of(backend.family)) is not None)
