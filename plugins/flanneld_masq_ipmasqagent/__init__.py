"""Destinations that pods reach with their own address, from configuration files of ip-masq-agent.

Off unless `masquerade.ip_masq_agent_files` names any: the parser is loaded only then.
"""

from __future__ import annotations

from collections.abc import Sequence

from flanneld_masq.hookspecs import hookimpl
from flanneld_masq.model import Network, Settings


@hookimpl
def flanneld_masq_non_masquerade_cidrs(settings: Settings) -> Sequence[Network]:
    if not settings.masquerade.ip_masq_agent_files:
        return ()
    from flanneld_masq_ipmasqagent import files

    return files.networks(settings.masquerade.ip_masq_agent_files)


@hookimpl
def flanneld_masq_watched_files(settings: Settings) -> Sequence[str]:
    return settings.masquerade.ip_masq_agent_files
