"""flannel's own configuration, net-conf.json. It says whether flannel runs in its nftables mode."""

from __future__ import annotations

import json
from pathlib import Path

from flanneld_masq.errors import ConfigError


def flannel_uses_nftables(net_conf: Path) -> bool:
    """Return True if the file says `"EnableNFTables": true`; False without a file.

    Raises ConfigError if the file cannot be read as JSON. Format: flannel's Documentation/configuration.md.
    """
    try:
        content = json.loads(net_conf.read_text())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(str(net_conf), "", f"cannot be read as JSON: {error}") from error
    return isinstance(content, dict) and content.get("EnableNFTables") is True
