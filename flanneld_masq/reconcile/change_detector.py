"""Tells, far cheaper than a pass, whether a pass would find a difference."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from flanneld_masq.errors import KernelError, MasqError
from flanneld_masq.hookspecs import Backend
from flanneld_masq.model import BackendName
from flanneld_masq.reconcile.selection import BackendSelector
from flanneld_masq.reconcile.values import Fingerprint
from flanneld_masq.reconcile.writer import OwnCommits


class ChangeDetector:
    """Detects changes in the backends of one family. No method may run while a pass does, except `made`."""

    def __init__(self, backends: Mapping[BackendName, Backend], selector: BackendSelector, commits: OwnCommits) -> None:
        self._backends = backends
        self._selector = selector
        self._commits = commits

    def generation(self) -> int | None:
        """Return the generation of the nf_tables ruleset; None if no backend can read one."""
        for backend in self._backends.values():
            with contextlib.suppress(MasqError):  # if the backend is in use, its pass meets the error
                generation = backend.generation()
                if generation is not None:
                    return generation
        return None

    def made(self, generation: int) -> bool:
        """Return True if a reconciler of this process made the generation."""
        return generation in self._commits

    def fingerprint(self) -> Fingerprint:
        """Read what differs whenever a pass would find a difference in a backend with events."""
        return tuple(map(self._read, self._backends))

    def fingerprint_at(self, generation: int | None) -> Fingerprint:
        """Read the fingerprint of that generation; empty if another one came meanwhile, or if there is none."""
        if generation is None:
            return ()
        try:
            fingerprint = self.fingerprint()
        except KernelError:
            return ()  # another program commits at this very moment, and the event of that is on its way
        return fingerprint if self.generation() == generation else ()

    def fingerprint_again(self, before: Fingerprint) -> Fingerprint:
        """Read the fingerprint again up to the first difference, and copy the rest from `before`.

        Backends in use come first.
        """
        fingerprints = dict(zip(self._backends, before))
        for name in sorted(fingerprints, key=lambda name: name not in self._selector.assignment):
            now = self._read(name)
            if now != fingerprints[name]:
                fingerprints[name] = now
                break
        return tuple(fingerprints.values())

    def poll(self) -> bool:
        """Return True if rules may have moved in a backend that has no events. One that carries no group matters too:
        it may begin to drop forwarded packets."""
        return any(map(self.polled, self._backends))

    def polls(self) -> bool:
        """Return True if a backend has no events, and holds rules of whichever program."""
        return any(self.polled(name) is not None for name in self._backends)

    def polled(self, name: BackendName) -> bool | None:
        """Return the result of `poll` of one backend. For a backend that is not in use, None also if `poll` fails."""
        if name in self._selector.assignment:
            return self._backends[name].poll()
        with contextlib.suppress(MasqError):
            return self._backends[name].poll()
        return None

    def missed_drop(self) -> bool:
        """Return True if a backend without events drops something else than the choice of the last pass went by.

        A pass reads the evidence before it reads the rest, so `poll` does not report what begins to drop in between.
        """
        return any(map(self._drops_otherwise, self._selector.evidence))

    def _drops_otherwise(self, name: BackendName) -> bool:
        """Compare the evidence of one backend. An error is no change: the next pass goes by the last answer too."""
        backend = self._backends[name]
        with contextlib.suppress(MasqError):
            return backend.poll() is not None and backend.drops_forwarding() != self._selector.evidence[name]
        return False

    def _read(self, name: BackendName) -> bytes | None:
        """Return the fingerprint of one backend; None if it cannot be read. For a backend that is not in use it covers
        the evidence for its choice, and rules of the daemon that are there."""
        groups = self._selector.assignment.get(name)
        if groups is not None:
            return self._backends[name].fingerprint(groups)
        with contextlib.suppress(MasqError):
            return self._backends[name].fingerprint(frozenset())
        return None
