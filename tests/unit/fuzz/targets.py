"""Every parser of bytes or text that other programs, the kernel or an administrator wrote, as a function of bytes.

Each may raise the errors that its entry names. Anything else is a fault, and so is an input of 64 KiB that takes
longer than a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache, partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from flanneld_masq_ipmasqagent import files
from flanneld_masq_iptables import binaries, save_format
from flanneld_masq_iptables.kube_proxy import LegacyMarkReader
from flanneld_masq_iptables.legacy_backend import IptablesLegacy
from flanneld_masq_iptables.legacy_tables import LegacyTables
from flanneld_masq_iptables.nft_backend import IptablesNft
from flanneld_masq_iptables.sockopt import TableInfo
from flanneld_masq_iptables.xtables_lock import XtablesLock
from flanneld_masq_nft.backend import NftBackend
from flanneld_masq_prometheus import requests

from flanneld_masq.cli import bus_events
from flanneld_masq.cli.live_output import trace_json, trace_lines
from flanneld_masq.cli.status_lines import status_lines
from flanneld_masq.controller.attribution import identify
from flanneld_masq.controller.status import from_json, to_json
from flanneld_masq.dbus import client, manager1, wire
from flanneld_masq.dbus.bus import parse
from flanneld_masq.dbus.connection import MAX_BODY, Connection, message_of
from flanneld_masq.dbus.manager1 import MANAGER, PATH
from flanneld_masq.dbus.object_server import Message, Object
from flanneld_masq.dbus.reload_signals import FIREWALLD, SYSTEMD, ReloadSignals
from flanneld_masq.dbus.wire import Frame, Splitter, WireError
from flanneld_masq.doctor import host_network, host_reader, saved_findings, unit_state
from flanneld_masq.doctor.examine import examine
from flanneld_masq.doctor.facts import Facts
from flanneld_masq.doctor.host_network import HostNetwork, Link
from flanneld_masq.errors import (
    BackendUnavailable,
    CommandError,
    ConfigError,
    KernelError,
    MasqError,
    SnapshotError,
    SubnetFileError,
)
from flanneld_masq.hookspecs import Host
from flanneld_masq.inputs import config, json_values, lock_events, net_conf, saved_rulesets, subnet_env, text
from flanneld_masq.kernel import conntrack, expressions, kube_proxy, objects, transactions
from flanneld_masq.kernel.fingerprint import FingerprintRequest
from flanneld_masq.kernel.netlink_socket import NetlinkSocket
from flanneld_masq.kernel.netlink_wire import attributes
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.ruleset_events import Transaction, parse_transaction
from flanneld_masq.kernel.trace_events import parse_steps
from flanneld_masq.live import counters, ip_json
from flanneld_masq.live.journey import Assembler
from flanneld_masq.live.judgement import judge
from flanneld_masq.live.rule_texts import RuleTexts, listed_rules, saved_chains
from flanneld_masq.live.throwaway import find_bridge
from flanneld_masq.live.tracer import Trace
from flanneld_masq.lock_files import flock_users
from flanneld_masq.model import BackendName, Family, FamilyLease, Group, Item, ItemKind, Lease, Settings, VerifiedState
from flanneld_masq.packet_path import snapshot as path_snapshot
from flanneld_masq.packet_path.collect import collect
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.flows import flows
from flanneld_masq.packet_path.owners import owner_by_text
from flanneld_masq.packet_path.packet import TCP, Packet
from flanneld_masq.packet_path.queues import queues
from flanneld_masq.packet_path.snapshot import LEGACY, NFT, Save, Snapshot
from flanneld_masq.process import Completed, ProcessRunner
from flanneld_masq.report import journal_text, saved_node
from flanneld_masq.report.redact import secrets_removed
from flanneld_masq.ruleset import flannel_effect
from flanneld_masq.service import prometheus
from flanneld_masq.state_directory import StateDirectory

from .answering import AnsweringSocket

_NOW = datetime(2026, 7, 8, tzinfo=timezone.utc)
_PART = b"@@"  # stands between the files of one input
_LEASES = {
    Family.IPV4: FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.0")),
    Family.IPV6: FamilyLease((ip_network("fd00::/56"),), ip_network("fd00:0:0:1::/64"), ip_address("fd00:0:0:1::")),
}
_LEASE = Lease("/run/flannel/subnet.env", _LEASES[Family.IPV4], _LEASES[Family.IPV6])


@dataclass(frozen=True)
class Target:
    """A parser. `corpus` names a directory of `corpus/`, `modules` the modules whose parsers it runs."""

    name: str
    corpus: str
    parse: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    modules: tuple[str, ...]
    words: Sequence[bytes] = ()


@cache
def _keeper() -> tempfile.TemporaryDirectory[str]:
    memory = "/dev/shm"  # files there are written many thousand times
    return tempfile.TemporaryDirectory(prefix="flanneld-masq-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)


def _directory(name: str) -> Path:
    """Return a directory for the files of a target; it is removed when this process ends."""
    path = Path(_keeper().name) / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def _as_printed(data: bytes) -> str:
    """Decode what a program printed, as `process` does."""
    return data.decode("utf-8", "surrogateescape")


class _Programs(ProcessRunner):
    """Every program prints the same."""

    def __init__(self, printed: str, *path: str) -> None:
        super().__init__(path)
        self._printed = printed

    def __call__(
        self, argv: tuple[str, ...], *, executable: str | None = None, stdin: str = "", timeout: float = 0.0
    ) -> Completed:
        return Completed(argv, self._printed, "")


_ADDRESSES = (
    '[{"ifname": "eth0", "addr_info": [{"family": "inet", "local": "192.0.2.1", "prefixlen": 24, "scope": "global"}]},'
    '{"ifname": "cni0", "addr_info": [{"family": "inet", "local": "10.244.1.1", "prefixlen": 24, "scope": "global"}]}]'
)
_ROUTES = (
    '[{"dst": "default", "gateway": "192.0.2.100", "dev": "eth0"}, {"dst": "10.244.1.0/24", "dev": "cni0"},'
    '{"dst": "10.244.2.0/24", "gateway": "10.244.2.0", "dev": "flannel.1"}]'
)
_TO_THE_WORLD = Packet(ip_address("10.244.1.5"), ip_address("198.51.100.7"), TCP, 40000, 443, "cni0")
_POLICY_RULES = '[{"priority": 32766, "src": "all", "table": "main"}]'


def _follow(ruleset: str = "", saves: tuple[Save, ...] = (), ipsets: str = "") -> None:
    snapshot = Snapshot(
        ruleset,
        saves,
        addresses=_ADDRESSES,
        routes=dict.fromkeys(Family, _ROUTES),
        rules=dict.fromkeys(Family, _POLICY_RULES),
        ipsets=ipsets,
    )
    Node(snapshot).evaluate(_TO_THE_WORLD)


def _packet_path_nft(data: bytes) -> None:
    _follow(_as_printed(data))


def _packet_path_iptables(data: bytes) -> None:
    _follow(saves=tuple(Save(Family.IPV4, flavour, _as_printed(data)) for flavour in (NFT, LEGACY)))


def _packet_path_ip(data: bytes) -> None:
    """Every program prints the same: the routes, the rules and the addresses."""
    printed = _as_printed(data)
    root = _directory("packet-path")
    for family in Family:
        (root / family.data.proc).parent.mkdir(parents=True, exist_ok=True)
        (root / family.data.proc).touch()
    collected = collect(_Programs(printed), root)
    flows(
        Node(Snapshot(addresses=collected.addresses, routes=collected.routes, rules=collected.rules)),
        _LEASE,
        Settings(),
    )


def _packet_path_ipset(data: bytes) -> None:
    line = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m set --match-set s src,dst,src -j DROP\nCOMMIT\n"
    _follow(saves=(Save(Family.IPV4, LEGACY, line),), ipsets=_as_printed(data))


def _packet_path_snapshot(data: bytes) -> None:
    snapshot = path_snapshot.from_json(_as_printed(data))
    path_snapshot.to_json(snapshot)
    queues(snapshot.queues)


def _netlink_attributes(data: bytes) -> None:
    for _ in attributes(data):
        pass


def _netlink_rule(data: bytes) -> None:
    table, rule = objects.parse_rule(data)
    for family in Family:
        expressions.describe(rule, family)
    expressions.comment(rule)
    objects.parse_counter(data)
    expressions.jump_target(rule)
    expressions.decision(rule)
    kube_proxy.mark_of([rule])
    transactions.new_rule(table, rule, before=rule.handle)
    transactions.delete_rule(table, rule.chain, rule.handle)
    str(rule.raw)


def _netlink_chain(data: bytes) -> None:
    chain = objects.parse_chain(data)
    transactions.new_chain("nat", chain, policy=chain.policy)


def _connection(data: bytes) -> None:
    """The kernel answers everything with these messages; the connections that it names are deleted."""
    family = _family(data)
    reader, writer = (NetlinkSocket(AnsweringSocket(data)) for _ in range(2))  # type: ignore[arg-type]
    with contextlib.suppress(KernelError):
        conntrack.parse_entry(data, family)
    table = conntrack.Conntrack(family, reader, writer)
    for batch in table.unanswered():
        for entry in batch:
            table.delete_unanswered(entry)


def _netlink_answers(data: bytes) -> None:
    """Every request is answered by the same messages, as they are."""
    for ask in _REQUESTS:
        with contextlib.suppress(KernelError):
            ask(Nfnetlink(NetlinkSocket(AnsweringSocket(data))))  # type: ignore[arg-type]


_REQUESTS: tuple[Callable[[Nfnetlink], object], ...] = (
    lambda netlink: netlink.generation(),
    lambda netlink: netlink.table(Family.IPV4, "nat"),
    lambda netlink: netlink.chain(Family.IPV4, "nat", "POSTROUTING"),
    lambda netlink: netlink.rules(Family.IPV4, "nat"),
    lambda netlink: netlink.has_extension(Family.IPV4, "MASQUERADE", 0, target=True),
    lambda netlink: netlink.delete(Family.IPV4, "nat", (("POSTROUTING", 7),)),
    lambda netlink: netlink.fingerprint(FingerprintRequest.of_table(Family.IPV4, "nat", ("POSTROUTING",), (None,))),
)


def _family(data: bytes) -> Family:
    """Return the family that an input is for: half of them for each."""
    return tuple(Family)[len(data) % 2]


def _nft_backends(data: bytes) -> None:
    """The kernel answers each request with those messages that are of the wanted kind."""
    family = _family(data)
    for kind in (IptablesNft, NftBackend):
        backend = kind(family, Host(_Programs(""), Path("/")))
        netlink = Nfnetlink(NetlinkSocket(AnsweringSocket(data, sort=True)))  # type: ignore[arg-type]
        backend.__dict__["_netlink"] = netlink
        for ask in (
            partial(backend.observe, tuple(Group)),
            partial(backend.survey, (_LEASES[family],)),
            backend.drops_forwarding,
            backend.kube_proxy_mark,
            partial(backend.fingerprint, (Group.MASQUERADE,)),
        ):
            with contextlib.suppress(KernelError):
                ask()


class _Tables(TableInfo):
    """A table of ip_tables as an input holds it: what IPT_SO_GET_INFO gives, then the entries."""

    _SHAPE = 52  # bytes

    def __init__(self, family: Family, data: bytes) -> None:
        super().__init__(family)
        self._data = data.ljust(self._SHAPE, b"\0")

    def read(self, table: str) -> bytes:
        shape, entries = self._data[: self._SHAPE - 4], self._data[self._SHAPE :]
        return shape + len(entries).to_bytes(4, "little")  # the kernel tells the size of what it then gives

    def watch(self, table: str) -> Any:
        return self

    def changed(self) -> bool:
        return True

    def _ask(self, table: str, option: int, buffer: Any) -> None:
        entries = self._data[self._SHAPE :]
        buffer[len(buffer) - len(entries) : len(buffer)] = entries


def _xt_entries(family: Family) -> Callable[[bytes], None]:
    def parse_entries(data: bytes) -> None:
        info = _Tables(family, data)
        with contextlib.suppress(KernelError):
            info.holds_rules("nat")
        with contextlib.suppress(KernelError):
            LegacyMarkReader(info, lambda: 0.0).read()
        with info.entries("nat") as entries:
            for hook in range(5):
                for ask in (
                    partial(entries.targets, "FLANNELD-MASQ"),
                    partial(entries.drop, hook, "FLANNELD-MASQ-FWD"),
                    partial(entries.fingerprint, "FLANNELD-MASQ", hook),
                    partial(entries.contents, "FLANNEL-POSTRTG", hook),
                    partial(entries.packets, hook),
                    lambda: tuple(entries.counted("FLANNELD-MASQ")),
                ):
                    with contextlib.suppress(KernelError):
                        ask()
            with contextlib.suppress(KernelError):
                entries.drops_anything()
            entries.mask()

    return parse_entries


def _legacy_backend(data: bytes) -> None:
    """The program prints the input, and the entries in the kernel cannot be read."""
    printed, family = _as_printed(data), _family(data)
    root = _directory("legacy")
    names = root / family.data.legacy_names
    names.parent.mkdir(parents=True, exist_ok=True)
    names.write_text("filter" if "*filter" in printed else "nat")
    backend = IptablesLegacy(family, Host(_Programs(printed), root))
    info = _Tables(family, b"")
    backend.__dict__.update(_info=info, _tables=LegacyTables(names, info))
    backend.__dict__["_installed"] = binaries.Program("/multi", binaries.LEGACY, (1, 8, 9))
    for ask in (partial(backend.observe, tuple(Group)), partial(backend.survey, (_LEASES[family],))):
        with contextlib.suppress(CommandError):
            ask()


def _saved_ruleset(data: bytes) -> None:
    root = _directory("saved")
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/nftables.conf").write_bytes(data)
    saved_rulesets.find(root)


def _legacy_names(data: bytes) -> None:
    path = _directory("names") / "ip_tables_names"
    path.write_bytes(data)
    LegacyTables(path, TableInfo(Family.IPV4)).existing()


def _tool_version(data: bytes) -> None:
    program = _directory("path") / "xtables-nft-multi"
    if not program.exists():
        program.write_bytes(b"\x7fELF")
        program.chmod(0o755)
    found = binaries.find(
        binaries.NF_TABLES, BackendName("iptables-nft"), _Programs(_as_printed(data), str(program.parent))
    )
    str(found), found.random_fully


def _proc_locks(data: bytes) -> None:
    root = _directory("locks")
    lock = root / "run/xtables.lock"
    (root / "proc").mkdir(exist_ok=True)
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    status = lock.stat()
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    (root / "proc/locks").write_bytes(data.replace(b"@PLACE@", place.encode()))
    seen = XtablesLock(root, {}, lambda: 0.0, lambda seconds: None)
    seen.holder()
    flock_users(lock, root / "proc/locks")


def _process(data: bytes) -> None:
    """The files of /proc that tell about the author of a commit."""
    directory = _directory("process/proc/77")
    name, *parts = data.split(_PART, 2)
    for file, content in zip(("comm", "cmdline", "cgroup"), (name, *parts, b"", b"")):
        (directory / file).write_bytes(content)
    str(identify(Transaction(1, 77, name.decode("utf-8", "replace").rstrip("\n")), directory.parents[1]))


def _ruleset_event(data: bytes) -> None:
    parse_transaction(data)


def _trace_steps(data: bytes) -> None:
    """The steps are put together, and judged by chains that the kernel and the programs do not know."""
    assembler = Assembler("flanneld-masq-trace-1", 5)
    assembler.feed(parse_steps(data))
    texts = RuleTexts(_Programs(""), Family.IPV4)
    texts.chain = lambda nfproto, table, name: objects.Chain(name, 0, 0, 0)  # type: ignore[method-assign]
    packets = tuple(judge(journey, texts, str) for journey in assembler.journeys)
    trace = Trace((), packets)
    list(trace_lines(trace))
    trace_json(trace)


def _nft_chain(data: bytes) -> None:
    for _, rule in listed_rules(_as_printed(data)):
        owner_by_text("ip filter", rule, rule)


def _counters(data: bytes) -> None:
    printed = _as_printed(data)
    before = tuple(counters.counted(printed))
    list(counters.grown("nat", before, tuple((rule, packets + 1) for rule, packets in before)))
    texts = RuleTexts(_Programs(printed), Family.IPV4)
    with contextlib.suppress(CommandError):
        saved_chains(save_format.table_lines(Completed(("iptables-save",), printed, ""), "mangle"))
    texts.legacy("mangle", "OUTPUT")


def _ip_json(data: bytes) -> None:
    run = _Programs(_as_printed(data))
    list(ip_json.destinations(ip_json.rows(run)))
    with contextlib.suppress(MasqError):
        find_bridge(run, ip_network("10.244.1.0/24"))


def _flannel_rule(data: bytes) -> None:
    item = Item(ItemKind.RULE, "nat POSTROUTING", _as_printed(data))
    for _ in flannel_effect.evaluate([item], Settings(), (_LEASE,), _family(data)).summaries():
        pass


def _net_conf(data: bytes) -> None:
    net_conf.parse(data, "net-conf.json")


def _ip_address(data: bytes) -> None:
    links = host_network.parse_links(_as_printed(data))
    network = HostNetwork(links, {Family.IPV4: ()})
    list(examine(Facts(Settings(), (_LEASE,), network=network)))


def _ip_route(data: bytes) -> None:
    printed = _as_printed(data)
    for read in (host_network.parse_way, host_network.parse_neighbours):
        with contextlib.suppress(ValueError):
            read(printed)
    with contextlib.suppress(ValueError):
        host_network.parse_ends(printed, "flannel.1")
    family = Family.IPV6 if b"::" in data else Family.IPV4
    routes = host_network.parse_routes(printed, family)
    network = HostNetwork((Link("eth0"), Link("tun0", kind="tun")), {family: routes})
    list(host_reader.sysctl_paths(network, (_LEASE,)))
    list(examine(Facts(Settings(), (_LEASE,), network=network)))


def _systemctl_show(data: bytes) -> None:
    str(unit_state.parse(_as_printed(data)))


def _subnet_env(data: bytes) -> None:
    subnet_env.parse(data, "subnet.env")


def _config(data: bytes) -> None:
    path = _directory("config") / "config.toml"
    path.write_bytes(data)
    config.state_directory(path)
    config.load(path)


def _ip_masq_agent(data: bytes) -> None:
    path = _directory("agent") / "ip-masq-agent"
    path.write_bytes(data)
    files.networks((str(path),))


def _http_request(data: bytes) -> None:
    requests.is_whole(data, 1)
    requests.parse(data)


def _cidr(data: bytes) -> None:
    text.parse_cidr(_as_printed(data))


def _verified_state(data: bytes) -> None:
    """The files of a state directory, none of which may raise anything."""
    directory = _directory("state")
    for name in ("nft-ipv4.json", "status.json", "lock"):
        (directory / name).write_bytes(data)
    state = StateDirectory(directory)
    state.verified_state(BackendName("nft"), Family.IPV4)
    state.status()
    state.holder()
    with contextlib.suppress(ValueError):
        json_values.decode(VerifiedState, json_values.parse(data))


def _status(data: bytes) -> None:
    status = from_json(json_values.parse(data))
    to_json(status)
    prometheus.exposition(status)
    manager1.properties(status)
    list(status_lines(status))


def _frames(data: bytes, limit: int = MAX_BODY) -> Iterator[Frame]:
    splitter = Splitter(limit)
    splitter.feed(data)
    while (frame := splitter.take()) is not None:
        yield frame


def _dbus_frames(data: bytes) -> None:
    for order in "<>":
        with contextlib.suppress(WireError):
            wire.read_fields(data[: wire.MAX_FIELDS], order)
    for frame in _frames(data):
        for count in range(3):
            with contextlib.suppress(WireError):
                wire.read_strings(frame.body, frame.order, count)


class _FakeBus:
    """Takes what a connection sends."""

    connected = True
    unsent = 0

    def __init__(self) -> None:
        self.receive: Callable[[Frame], None] = lambda frame: None

    def send(self, message: Any) -> None:
        message.serial = 1
        message._marshall()

    def close(self) -> None: ...


class _Complaints(logging.Handler):
    """Keeps errors that were caught and logged, which are faults all the same."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[object] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.exc_info or record.getMessage())


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _method(answer: tuple[Any, ...]) -> Callable[[], Awaitable[tuple[Any, ...]]]:
    async def method() -> tuple[Any, ...]:
        return answer

    return method


def _dbus_calls(data: bytes) -> None:
    """Signals and calls, of which the bus vouches for sender and serial number."""
    complaints, loop, bus = _Complaints(), _loop(), _FakeBus()
    loop.set_exception_handler(lambda loop, context: complaints.found.append(context))
    logger = logging.getLogger("flanneld_masq.dbus.connection")
    logger.addHandler(complaints)
    logger.propagate = False

    async def story() -> None:
        connection = Connection(bus)  # type: ignore[arg-type]
        signals = ReloadSignals(connection, lambda reason: None)
        signals._owners = {FIREWALLD: ":1.7", SYSTEMD: ":1.8"}
        signals._spawn = lambda coroutine: coroutine.close()  # type: ignore[method-assign]
        status = from_json({"state": "synced"})
        answers = {"Reconcile": ([],), "Reload": (), "GetStatus": ("{}",)}
        methods = {name: _method(answer) for name, answer in answers.items()}
        connection.serve(Object(PATH, MANAGER, lambda: manager1.properties(status), methods))
        connection.listen(signals.signal, signals.wants)
        for frame in _frames(data):
            fields = frame.fields
            if frame.kind == wire.METHOD_CALL and fields is not None:
                frame = frame._replace(serial=frame.serial or 1, fields=fields._replace(sender=":1.9"))
            bus.receive(frame)
            connection._answer_some()
            await asyncio.gather(*connection._answering)
        connection.close()

    try:
        loop.run_until_complete(story())
    finally:
        logger.removeHandler(complaints)
        logger.propagate = True
    assert not complaints.found, complaints.found


def _dbus_answers(data: bytes) -> None:
    """Read answers and signals that a daemon of any release sends to a command."""
    for frame in _frames(data, client.MAX_ANSWER):
        message = message_of(parse(frame))
        with contextlib.suppress(ValueError):  # it is of another release
            if frame.kind == wire.SIGNAL:
                _show(message)
            elif message.signature == "s":
                client.status_in(message.body[0])
            elif message.signature == "".join(MANAGER.methods["Reconcile"].values()):
                manager1.repairs(message.body[0])
            elif message.signature == "a{sv}":
                bus_events.text_line(_NOW, bus_events.greeting(message.body[0]), colour=True)


def _show(signal: Message) -> None:
    for found in bus_events.events(signal):
        bus_events.json_line(_NOW, found)
        bus_events.text_line(_NOW, found, colour=True)


def _inotify(data: bytes) -> None:
    for _ in lock_events.uses_in(data, b"xtables.lock"):
        pass


# tokens that the parsers know, and some that nest or grow without end
_DEEP = (b"[" * 5000, b"{" * 5000, b'{"a":' * 5000, b"a." * 5000)
_TAG = b"flanneld-masq:0123456789ab"
_FLANNEL_WORDS = b"FLANNEL_NETWORK= FLANNEL_IPV6_SUBNET= FLANNEL_MTU= export \" ' # ::/0 ,".split()
_SAVE_WORDS = (*b"\" \\ ' ! # --comment --log-prefix --string -A -j -g COMMIT *nat".split(), _TAG, b':F - [0:0]\n-A "')
_RULE_WORDS = (*_SAVE_WORDS, *b"-s --mark ip saddr meta mark masquerade 0x0 /33 == !=".split())
_IP_WORDS = (
    *(b'{"ifname":"cni0","mtu":1500}', b'"flags":7,', b'"dst":"default"', b'"dev":"eth0"', b'"nexthops":['),
    *(b"10.244.", b"]"),
)
_JSON_WORDS = (*b'" { } [ ] : , null true 1e999 NaN "\\ud800" -1 9223372036854775808 0.5'.split(), *_DEEP)
_TOML_WORDS = (*b"[[a]] [a.b] a.b.c=1 \" ' \"\"\" ''' = inf nan 0x".split(), *_DEEP)
_BUS_WORDS = (b"l\1\0\1", b"B\4\1\1", b"a(" * 100, b"v\0" * 1000, b"\1v\0", b"a{sv}", b"\1g\0\xff", b"\1s\0")
_XT_WORDS = (b"ERROR\0", b"comment\0", b"MARK\0", b"FLANNELD-MASQ\0", _TAG, b"\xfb\xff\xff\xff", b"\xfe\xff\xff\xff")
_HEADERS = (b"\4\0\1\0", b"\3\0\1\0", b"\xff\xff\1\0", b"\0\0\1\0")  # of attributes: a length, then a type
_NETLINK_WORDS = (*_HEADERS, b"nat\0", b"cmp\0", b"bitwise\0", b"immediate\0", b"match\0", b"target\0")
_NETLINK = ("flanneld_masq.kernel.netlink_wire",)

TARGETS = (
    Target("netlink-attributes", "netlink-attributes", _netlink_attributes, (KernelError,), _NETLINK, _NETLINK_WORDS),
    Target(
        "netlink-table",
        "netlink-table",
        objects.parse_table,
        (KernelError,),
        ("flanneld_masq.kernel.objects",),
        _NETLINK_WORDS,
    ),
    Target(
        "netlink-chain",
        "netlink-chain",
        _netlink_chain,
        (KernelError,),
        ("flanneld_masq.kernel.objects", "flanneld_masq.kernel.transactions"),
        _NETLINK_WORDS,
    ),
    Target(
        "netlink-rule",
        "netlink-rule",
        _netlink_rule,
        (KernelError,),
        (
            "flanneld_masq.kernel.objects",
            "flanneld_masq.kernel.expressions",
            "flanneld_masq.kernel.kube_proxy",
            "flanneld_masq.kernel.transactions",
        ),
        _NETLINK_WORDS,
    ),
    Target(
        "netlink-answers",
        "netlink-answer",
        _netlink_answers,
        (),
        ("flanneld_masq.kernel.netlink_socket", "flanneld_masq.kernel.nfnetlink", "flanneld_masq.kernel.fingerprint"),
        _NETLINK_WORDS,
    ),
    Target(
        "connection", "connection", _connection, (KernelError,), ("flanneld_masq.kernel.conntrack",), _NETLINK_WORDS
    ),
    Target(
        "nft-backends",
        "netlink-answer",
        _nft_backends,
        (),
        ("flanneld_masq_iptables.nft_backend", "flanneld_masq_nft.backend", "flanneld_masq.ruleset.flannel_rules"),
        _NETLINK_WORDS,
    ),
    Target(
        "ruleset-event",
        "ruleset-event",
        _ruleset_event,
        (KernelError,),
        ("flanneld_masq.kernel.ruleset_events",),
        _NETLINK_WORDS,
    ),
    Target(
        "trace-steps",
        "trace-steps",
        _trace_steps,
        (KernelError,),
        ("flanneld_masq.kernel.trace_events", "flanneld_masq.live.judgement"),
        (*_NETLINK_WORDS, b"TRACE: nat:OUTPUT:rule:1 \0", b"TRACE: ", b":policy:"),
    ),
    Target(
        "nft-chain",
        "nft-chain",
        _nft_chain,
        (),
        ("flanneld_masq.live.rule_texts", "flanneld_masq.packet_path.owners"),
        (b" # handle 7", b"\n", b"chain ", b"type ", b"KUBE-"),
    ),
    Target("iptables-counters", "iptables-counters", _counters, (), ("flanneld_masq.live.counters",), _SAVE_WORDS),
    Target(
        "ip-json",
        "ip-json",
        _ip_json,
        (CommandError,),
        ("flanneld_masq.live.ip_json", "flanneld_masq.live.throwaway"),
        (*_JSON_WORDS, b'"10.244.1.1"', b"/33", b'"linkinfo"'),
    ),
    *(
        Target(
            f"xt-entries-{family}",
            f"xt-entries-{family}",
            _xt_entries(family),
            (KernelError,),
            (
                "flanneld_masq_iptables.xt_entries",
                "flanneld_masq_iptables.sockopt",
                "flanneld_masq_iptables.kube_proxy",
                "flanneld_masq_iptables.forward_chain",
            ),
            _XT_WORDS,
        )
        for family in Family
    ),
    Target(
        "iptables-save",
        "iptables-save",
        _legacy_backend,
        (),
        (
            "flanneld_masq.inputs.save_lines",
            "flanneld_masq_iptables.save_format",
            "flanneld_masq_iptables.legacy_backend",
            "flanneld_masq_iptables.rules",
        ),
        _SAVE_WORDS,
    ),
    Target(
        "flannel-rule",
        "flannel-rule",
        _flannel_rule,
        (),
        ("flanneld_masq.ruleset.flannel_effect",),
        _RULE_WORDS,
    ),
    Target(
        "saved-ruleset",
        "saved-ruleset",
        _saved_ruleset,
        (),
        ("flanneld_masq.inputs.saved_rulesets",),
        (b"table", b"ip6", b"flanneld-masq", b"include", b'"', b"*.nft", b"[", b"#", b"{"),
    ),
    Target("legacy-names", "legacy-names", _legacy_names, (KernelError,), ("flanneld_masq_iptables.legacy_tables",)),
    Target(
        "tool-version",
        "tool-version",
        _tool_version,
        (BackendUnavailable,),
        ("flanneld_masq_iptables.binaries",),
        (b"iptables v", b"ip6tables v1.8.", b"(nf_tables)", b"(legacy)", b"."),
    ),
    Target(
        "proc-locks",
        "proc-locks",
        _proc_locks,
        (),
        ("flanneld_masq_iptables.xtables_lock", "flanneld_masq.lock_files"),
        (b"FLOCK  ADVISORY  WRITE ", b" @PLACE@ 0 EOF\n", b"->", b"1: "),
    ),
    Target(
        "process",
        "process",
        _process,
        (),
        ("flanneld_masq.controller.attribution", "flanneld_masq.inputs.processes"),
        (_PART, b".service", b":", b"/"),
    ),
    Target(
        "http-request",
        "http-request",
        _http_request,
        (requests.Refused,),
        ("flanneld_masq_prometheus.requests",),
        (b"GET ", b"/metrics", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"Accept: ", b"HEAD "),
    ),
    Target(
        "ip-masq-agent",
        "ip-masq-agent",
        _ip_masq_agent,
        (ConfigError,),
        ("flanneld_masq_ipmasqagent.agent_config", "flanneld_masq_ipmasqagent.document"),
        (
            b"nonMasqueradeCIDRs:\n",
            b"- 10.0.0.0/8\n",
            b"masqLinkLocal: ",
            b"true",
            b"[",
            b"{",
            b"&a",
            b"*a",
            b"!!int ",
            b"? ",
        ),
    ),
    Target(
        "subnet-env",
        "subnet-env",
        _subnet_env,
        (SubnetFileError,),
        ("flanneld_masq.inputs.subnet_env",),
        _FLANNEL_WORDS,
    ),
    Target("ip-address", "ip-address", _ip_address, (ValueError,), ("flanneld_masq.doctor.host_network",), _IP_WORDS),
    Target("ip-route", "ip-route", _ip_route, (ValueError,), ("flanneld_masq.doctor.host_network",), _IP_WORDS),
    Target(
        "systemctl-show",
        "systemctl-show",
        _systemctl_show,
        (),
        ("flanneld_masq.doctor.unit_state",),
        (b"LoadState=", b"ActiveState=", b"SubState=", b"Result=", b"loaded", b"auto-restart"),
    ),
    Target("net-conf", "net-conf", _net_conf, (ConfigError,), ("flanneld_masq.inputs.net_conf",), _JSON_WORDS),
    Target(
        "config",
        "config",
        _config,
        (ConfigError,),
        ("flanneld_masq.inputs.config", "flanneld_masq.inputs.config_files", "flanneld_masq.inputs.config_values"),
        _TOML_WORDS,
    ),
    Target("cidr", "cidr", _cidr, (ValueError,), ("flanneld_masq.inputs.text",), (b"/", b":", b"%", b".", b"255")),
    Target(
        "state-files",
        "verified-state",
        _verified_state,
        (),
        ("flanneld_masq.state_directory", "flanneld_masq.lock_files", "flanneld_masq.inputs.json_values"),
        _JSON_WORDS,
    ),
    Target("status", "status", _status, (ValueError,), ("flanneld_masq.controller.status",), _JSON_WORDS),
    Target("dbus-frames", "dbus-frames", _dbus_frames, (WireError,), ("flanneld_masq.dbus.wire",), _BUS_WORDS),
    Target(
        "dbus-calls",
        "dbus-frames",
        _dbus_calls,
        (WireError,),
        ("flanneld_masq.dbus.connection", "flanneld_masq.dbus.object_server", "flanneld_masq.dbus.reload_signals"),
        _BUS_WORDS,
    ),
    Target(
        "dbus-answers",
        "dbus-answers",
        _dbus_answers,
        (WireError,),
        (
            "flanneld_masq.dbus.bus",
            "flanneld_masq.dbus.client",
            "flanneld_masq.dbus.manager1",
            "flanneld_masq.cli.bus_events",
        ),
        _BUS_WORDS,
    ),
    Target(
        "packet-path-nft",
        "packet-path-nft",
        _packet_path_nft,
        (SnapshotError,),
        tuple(
            f"flanneld_masq.packet_path.{name}"
            for name in ("nft_tables", "nft_rules", "nft_inline", "ruleset", "state", "walk")
        ),
        _JSON_WORDS,
    ),
    Target(
        "packet-path-iptables",
        "iptables-save",
        _packet_path_iptables,
        (SnapshotError,),
        tuple(
            f"flanneld_masq.packet_path.{name}"
            for name in ("save_format", "xtables_rules", "values", "owners", "rule_index")
        ),
        _RULE_WORDS,
    ),
    Target(
        "packet-path-ip",
        "packet-path-ip",
        _packet_path_ip,
        (SnapshotError,),
        tuple(f"flanneld_masq.packet_path.{name}" for name in ("routing", "flow_cases", "flows", "collect")),
        _JSON_WORDS,
    ),
    Target(
        "packet-path-ipset",
        "packet-path-ipset",
        _packet_path_ipset,
        (SnapshotError,),
        ("flanneld_masq.packet_path.ipsets",),
        (b"create s ", b"add s ", b"hash:ip,port", b"hash:net", b" timeout 0", b" nomatch", b"tcp:80"),
    ),
    Target(
        "packet-path-snapshot",
        "packet-path-snapshot",
        _packet_path_snapshot,
        (SnapshotError,),
        ("flanneld_masq.packet_path.snapshot", "flanneld_masq.packet_path.queues"),
        _JSON_WORDS,
    ),
    Target(
        "saved-findings",
        "saved-findings",
        lambda data: list(saved_findings.findings(_as_printed(data))),
        (ValueError,),
        ("flanneld_masq.doctor.saved_findings",),
        (*_JSON_WORDS, b'"id": "rules-differ"', b'"severity": "notice"'),
    ),
    Target(
        "saved-node",
        "saved-node",
        lambda data: saved_node.parse(io.BytesIO(data)),
        (SnapshotError,),
        ("flanneld_masq.report.saved_node",),
        (b"\x1f\x8b", b"snapshot.json", b"subnet-files/"),
    ),
    Target(
        "journal-json",
        "journal-json",
        lambda data: list(journal_text.lines(_as_printed(data))),
        (),
        ("flanneld_masq.report.journal_text",),
        _JSON_WORDS,
    ),
    Target(
        "secrets",
        "secrets",
        lambda data: secrets_removed(_as_printed(data)),
        (),
        ("flanneld_masq.report.redact",),
        (b"token", b"password", b"--secret ", b"psk", b"=", b": ", b'"', b"'", b'"""', b"[", b"-----BEGIN X-----"),
    ),
    Target("inotify", "inotify", _inotify, (), ("flanneld_masq.inputs.lock_events",)),
)
