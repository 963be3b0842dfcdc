"""The processes that flannel starts in its iptables mode, in its order, again and again. A program by itself.

After pkg/trafficmngr/iptables in flannel. At the start each chain is emptied or made, and its rules are written:
`-S CHAIN 1` and `-C` for each rule, then one iptables-restore that deletes those that exist and appends all. Every
resync `-S CHAIN 1` and `-C` for each rule, up to the first one that is missing; where one is, the rules are
written as at the start, into a chain that is made if it is missing. flannel is written in Go, so what this program
itself uses is of no interest: it counts its children. flannel's two loops, for nat and filter, are one after the
other here.

Each resync prints a line of JSON: when it began and ended, whether it wrote, and the processes and their CPU
seconds since the start. With `nftables` it does what flannel's nftables mode does: writes once, and waits.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time

RESYNC_SECONDS = 5.0
Rules = tuple[tuple[str, str], ...]
CLUSTER, PODS = "10.244.0.0/16", "10.244.1.0/24"
MASQ, FORWARD = '-m comment --comment "flanneld masq" -j', '-m comment --comment "flanneld forward" -j'
# (table, flannel's chain, rules as (chain, specification))
TABLES = (
    (
        "nat",
        "FLANNEL-POSTRTG",
        (
            ("POSTROUTING", f"{MASQ} FLANNEL-POSTRTG"),
            ("FLANNEL-POSTRTG", f"-m mark --mark 0x4000/0x4000 {MASQ} RETURN"),
            ("FLANNEL-POSTRTG", f"-s {PODS} -d {CLUSTER} {MASQ} RETURN"),
            ("FLANNEL-POSTRTG", f"-s {CLUSTER} -d {PODS} {MASQ} RETURN"),
            ("FLANNEL-POSTRTG", f"! -s {CLUSTER} -d {PODS} {MASQ} RETURN"),
            ("FLANNEL-POSTRTG", f"-s {CLUSTER} ! -d 224.0.0.0/4 {MASQ} MASQUERADE --random-fully"),
            ("FLANNEL-POSTRTG", f"! -s {CLUSTER} -d {CLUSTER} {MASQ} MASQUERADE --random-fully"),
        ),
    ),
    (
        "filter",
        "FLANNEL-FWD",
        (
            ("FORWARD", f"{FORWARD} FLANNEL-FWD"),
            ("FLANNEL-FWD", f"-s {CLUSTER} {FORWARD} ACCEPT"),
            ("FLANNEL-FWD", f"-d {CLUSTER} {FORWARD} ACCEPT"),
        ),
    ),
)
NFTABLES = f"""\
table ip flannel-ipv4 {{
    chain postrtg {{
        type nat hook postrouting priority srcnat; policy accept;
        meta mark 0x4000 return
        ip saddr {PODS} ip daddr {CLUSTER} return
        ip saddr {CLUSTER} ip daddr {PODS} return
        ip saddr != {PODS} ip daddr {CLUSTER} return
        ip saddr {CLUSTER} ip daddr != 224.0.0.0/4 masquerade fully-random
        ip saddr != {CLUSTER} ip daddr {CLUSTER} masquerade fully-random
    }}
}}
"""


class Replay:
    def __init__(self, flavour: str) -> None:
        self.tool = f"iptables-{flavour}"
        self.processes = 0

    def start(self) -> None:
        for table, chain, rules in TABLES:
            self._clear(table, chain)
            self._write(table, chain, rules)

    def resync(self) -> bool:
        """Check each rule as flannel does. Return True if one was missing, so that the rules were written."""
        wrote = False
        for table, chain, rules in TABLES:
            if not all(self._exists(table, chain, *rule) for rule in rules):
                self._write(table, chain, rules)
                wrote = True
        return wrote

    def report(self, began: float, wrote: bool) -> None:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        line = {"began": began, "ended": time.monotonic(), "wrote": wrote}
        print(json.dumps({**line, "processes": self.processes, "cpu": used.ru_utime + used.ru_stime}), flush=True)

    def _write(self, table: str, chain: str, rules: Rules) -> None:
        lines = []
        for place, rule in rules:
            if not self._chain_exists(table, chain):
                self._clear(table, chain)
            if self._succeeds(table, f"-C {place} {rule}"):
                lines.append(f"-D {place} {rule}")
            lines.append(f"-A {place} {rule}")
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        self._run([f"{self.tool}-restore", "--noflush", "--wait"], text.encode())

    def _exists(self, table: str, chain: str, place: str, rule: str) -> bool:
        return self._chain_exists(table, chain) and self._succeeds(table, f"-C {place} {rule}")

    def _chain_exists(self, table: str, chain: str) -> bool:
        return self._succeeds(table, f"-S {chain} 1")

    def _clear(self, table: str, chain: str) -> None:
        if not self._succeeds(table, f"-N {chain}"):
            self._succeeds(table, f"-F {chain}")

    def _succeeds(self, table: str, arguments: str) -> bool:
        return self._run([self.tool, "-t", table, *shlex.split(arguments), "--wait"], b"")

    def _run(self, argv: list[str], text: bytes) -> bool:
        self.processes += 1
        ended = subprocess.run(argv, input=text, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        return ended.returncode == 0


def main(flavour: str) -> None:
    began = time.monotonic()
    replay = Replay(flavour)
    if flavour == "nftables":
        subprocess.run(["nft", "-f", "-"], input=NFTABLES.encode(), check=True)
        replay.report(began, True)
        signal.pause()
    replay.start()
    wrote = True
    while True:
        replay.report(began, wrote)
        signal.sigtimedwait([], RESYNC_SECONDS)  # flannel waits for as long after each resync
        began = time.monotonic()
        wrote = replay.resync()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    main(sys.argv[1])
