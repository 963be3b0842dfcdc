"""A quarter of Hypothesis' usual examples, and a tenth in `make check`, so the layer takes seconds and runs often.

No limit of time for one of them, which a busy machine would miss. No test of this layer reaches the connections of the
machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

from flanneld_masq.kernel import conntrack

from ..common import amount

settings.register_profile(
    "unit",
    max_examples=amount(25, quick=10),
    database=None,
    print_blob=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")


class NoConnections:
    """A netlink socket of a kernel that tracks no connection."""

    def dump(self, attempt: str, kind: int, nfproto: int, body: bytes) -> Iterator[list[bytes]]:
        return iter(())

    def close(self) -> None: ...


# Not for the session: kernel tests may follow in this process. pytest 6.0 has no MonkeyPatch for a module.
@pytest.fixture(autouse=True, scope="module")
def no_connections_of_the_machine() -> Iterator[None]:
    with mock.patch.object(conntrack, "NetlinkSocket", NoConnections):
        yield
