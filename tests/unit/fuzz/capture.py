"""Captures the files of `corpus/` that real programs and the kernel make. Run it as root, from the top of the tree:

unshare -n -m .venv/bin/python -m tests.unit.fuzz.capture

It writes the rulesets below with the real tools, and keeps what the kernel and the tools then answer. Files whose names
begin with `found-` are inputs that once failed, and those that begin with `made-` were written by hand: both stay.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from flanneld_masq_iptables.sockopt import TableInfo

from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.reload_signals import FIREWALLD, FIREWALLD_PATH, SYSTEMD, SYSTEMD_PATH
from flanneld_masq.dbus.wire import Frame, Splitter
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.fingerprint import FingerprintRequest
from flanneld_masq.kernel.flow_match import Flow
from flanneld_masq.kernel.netlink_socket import NetlinkSocket, _open_socket
from flanneld_masq.kernel.netlink_wire import nfnl_msg_type, nft_msg_type
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.objects import parse_rule, rules_key
from flanneld_masq.kernel.ruleset_events import RulesetEvents
from flanneld_masq.kernel.trace_events import TraceSocket
from flanneld_masq.live.legacy_log import LegacyLog
from flanneld_masq.live.own_table import trace_table
from flanneld_masq.model import Family

from ...attacker import message
from ...attacker import text as encoded
from ...bus import Bus
from ...common import eventually
from .inputs import CORPUS

_ADDRESSES = {Family.IPV4: ("10.244.0.0/16", "10.244.1.0/24"), Family.IPV6: ("fd00::/56", "fd00:0:0:1::/64")}
_FILTER = r"""*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:FLANNELD-MASQ-FWD - [0:0]
:KUBE-FORWARD - [0:0]
:odd"name - [0:0]
-A INPUT -p tcp -m tcp --dport 22 --syn -m comment --comment "ssh \"in\" \\ 'quoted'" -j ACCEPT
-A INPUT -p udp -m multiport --dports 53,67:68 -m limit --limit 5/min -j LOG --log-prefix "dns: " --log-level 6
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m comment --comment flanneld-masq:0123456789ab -j FLANNELD-MASQ-FWD
-A FORWARD ! -i eth0 -o cni+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -g "odd\"name"
-A FLANNELD-MASQ-FWD -m conntrack --ctstate INVALID -m comment --comment flanneld-masq:1123456789ab -j DROP
-A FLANNELD-MASQ-FWD -s @NETWORK@ -m comment --comment flanneld-masq:2123456789ab -j ACCEPT
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m string --string "GET / \"x" --algo bm -j DROP
-A "odd\"name" -m statistic --mode random --probability 0.33333333349 -j NFQUEUE --queue-num 3
-A "odd\"name" -j REJECT
COMMIT
"""
_NAT = r"""*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:FLANNEL-POSTRTG - [0:0]
:FLANNELD-MASQ - [0:0]
:KUBE-MARK-MASQ - [0:0]
:CNI-0123456789abcdef01234567 - [0:0]
-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -j REDIRECT --to-ports 80
-A POSTROUTING -s @SUBNET@ -m comment --comment "name: \"cbr0\" id: \"x\"" -j CNI-0123456789abcdef01234567
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A POSTROUTING -m comment --comment flanneld-masq:3123456789ab -j FLANNELD-MASQ
-A POSTROUTING -s @NETWORK@ ! -d @NETWORK@ -j MASQUERADE
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s @SUBNET@ -d @NETWORK@ -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s @NETWORK@ -d @NETWORK@ -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNELD-MASQ -m mark --mark 0x4000/0x4000 -m comment --comment flanneld-masq:4123456789ab -j RETURN
-A FLANNELD-MASQ -s @NETWORK@ -m comment --comment flanneld-masq:5123456789ab -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
COMMIT
"""
_NFT = """
table @FAMILY@ flanneld-masq {
    comment "flanneld-masq:0123456789ab"
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        meta mark & 0x00004000 == 0x00004000 return comment "flanneld-masq:1123456789ab"
        @FAMILY@ saddr @SUBNET@ @FAMILY@ daddr @NETWORK@ return comment "flanneld-masq:2123456789ab"
        @FAMILY@ saddr @NETWORK@ masquerade fully-random comment "flanneld-masq:3123456789ab"
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid counter drop
        tcp dport { 80, 443 } counter log prefix "web " accept
        iifname "cni*" meta l4proto vmap { tcp : jump other, udp : goto other }
        limit rate 5/second burst 10 packets drop
        reject
    }
    chain other { @FAMILY@ daddr != @SUBNET@ counter continue; meta skuid 0-1000 drop; }
}
table @FAMILY@ kube-proxy {
    chain mark-for-masquerade { mark set mark or 0x4000; }
    chain masquerading {
        mark and 0x4000 == 0 return
        mark set mark xor 0x4000
        masquerade fully-random
    }
}
"""
_BUS, _BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
_MAX_FRAME = 65536
_HEADERS = 20  # bytes of a message of nfnetlink before its attributes
_Ask = Callable[[Nfnetlink], object]
_TABLES = {"nat": ("POSTROUTING", "FLANNELD-MASQ", "KUBE-MARK-MASQ"), "filter": ("FORWARD", "FLANNELD-MASQ-FWD")}


class _Recorder:
    """A netlink socket that keeps what the kernel answers."""

    def __init__(self) -> None:
        self._socket = _open_socket()
        self.datagrams: list[bytes] = []

    def recvmsg(self, size: int) -> Any:
        answer = self._socket.recvmsg(size)
        self.datagrams.append(answer[0])
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def _run(*argv: str, stdin: str = "") -> str:
    return subprocess.run(argv, input=stdin, text=True, check=True, stdout=subprocess.PIPE).stdout


def _keep(target: str, name: str, data: bytes) -> None:
    directory = CORPUS / target
    directory.mkdir(parents=True, exist_ok=True)
    if data not in [path.read_bytes() for path in directory.iterdir()]:
        (directory / name).write_bytes(data)


def _filled(text: str, family: Family) -> str:
    network, subnet = _ADDRESSES[family]
    return text.replace("@NETWORK@", network).replace("@SUBNET@", subnet).replace("@FAMILY@", family.data.nft)


def _answer(ask: _Ask) -> tuple[bytes, ...]:
    """Return the datagrams that answer the first request of a socket."""
    recorder = _Recorder()
    netlink = Nfnetlink(NetlinkSocket(recorder))  # type: ignore[arg-type]
    try:
        ask(netlink)
    except Exception as error:  # the kernel's refusals are wanted too
        print(f"  {error}")
    return tuple(recorder.datagrams)


def _rules(family: Family, table: str) -> Iterator[bytes]:
    """Yield the attributes of each rule whose expressions are of a new kind."""
    seen = set()
    kind = nft_msg_type(uapi.NFT_MSG_GETRULE)
    for reply in NetlinkSocket().request("dumping rules", kind, family.data.nfproto, rules_key(table), dump=True):
        kinds = tuple(expression.name for expression in parse_rule(reply)[1].expressions)
        if kinds not in seen:
            seen.add(kinds)
            yield reply


def _nf_tables(family: Family, flavour: str, tables: Mapping[str, tuple[str, ...]]) -> None:
    name = f"{flavour}-{family}"
    for table, chains in tables.items():
        for number, reply in enumerate(_rules(family, table)):
            _keep("netlink-rule", f"{name}-{table}-{number}", reply)
        request = FingerprintRequest.of_table(family, table, chains[:1], chains[-1:])
        asked: Mapping[str, _Ask] = {
            "table": partial(Nfnetlink.table, family=family, name=table),
            "rules": partial(Nfnetlink.rules, family=family, table=table, chain=chains[-1]),
            "fingerprint": partial(Nfnetlink.fingerprint, request=request),
            "absent": partial(Nfnetlink.delete, family=family, table=table, rules=((chains[0], 9999),)),
        }
        for what, ask in asked.items():
            _keep("netlink-answer", f"{name}-{table}-{what}", b"".join(_answer(ask)))
        everything = b"".join(_answer(asked["table"]))
        _keep("netlink-table", f"{name}-{table}", everything[_HEADERS:])
        for chain in chains:
            (data,) = _answer(partial(Nfnetlink.chain, family=family, table=table, name=chain))
            _keep("netlink-chain", f"{name}-{table}-{chain}", data[_HEADERS:])
            rules = _answer(partial(Nfnetlink.rules, family=family, table=table, chain=chain))
            everything += data + b"".join(rules)
        _keep("netlink-answer", f"{name}-{table}-everything", everything)


def _events(write: Callable[[], object], name: str) -> None:
    events = RulesetEvents()
    write()
    for number in range(3):
        try:
            _keep("ruleset-event", f"{name}-{number}", events._socket.recv(4096))
        except BlockingIOError:
            break
    events.close()


def _connections(family: Family) -> None:
    """Track two connections over the loopback device, one of them answered, and keep how the kernel lists them."""
    _run("ip", "link", "set", "lo", "up")
    chain = "chain o { type nat hook postrouting priority 0; ct state new accept; }"
    _run("nft", "-f", "-", stdin=f"table {family.data.nft} x {{ {chain}; }}")
    loopback, kind = ("127.0.0.1", socket.AF_INET) if family is Family.IPV4 else ("::1", socket.AF_INET6)
    with socket.socket(kind, socket.SOCK_DGRAM) as one, socket.socket(kind, socket.SOCK_DGRAM) as other:
        for each in (one, other):
            each.bind((loopback, 0))
        one.sendto(b"asked", other.getsockname())
        other.sendto(b"answered", one.getsockname())
        with socket.socket(kind, socket.SOCK_DGRAM) as silent:
            silent.sendto(b"asked", other.getsockname())
    recorder = _Recorder()
    get = nfnl_msg_type(uapi.NFNL_SUBSYS_CTNETLINK, uapi.IPCTNL_MSG_CT_GET)
    netlink = NetlinkSocket(recorder)  # type: ignore[arg-type]
    for number, reply in enumerate(netlink.request("reading", get, family.data.nfproto, b"", dump=True)):
        _keep("connection", f"{family}-{number}", reply)
    _keep("connection", f"{family}-answer", b"".join(recorder.datagrams[:-1]))


def _iptables(family: Family) -> None:
    tools = family.data.tools
    for flavour in ("nft", "legacy"):
        for text in map(_filled, (_FILTER, _NAT), (family, family)):
            if family is Family.IPV6:
                text = text.replace("--algo bm", "--algo kmp")

            def restore(text: str = text, flavour: str = flavour) -> None:
                _run(f"{tools}-{flavour}-restore", "--wait=5", stdin=text)

            _events(restore, f"{tools}-{flavour}")
        for table in _TABLES:
            saved = _run(f"{tools}-{flavour}-save", "-c", "-t", table)
            _keep("iptables-save", f"{tools}-{flavour}-{table}-counters", saved.encode())
            saved = _run(f"{tools}-{flavour}-save", "-t", table)
            _keep("iptables-save", f"{tools}-{flavour}-{table}", saved.encode())
        _keep("tool-version", f"{tools}-{flavour}", _run(f"{tools}-{flavour}", "--version").encode())
    _nf_tables(family, "iptables", _TABLES)
    info = TableInfo(family)
    for table in _TABLES:
        with info.entries(table) as entries:
            _keep(f"xt-entries-{family}", table, info.read(table) + entries.memory[entries.begin :])
    names = Path("/") / family.data.legacy_names
    _keep("legacy-names", str(family), names.read_bytes())


def _nft(family: Family) -> None:
    _events(lambda: _run("nft", "-f", "-", stdin=_filled(_NFT, family)), f"nft-{family}")
    tables = {"flanneld-masq": ("postrouting", "forward"), "kube-proxy": ("mark-for-masquerade", "masquerading")}
    _nf_tables(family, "nft", tables)


class _Listener:
    """A connection to a bus that keeps every byte it receives."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        self._socket.recv(999)
        self._socket.sendall(b"BEGIN\r\n")

    def ask(self, member: str, signature: str = "", body: bytes = b"") -> None:
        self._socket.sendall(message(_BUS, _BUS, member, path=_BUS_PATH, signature=signature, body=body))

    def frames(self, seconds: float) -> Iterator[Frame]:
        """Yield what comes until nothing has come for so many seconds."""
        splitter = Splitter(_MAX_FRAME)
        self._socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            while True:
                splitter.feed(self._socket.recv(65536))
                while (frame := splitter.take()) is not None:
                    yield frame


def _traces(family: Family) -> None:
    """A packet of the host to itself, traced through legacy and nf_tables rules, and what the tools print of these."""
    _run("ip", "link", "set", "lo", "up")
    host = ip_address("127.0.0.1" if family is Family.IPV4 else "::1")
    tools = family.data.tools
    _run(f"{tools}-legacy", *f"-t mangle -A OUTPUT -d {host} -j MARK --set-mark 1".split())
    _run(f"{tools}-nft", *["-A", "OUTPUT", "-p", "udp", "-m", "multiport", "--dports", "9,10", "-j", "ACCEPT"])
    listener = TraceSocket()
    log = LegacyLog(family, listener)
    listener.listen()
    with contextlib.closing(trace_table((Flow(host, host, 17, 9),))):
        with socket.socket(socket.AF_INET if family is Family.IPV4 else socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"traced", (str(host), 9))
        eventually(lambda: bool(select.select([listener], [], [], 0)[0]))
        datagrams = []
        with contextlib.suppress(BlockingIOError):
            while True:
                datagrams.append(listener._socket.recv(_MAX_FRAME))
    log.close()
    listener.close()
    _keep("trace-steps", str(family), b"".join(datagrams))
    listing = _run("nft", "-s", "-a", "list", "chain", family.data.nft, "filter", "OUTPUT")
    _keep("nft-chain", str(family), listing.encode())
    _keep("iptables-counters", f"{tools}-mangle", _run(f"{tools}-legacy-save", "-c", "-t", "mangle").encode())


def _devices() -> None:
    _run("ip", "link", "add", "cni0", "type", "bridge")
    _run("ip", "address", "add", "10.244.1.1/24", "dev", "cni0")
    _run("ip", "link", "add", "veth1", "master", "cni0", "type", "veth", "peer", "name", "veth2")
    _run("ip", "link", "set", "cni0", "up")
    for name, argv in (
        ("bridges", "-d addr show type bridge"),
        ("ports", "-d link show master cni0"),
        ("routes", "route show table all"),
    ):
        _keep("ip-json", name, _run("ip", "-j", *argv.split()).encode())


def _talk(address: str) -> None:
    """Have real programs call the daemon's name, and send signals."""
    busctl, to = ("busctl", f"--address={address}", "--timeout=0.05"), (NAME, PATH, MANAGER.name)
    signalled = (FIREWALLD_PATH, FIREWALLD, "Reloaded")
    for arguments in (
        (*busctl, "call", *to, "GetStatus"),
        (*busctl, "call", *to, "Reconcile"),
        (*busctl, "call", NAME, PATH, "org.freedesktop.DBus.Properties", "GetAll", "s", MANAGER.name),
        (*busctl, "call", NAME, PATH, "org.freedesktop.DBus.Properties", "Get", "ss", MANAGER.name, "State"),
        (*busctl, "set-property", *to, "State", "s", "x"),
        (*busctl, "introspect", NAME, PATH),
        (*busctl, "emit", *signalled),
        (*busctl, "emit", *signalled, "as", "2", "a", "b"),
        (
            *busctl,
            "emit",
            SYSTEMD_PATH,
            f"{SYSTEMD}.Manager",
            "JobRemoved",
            "uoss",
            "7",
            "/job/7",
            "ufw.service",
            "done",
        ),
        ("gdbus", "call", "--address", address, "--timeout=1", "-d", NAME, "-o", PATH, "-m", f"{MANAGER.name}.Reload"),
    ):
        subprocess.run(arguments, capture_output=True, check=False)


def _dbus(directory: Path) -> None:
    bus = Bus(directory)
    bus.start()
    daemon = _Listener(str(directory / "bus"))
    daemon.ask("Hello")
    daemon.ask("RequestName", "su", encoded(NAME) + bytes(-len(encoded(NAME)) % 4) + bytes(4))
    daemon.ask("AddMatch", "s", encoded("type='signal'"))
    _talk(bus.address)
    kinds: dict[object, Frame] = {}  # one of each is enough
    for frame in daemon.frames(0.5):
        kinds.setdefault((frame.kind, frame.fields and frame.fields[1:3], frame.size > 8), frame)
    for number, frame in enumerate(kinds.values()):
        _keep("dbus-frames", f"bus-{number:02}", frame.content)
    bus.stop()


def _state(directory: Path) -> None:
    def keep(target: str, name: str, file: Path) -> None:
        _keep(target, name, file.read_bytes().replace(str(directory).encode(), b"/run/node"))

    """Keep what a daemon leaves behind, and what it was given."""
    lease, config, state = directory / "subnet.env", directory / "config.toml", directory / "state"
    lease.write_text(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/56\n"
        "FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    for backend in ("nft", "iptables-nft", "iptables-legacy"):
        config.write_text(
            f'backend = "{backend}"\nsubnet_files = ["{lease}"]\nstate_directory = "{state}"\n[dbus]\nenabled = false\n'
        )
        _run(sys.executable, "-m", "flanneld_masq", "--config", str(config), "apply")
        for family in Family:
            keep("verified-state", f"{backend}-{family}", state / f"{backend}-{family}.json")
    with subprocess.Popen((sys.executable, "-m", "flanneld_masq", "--config", str(config), "run")) as daemon:
        eventually(lambda: (state / "status.json").exists() and "synced" in (state / "status.json").read_text())
        daemon.send_signal(signal.SIGTERM)
    keep("status", "daemon", state / "status.json")
    keep("subnet-env", "flannel", lease)


def main() -> None:
    os.environ["XTABLES_LOCKFILE"] = f"/tmp/xtables.lock.{os.getpid()}"
    for family in Family:
        _connections(family)
        _iptables(family)
        _nft(family)
        _traces(family)
    _devices()
    _keep("netlink-answer", "generation", b"".join(_answer(lambda netlink: netlink.generation())))
    _keep(
        "netlink-answer",
        "extension",
        b"".join(_answer(lambda netlink: netlink.has_extension(Family.IPV4, "MASQUERADE", 0, target=True))),
    )
    Path(os.environ["XTABLES_LOCKFILE"]).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        _dbus(Path(directory))
        _state(Path(directory))


if __name__ == "__main__":
    main()
