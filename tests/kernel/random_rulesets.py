"""Draws rulesets of nft, iptables-nft and iptables-legacy, and packets that meet them, from one source of chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from random import Random

from flanneld_masq.model import Address, Family, Network
from flanneld_masq.packet_path.packet import ICMP, ICMPV6, TCP, UDP, Packet
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.netns import Netns
from flanneld_masq.selftest.topology import Addresses

PORTS = (53, 80, 443, 8080, 9000)
MARKS = (0x1, 0x2, 0x4, 0x4000)
DEVICES = ("cni0", "flannel.1", "eth0")
MAX_RULES = 6


@dataclass(frozen=True)
class RandomRuleset:
    """Input of each tool, in the order of loading, and sysctls below /proc/sys/net."""

    inputs: tuple[tuple[tuple[str, ...], str], ...]
    sysctls: dict[str, int]

    def load(self, host: Netns) -> None:
        run = ProcessRunner()
        host.sysctl(self.sysctls)
        with host.entered():
            for argv, text in self.inputs:
                run(argv, stdin=text)

    def __str__(self) -> str:
        return "\n".join(f"# {' '.join(argv)}\n{text}" for argv, text in self.inputs) + f"\n# {self.sysctls}"


def random_ruleset(source: Random, of: Addresses) -> RandomRuleset:
    inputs: list[tuple[tuple[str, ...], str]] = []
    for number in range(source.randint(1, 3)):
        inputs.append((("nft", "-f", "-"), _NftTable(source, of, f"t{number}").text()))
    if source.random() < 0.6:
        inputs.append(((f"{of.family.data.tools}-nft-restore",), _Xtables(source, of).text()))
    if source.random() < 0.4:
        inputs.append(((f"{of.family.data.tools}-legacy-restore",), _Xtables(source, of).text()))
    source.shuffle(inputs)
    sysctls = {}
    if of.family is Family.IPV4 and source.random() < 0.1:
        sysctls[f"ipv4/conf/{source.choice(DEVICES)}/forwarding"] = 0
    if of.family is Family.IPV4 and source.random() < 0.15:
        sysctls[f"ipv4/conf/{source.choice(DEVICES)}/rp_filter"] = source.choice((1, 2))
    return RandomRuleset(tuple(inputs), sysctls)


def vips(family: Family) -> Network:
    return ip_network("203.0.113.0/24" if family is Family.IPV4 else "2001:db8:5::/64")


def random_packets(source: Random, of: Addresses, count: int) -> list[Packet]:
    sports = source.sample(range(20000, 60000), count)
    return [_packet(source, of, sport) for sport in sports]


def _packet(source: Random, of: Addresses, sport: int) -> Packet:
    iif, src, targets = source.choice(
        (
            ("cni0", of.pod, (of.outside, of.far, of.remote_pod, of.gateway, of.node)),
            ("cni0", of.next_pod, (of.outside, of.far, of.remote_pod)),
            ("flannel.1", of.remote_pod, (of.pod, of.node, of.gateway)),
            ("eth0", of.outside, (of.pod, of.node, of.remote_pod)),
            ("eth0", of.far, (of.pod, of.node)),
            ("", of.node, (of.outside, of.far)),
            ("", of.gateway, (of.pod,)),
            ("", of.overlay, (of.remote_pod,)),
        )
    )
    dst = vips(of.family)[source.randint(1, 3)] if source.random() < 0.25 else source.choice(targets)
    proto = source.choice((UDP, UDP, TCP, TCP, ICMP if of.family is Family.IPV4 else ICMPV6))
    mark = source.choice((0, *MARKS)) if not iif else 0
    dport = source.choice(PORTS)
    if proto not in (UDP, TCP):
        return Packet(src, dst, proto, iif=iif, mark=mark, uid=None if iif else 0)
    return Packet(src, dst, proto, sport, dport, iif, mark, uid=None if iif else 0)


class _Words:
    """Random values for both kinds of ruleset."""

    def __init__(self, source: Random, of: Addresses) -> None:
        self.source = source
        self.of = of

    def network(self) -> Network:
        of = self.of
        hosts: Sequence[Address] = (of.pod, of.outside, of.far, of.remote_pod, of.node, of.gateway, of.next_pod)
        nets = [ip_network(host) for host in hosts]
        return self.source.choice((*nets, of.subnet, of.remote_subnet, of.networks[0], vips(of.family)))

    def target(self) -> Address:
        of = self.of
        return self.source.choice((of.pod, of.outside, of.far, of.remote_pod, of.node))

    def own(self) -> Address:
        return self.source.choice((self.of.node, self.of.overlay, vips(self.of.family)[9]))

    def ports(self) -> tuple[int, int]:
        low = self.source.choice(PORTS)
        return low, low + self.source.choice((0, 0, 30, 400))


# ---- nft


def _transports(rule: str) -> set[str]:
    """Return the protocols that a rule names; nft takes one in each rule."""
    text = rule.replace("{ tcp, udp }", "ports").replace("!= tcp", "others").replace("(syn|ack)", "")
    return {word for word in text.split() if word in ("tcp", "udp", "ports", "others", "icmp", "icmpv6")}


_BASES = (
    ("prerouting", "filter", (-320, -180, -120, -90)),
    ("prerouting", "nat", (-100, -95, -105)),
    ("input", "filter", (-5, 0, 10)),
    ("forward", "filter", (-10, 0, 5, 20)),
    ("output", "filter", (-310, -5, 10)),
    ("output", "route", (-150, -140)),
    ("output", "nat", (-100, -95)),
    ("postrouting", "filter", (-10, 50, 150)),
    ("postrouting", "nat", (100, 95, 110)),
    ("input", "nat", (100, 99)),
)


class _NftTable(_Words):
    """One table, in the family of the packets or in inet."""

    def __init__(self, source: Random, of: Addresses, name: str) -> None:
        super().__init__(source, of)
        self.name = name
        self.ip = of.family.data.nft
        self.table = source.choice((self.ip, self.ip, "inet"))
        self.kind = "ipv4_addr" if of.family is Family.IPV4 else "ipv6_addr"

    def text(self) -> str:
        blocks = [self.sets()]
        for number, (hook, kind, priorities) in enumerate(self.source.sample(_BASES, self.source.randint(2, 5))):
            priority = self.source.choice(priorities)
            helpers = [f"c{number}h{index}" for index in range(self.source.randint(0, 2))]
            for index, helper in reversed(list(enumerate(helpers))):
                blocks.append(self.chain(helper, "", kind, hook, priority, helpers[index + 1 :]))
            policy = "drop" if kind == "filter" and hook == "forward" and self.source.random() < 0.15 else "accept"
            head = f"type {kind} hook {hook} priority {priority}; policy {policy};"
            blocks.append(self.chain(f"c{number}", head, kind, hook, priority, helpers))
        return f"table {self.table} {self.name} {{\n{''.join(blocks)}}}\n"

    def sets(self) -> str:
        nets = sorted({self.network() for _ in range(3)}, key=lambda net: (net.prefixlen, net.network_address))
        apart = [net for index, net in enumerate(nets) if not any(net.overlaps(other) for other in nets[:index])]
        pairs = {f"{self.target()} . {self.source.choice(PORTS)}" for _ in range(4)}
        backends = [f"{port} : {self.target()} . 9000" for port in self.source.sample(PORTS, 2)]
        return (
            f"  set nets {{ type {self.kind}; flags interval; elements = {{ {', '.join(map(str, apart))} }}; }}\n"
            f"  set pairs {{ type {self.kind} . inet_service; elements = {{ {', '.join(sorted(pairs))} }}; }}\n"
            f"  map backends {{ type inet_service : {self.kind} . inet_service; "
            f"elements = {{ {', '.join(backends)} }}; }}\n"
        )

    def chain(self, name: str, head: str, kind: str, hook: str, priority: int, helpers: Sequence[str]) -> str:
        rules = [self.rule(kind, hook, priority, helpers) for _ in range(self.source.randint(1, MAX_RULES))]
        body = "".join(f"    {rule}\n" for rule in rules)
        return f"  chain {name} {{\n    {head}\n{body}  }}\n"

    def rule(self, kind: str, hook: str, priority: int, helpers: Sequence[str]) -> str:
        while True:
            count = self.source.choice((0, 1, 1, 1, 2, 2, 2, 3))
            tests = [self.test(hook) for _ in range(count)]
            rule = " ".join([*tests, self.action(kind, hook, priority, helpers, bool(tests))])
            if len(_transports(rule)) <= 1:
                return rule

    def test(self, hook: str) -> str:
        source, ip = self.source, self.ip
        low, high = self.ports()
        port = str(low) if low == high else f"{low}-{high}"
        out = hook in ("forward", "postrouting", "output")
        device = source.choice(('"cni0"', '"eth0"', '"flannel.1"', '"fl*"', '{ "cni0", "eth0" }'))
        side = source.choice(("saddr", "daddr"))
        at = " . oif" if hook in ("postrouting", "output") else " . iif"
        choices = [
            f"{ip} {side} {source.choice(('', '!= '))}{self.network()}",
            f"{ip} {side} {source.choice(('', '!= '))}@nets",
            f"{ip} {side} {{ {self.target()}, {vips(self.of.family)} }}",
            f"{ip} daddr . th dport @pairs" if self.table != "none" else "",
            f"{'oifname' if out else 'iifname'} {source.choice(('', '!= '))}{device}",
            f"meta l4proto {source.choice(('tcp', 'udp', '{ tcp, udp }', '!= tcp'))}",
            f"{source.choice(('tcp', 'udp'))} dport {source.choice(('', '!= '))}{port}",
            "udp dport { 53, 80-443 }",
            f"ct state {source.choice(('new', 'established,related', 'invalid', 'new,untracked'))}",
            "ct status dnat",
            f"meta mark & {source.choice(MARKS):#x} {source.choice(('!= 0', '== 0'))}",
            f"meta mark {source.choice(MARKS):#x}",
            f"ct mark {source.choice(MARKS):#x}",
            f"fib {side}{source.choice(('', at))} type {source.choice(('local', 'unicast', '!= local'))}",
            "ct direction original",
            "tcp flags & (syn|ack) == syn",
            f"{'icmp' if self.of.family is Family.IPV4 else 'icmpv6'} type echo-request",
        ]
        if source.random() < 0.01:
            return "limit rate 100/second"
        return source.choice(choices)

    def action(self, kind: str, hook: str, priority: int, helpers: Sequence[str], tested: bool) -> str:
        source = self.source
        found: list[Callable[[], str]] = [self.mark, self.mark, lambda: "counter", lambda: "return", lambda: "accept"]
        if helpers:
            found += [lambda: f"{source.choice(('jump', 'jump', 'goto'))} {source.choice(helpers)}"] * 3
            found.append(lambda: self.verdict_map(helpers))
        found.append(lambda: self.anonymous(kind))
        if kind == "nat":
            found += [lambda: self.nat(hook)] * 5
        elif tested:
            found += [lambda: "drop", lambda: "accept"]
        if kind == "filter" and tested and hook in ("input", "forward", "output"):
            found.append(lambda: "reject")
        if priority < -200 and tested:
            found.append(lambda: "notrack")
        return source.choice(found)()

    def anonymous(self, kind: str) -> str:
        """Return a chain without a name, which nft prints as text in JSON too."""
        source = self.source
        end = source.choice(("return", "accept", "accept" if kind == "nat" else "drop"))
        side, mark = source.choice(("saddr", "daddr")), source.choice(MARKS)
        rules = (
            f"{self.ip} {side} {source.choice(('', '!= '))}{self.network()} {end}",
            f"{self.ip} {side} {{ {self.target()}, {vips(self.of.family)} }} meta mark set {mark:#x}",
            f"ct state established,related counter {end}",
            f"th dport {source.choice(PORTS)}-65535 {end}",
        )
        return f"{source.choice(('jump', 'goto'))} {{ {'; '.join(source.sample(rules, 2))}; }}"

    def mark(self) -> str:
        mark = self.source.choice(MARKS)
        return self.source.choice(
            (
                f"meta mark set {mark:#x}",
                f"meta mark set meta mark | {mark:#x}",
                f"meta mark set meta mark & {0xFFFFFFFF ^ mark:#x}",
                f"meta mark set meta mark ^ {mark:#x}",
                "ct mark set meta mark",
                "meta mark set ct mark",
                f"ct mark set {mark:#x}",
            )
        )

    def verdict_map(self, helpers: Sequence[str]) -> str:
        helper = self.source.choice(helpers)
        ports = self.source.sample(PORTS, 3)
        return self.source.choice(
            (
                f"th dport vmap {{ {ports[0]} : jump {helper}, {ports[1]} : accept, {ports[2]} : return }}"
                if self.table == "none"
                else f"udp dport vmap {{ {ports[0]} : jump {helper}, {ports[1]} : accept, {ports[2]} : return }}",
                f"{self.ip} daddr vmap {{ {self.target()} : goto {helper}, {vips(self.of.family)} : jump {helper} }}",
                f'iifname vmap {{ "cni0" : jump {helper}, "eth0" : return }}',
                f"ct state vmap {{ new : jump {helper}, established : accept }}",
                f"{self.ip} saddr . {self.ip} daddr vmap {{ {self.of.pod} . {self.target()} : jump {helper} }}",
                f"tcp dport vmap {{ 1-100 : jump {helper}, 8000-9000 : goto {helper} }}",
            )
        )

    def nat(self, hook: str) -> str:
        ip = f" {self.ip}" if self.table == "inet" else ""
        proto = self.source.choice(("tcp", "udp"))
        if hook in ("prerouting", "output"):
            found = [
                f"dnat{ip} to {self.target()}",
                f"{self.ip} daddr {vips(self.of.family)} dnat{ip} to {self.target()}",
                f"meta l4proto {proto} dnat{ip} to {_host(self.target())}:{self.source.choice(PORTS)}",
                f"dnat{ip} to {proto} dport map @backends",
            ]
            if hook == "prerouting":
                found.append(f"meta l4proto {proto} redirect to :9000")
        elif hook == "postrouting":
            found = ["masquerade", "masquerade fully-random", f"snat{ip} to {self.own()}"]
        else:
            found = [f"snat{ip} to {self.own()}"]
        return self.source.choice(found)


def _host(address: Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


# ---- iptables

_TABLES = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}


class _Xtables(_Words):
    """Some tables of iptables, of either flavour."""

    def text(self) -> str:
        tables = self.source.sample(sorted(_TABLES), self.source.randint(1, 3))
        return "".join(self.table(name) for name in tables)

    def table(self, name: str) -> str:
        chains, rules = [], []
        for chain in _TABLES[name]:
            drop = name == "filter" and chain == "FORWARD" and self.source.random() < 0.15
            chains.append(f":{chain} {'DROP' if drop else 'ACCEPT'} [0:0]")
        for chain in self.source.sample(_TABLES[name], self.source.randint(1, 2)):
            helpers = [f"{chain}-{index}" for index in range(self.source.randint(0, 2))]
            chains += [f":{helper} - [0:0]" for helper in helpers]
            for index, one in enumerate((chain, *helpers)):
                rules += [
                    self.rule(name, chain, one, helpers[index:]) for _ in range(self.source.randint(1, MAX_RULES))
                ]
        return "\n".join((f"*{name}", *chains, *rules, "COMMIT", ""))

    def rule(self, table: str, hook: str, chain: str, helpers: Sequence[str]) -> str:
        tests = [self.test(hook, table) for _ in range(self.source.choice((1, 1, 2, 2)))]
        # iptables takes each of its plain options once.
        distinct = {
            test.replace("! ", "").split()[0] + test.split()[-2] * test.startswith("-m"): test for test in tests
        }
        plain = {test for test in distinct.values() if "-p " in test}
        kept = [test for test in distinct.values() if test not in plain] + sorted(plain)[:1]
        action = self.action(table, hook, helpers)
        if "--to-ports" in action or ":9000" in action:
            kept = [test for test in kept if "-p " not in test] + ["-p udp"]
        return " ".join([f"-A {chain}", *kept, f"-j {action}" if not action.startswith("-g") else action])

    def test(self, hook: str, table: str) -> str:
        source = self.source
        no = source.choice(("", "", "! "))
        low, high = self.ports()
        port = str(low) if low == high else f"{low}:{high}"
        proto = source.choice(("tcp", "udp"))
        low_address, high_address = sorted((self.target(), self.target()))
        device = f"{no}-o" if hook in ("FORWARD", "POSTROUTING", "OUTPUT") else f"{no}-i"
        limit = f" --limit-iface-{'out' if hook in ('POSTROUTING', 'OUTPUT') else 'in'}"
        found = [
            f"{no}-s {self.network()}",
            f"{no}-d {self.network()}",
            f"{device} {source.choice(('cni0', 'eth0', 'fl+'))}",
            f"-p {proto} -m {proto} {no}--dport {port}",
            f"-p {proto} -m multiport {no}--dports 53,80,8000:9000",
            f"{no}-p {proto}",
            f"-m conntrack {no}--ctstate {source.choice(('NEW', 'RELATED,ESTABLISHED', 'INVALID,DNAT', 'DNAT'))}",
            f"-m mark {no}--mark {source.choice(MARKS):#x}/{source.choice(MARKS):#x}",
            f"-m connmark {no}--mark {source.choice(MARKS):#x}",
            f"-m addrtype {no}--{source.choice(('src', 'dst'))}-type LOCAL{source.choice(('', limit))}",
            f"-m iprange {no}--dst-range {low_address}-{high_address}",
            '-m comment --comment "a \\"word\\" -j DROP"',
            f"-p tcp -m tcp {no}--tcp-flags SYN,ACK SYN",
        ]
        return source.choice(found)

    def action(self, table: str, hook: str, helpers: Sequence[str]) -> str:
        source = self.source
        found = ["RETURN", "ACCEPT", f"MARK --set-xmark {source.choice(MARKS):#x}/{source.choice(MARKS):#x}"]
        found = found if table == "mangle" else [*found[:2], "ACCEPT"]
        if helpers:
            found += [source.choice(helpers)] * 2 + [f"-g {source.choice(helpers)}"]
        helpers_free = {"filter": ["DROP", "REJECT", "DROP"], "raw": ["NOTRACK", "DROP"]}
        found += helpers_free.get(table, [])
        if table == "mangle":
            mark = source.choice(MARKS)
            found += [
                f"MARK --set-xmark {mark:#x}/{mark:#x}",
                "CONNMARK --save-mark",
                "CONNMARK --restore-mark",
                "DROP",
            ]
            found.append(f"CONNMARK --set-xmark {mark:#x}/0xffffffff")
        if table == "nat":
            found += self.nat(hook) * 2
        return source.choice(found)

    def nat(self, hook: str) -> list[str]:
        if hook in ("PREROUTING", "OUTPUT"):
            return [
                f"DNAT --to-destination {self.target()}",
                f"DNAT --to-destination {_host(self.target())}:9000",
                *(["REDIRECT --to-ports 9000"] if hook == "PREROUTING" else []),
            ]
        if hook == "POSTROUTING":
            return [
                "MASQUERADE",
                "MASQUERADE --random-fully",
                f"SNAT --to-source {self.own()}",
                f"NETMAP --to {vips(self.of.family)}",
            ]
        return [f"SNAT --to-source {self.own()}"]
