"""The iptables backends: one base class, and for each flavour a subclass that reads what it keeps in the kernel.

Their code is loaded with the plugin. A daemon that waits for its first lease during an upgrade must not load a newer
one.
"""

from __future__ import annotations

from collections.abc import Sequence

from flanneld_masq.hookspecs import BackendType, hookimpl
from flanneld_masq_iptables import legacy_backend, nft_backend


@hookimpl
def flanneld_masq_backends() -> Sequence[BackendType]:
    return [
        BackendType(nft_backend.NAME, "iptables over nf_tables", nft_backend.IptablesNft, preference=20),
        BackendType(
            legacy_backend.NAME,
            "iptables over the kernel's older ip_tables",
            legacy_backend.IptablesLegacy,
            preference=30,
        ),
    ]
