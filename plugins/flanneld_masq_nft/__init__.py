"""The native nftables backend: a private table per family, written and read over netlink."""

from __future__ import annotations

from collections.abc import Sequence

from flanneld_masq.hookspecs import BackendType, hookimpl
from flanneld_masq_nft.backend import NAME, NftBackend


@hookimpl
def flanneld_masq_backends() -> Sequence[BackendType]:
    return [BackendType(NAME, "native nftables, a table of its own", NftBackend, preference=10)]
