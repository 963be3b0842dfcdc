"""The suite that is shipped for authors of backends, run against the built-in ones on the real kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flanneld_masq.model import BackendName, Family
from flanneld_masq.selftest import fault_injection
from flanneld_masq.testing import BackendConformance, Bench

from .conftest import Node


class TestOnTheKernel(BackendConformance):
    @pytest.fixture
    def bench(self, node: Node, backend_name: BackendName, family: Family) -> Iterator[Bench]:
        tools = fault_injection.tools(backend_name, family, node.run)
        assert tools is not None
        damages = dict(tools.damages)
        with node.entered():
            yield Bench(
                node.backends(family)[backend_name],
                delete_rule=damages.pop("rule deleted"),
                duplicate_rule=damages.pop("rule duplicated"),
                flush=damages.pop("chain flushed"),
                add_foreign=tools.add_foreign,
                foreign=tools.foreign,
                other_damages=damages,
            )
