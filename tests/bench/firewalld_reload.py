"""The programs that firewalld runs at `firewall-cmd --reload`, in its order. A program by itself.

After `reload` in src/firewall/core/fw.py of firewalld, and `build_flush_rules` of its backends. With its backend
nftables, the default, it replaces its own table and touches no other. With its backend iptables it flushes each table
and removes each chain, by one iptables-restore. In both cases new connections are dropped from before that until its
own rules are there. firewalld itself is not run: the pause stands for what it does in between.
"""

from __future__ import annotations

import subprocess
import sys
import time

_WORK_SECONDS = 0.5  # in which firewalld reads its configuration
_TRIES = 3  # iptables-nft fails now and then where another program commits at the same time
_TABLES = ("security", "raw", "mangle", "nat", "filter")
_CHAINS = ("INPUT", "FORWARD", "OUTPUT")
_OWN = "add table inet firewalld; add chain inet firewalld filter_FORWARD"
_HOLD = """\
add table inet firewalld_policy_drop
add chain inet firewalld_policy_drop filter_forward { type filter hook forward priority 9; policy drop; }
add chain inet firewalld_policy_drop filter_output { type filter hook output priority 9; policy drop; }
add rule inet firewalld_policy_drop filter_forward ct state established,related accept
add rule inet firewalld_policy_drop filter_output ct state established,related accept
"""


def by_nftables() -> None:
    _nft(_HOLD)
    _nft("add table inet firewalld; delete table inet firewalld")
    time.sleep(_WORK_SECONDS)
    _nft(_OWN)
    _nft("delete table inet firewalld_policy_drop")


def by_iptables(flavour: str) -> None:
    _restore(flavour, "filter", [f"-P {chain} DROP" for chain in _CHAINS])
    for table in _TABLES:
        # The bench keeps its own rule in mangle of legacy: see traffic.py.
        if table != "mangle":
            _restore(flavour, table, ["-F", "-X", "-Z"])
    time.sleep(_WORK_SECONDS)
    _restore(flavour, "filter", ["-N FWD_public", "-A FORWARD -j FWD_public"])
    _restore(flavour, "filter", [f"-P {chain} ACCEPT" for chain in _CHAINS])


def _nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def _restore(flavour: str, table: str, lines: list[str]) -> None:
    text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
    argv = [f"iptables-{flavour}-restore", "-w", "-n"]
    for _ in range(_TRIES):
        if subprocess.run(argv, input=text, text=True, check=False).returncode == 0:
            return
    sys.exit(f"{argv[0]}: failed {_TRIES} times")


if __name__ == "__main__":
    if sys.argv[1] == "nftables":
        by_nftables()
    else:
        by_iptables(sys.argv[1])
