"""The names of the backends."""

from __future__ import annotations

from flanneld_masq.model import BackendName

NF_TABLES = BackendName("iptables-nft")
LEGACY = BackendName("iptables-legacy")
