"""The iptables backends: one module of rules, one of programs, and a transport per flavour."""

from __future__ import annotations

from collections.abc import Sequence

from flanneld_masq.hookspecs import BackendType, hookimpl
from flanneld_masq_iptables import legacy_backend as legacy
from flanneld_masq_iptables import nft_backend as nft


@hookimpl
def flanneld_masq_backends() -> Sequence[BackendType]:
    return [
        BackendType(nft.NAME, "iptables over nf_tables", nft.IptablesNft, preference=20),
        BackendType(legacy.NAME, "iptables over the kernel's older ip_tables", legacy.IptablesLegacy, preference=30),
    ]
