"""The iptables backends: one base class, and for each flavour a subclass that reads what it keeps in the kernel.

A backend's code is loaded when the backend is first used: `render` and `explain` may need only another one.
"""

from __future__ import annotations

from collections.abc import Sequence

from flanneld_masq.hookspecs import Backend, BackendType, Host, hookimpl
from flanneld_masq.model import Family
from flanneld_masq_iptables.names import LEGACY, NF_TABLES


@hookimpl
def flanneld_masq_backends() -> Sequence[BackendType]:
    return [
        BackendType(NF_TABLES, "iptables over nf_tables", _nf_tables, preference=20),
        BackendType(LEGACY, "iptables over the kernel's older ip_tables", _legacy, preference=30),
    ]


def _nf_tables(family: Family, host: Host) -> Backend:
    from flanneld_masq_iptables.nft_backend import IptablesNft

    return IptablesNft(family, host)


def _legacy(family: Family, host: Host) -> Backend:
    from flanneld_masq_iptables.legacy_backend import IptablesLegacy

    return IptablesLegacy(family, host)
