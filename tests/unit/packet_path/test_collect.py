"""The collector asks the tools for the ruleset; what it cannot list or read is marked as unread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flanneld_masq.errors import CommandError
from flanneld_masq.model import Family
from flanneld_masq.packet_path import collect as module
from flanneld_masq.packet_path.collect import collect
from flanneld_masq.packet_path.nft_tables import tables
from flanneld_masq.packet_path.queues import queues
from flanneld_masq.packet_path.ruleset import ruleset
from flanneld_masq.process import Completed, ProcessRunner

CHAINS = """{"nftables": [{"metainfo": {}},
{"chain": {"family": "ip", "table": "nat", "name": "POSTROUTING", "handle": 1, "type": "nat", "hook": "postrouting", \
"prio": 100, "policy": "accept"}}, {"chain": {"family": "inet", "table": "fw", "name": "c", "handle": 1}}]}"""
TABLE = """{"nftables": [{"metainfo": {}}, {"table": {"family": "inet", "name": "fw", "handle": 4}},
{"chain": {"family": "inet", "table": "fw", "name": "c", "handle": 1}}]}"""
SAVE = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -m set --match-set s src -j MASQUERADE\nCOMMIT\n"


class Tools(ProcessRunner):
    """Programs by the words of their command lines; any other prints an empty list."""

    def __init__(self, printed: dict[str, str], *, refused: tuple[str, ...] = ()) -> None:
        super().__init__(())
        self.printed, self.refused = printed, refused
        self.called: list[str] = []

    def __call__(
        self, argv: tuple[str, ...], *, executable: str | None = None, stdin: str = "", timeout: float = 0.0
    ) -> Completed:
        line = " ".join(argv)
        self.called.append(line)
        if argv[0] in self.refused:
            raise CommandError(argv, "failed with exit status 1", status=1, stderr="not permitted")
        return Completed(argv, self.printed.get(line, "[]"), "")


def test_a_node_without_rules(tmp_path: Path) -> None:
    tools = Tools({"nft -j list chains": '{"nftables": []}', "nft -j list ruleset": '{"nftables": []}'})
    found = collect(tools, tmp_path)
    assert (found.saves, found.unread, found.ipsets) == ((), (), "")
    assert not any("tables" in line and "-save" in line for line in tools.called)


def test_legacy_tables_are_listed_only_where_there_are_some(tmp_path: Path) -> None:
    names = tmp_path / "proc/thread-self/net/ip_tables_names"
    names.parent.mkdir(parents=True)
    names.write_text("nat\n")
    tools = Tools(
        {"nft -j list chains": '{"nftables": []}', "iptables-legacy-save": SAVE, "ipset save": "create s x\n"}
    )
    found = collect(tools, tmp_path)
    assert [save.text for save in found.saves] == [SAVE]
    assert "ip6tables-legacy-save" not in tools.called
    assert found.ipsets == "create s x\n"


def test_sysctls_of_the_node_and_its_devices(tmp_path: Path) -> None:
    for path, text in {"ipv4/ip_forward": "1\n", "ipv4/conf/flannel.1/rp_filter": "2\n"}.items():
        file = tmp_path / "proc/sys/net" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = collect(Tools({}), tmp_path)
    assert found.sysctls == {"net.ipv4.ip_forward": "1", "net.ipv4.conf.flannel.1.rp_filter": "2"}
    assert found.sysctl("net.ipv4.conf.flannel.1.rp_filter") == 2
    assert found.sysctl("net.ipv4.conf.eth0.rp_filter") is None


def test_queues_that_programs_read(tmp_path: Path) -> None:
    assert collect(Tools({}), tmp_path).queues is None
    file = tmp_path / "proc/thread-self/net/netfilter/nfnetlink_queue"
    file.parent.mkdir(parents=True)
    assert collect(Tools({}), tmp_path).queues == ""  # the kernel without its module
    file.write_text("    0   1234     0 2 65531     0     0        7  1\n")
    assert queues(collect(Tools({}), tmp_path).queues).numbers == frozenset({0})
    file.unlink()
    file.mkdir()
    assert collect(Tools({}), tmp_path).queues is None


def test_a_family_that_the_kernel_lacks_is_not_asked_for(tmp_path: Path) -> None:
    """With ipv6.disable=1 `ip -6 rule` fails."""
    present = tmp_path / Family.IPV4.data.proc
    present.parent.mkdir(parents=True)
    present.touch()
    tools = Tools({})
    found = collect(tools, tmp_path)
    assert set(found.rules) == set(found.routes) == {Family.IPV4}
    assert not any(" -6 " in line for line in tools.called)


def test_what_a_user_may_not_list_is_unread(tmp_path: Path) -> None:
    found = collect(Tools({}, refused=("nft", "iptables-nft-save", "ip6tables-nft-save")), tmp_path)
    assert len(found.unread) == 3
    assert "not permitted" in found.unread[0]


def test_many_chains_are_read_from_iptables_nft_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY_CHAINS", 1)
    tools = Tools({"nft -j list chains": CHAINS, "nft -j list table inet fw": TABLE, "iptables-nft-save": SAVE})
    found = collect(tools, tmp_path)
    assert "nft -j list ruleset" not in tools.called
    assert [(table.family, table.name, table.handle) for table in tables(found.ruleset)] == [
        ("ip", "nat", 0),
        ("inet", "fw", 4),
    ]
    (base,) = ruleset(found).bases
    assert base.chain.rule(0).place.text == "-A POSTROUTING -m set --match-set s src -j MASQUERADE"


@pytest.mark.parametrize(("flags", "expected"), [("dormant", 0), ("owner", 1)])
def test_garbled_flags_of_a_table_are_read_as_text(flags: str, expected: int, tmp_path: Path) -> None:
    """nft 1.0.6 prints the name of a table where its flag should be."""
    chain = CHAINS[CHAINS.index('{"chain"') : CHAINS.index("]}")].partition(",\n")[0]
    ruleset_text = (
        '{"nftables": [{"table": {"family": "ip", "name": "nat", "handle": 3, "flags": "nat"}}, ' + chain + "]}"
    )
    text = f"table ip nat {{\n\tflags {flags}\n\n\tchain POSTROUTING {{\n"
    printed = {"nft -j list chains": CHAINS, "nft -j list ruleset": ruleset_text, "nft -t list table ip nat": text}
    found = collect(Tools(printed), tmp_path)
    assert len(ruleset(found).bases) == expected
    assert tables(found.ruleset)[0].handle == 3


@pytest.mark.parametrize("named", ['device "d0"', "devices = { d0, d1 }", 'devices = { "d0", "d1" }'])
def test_devices_that_nft_leaves_out_are_read_as_text(named: str, tmp_path: Path) -> None:
    """nft 1.0.6 prints no device of a chain as JSON."""
    hook = '"type": "filter", "hook": "ingress", "prio": 0, "policy": "drop"'
    chain = f'{{"chain": {{"family": "netdev", "table": "t", "name": "a", "handle": 1, {hook}}}}}'
    begin = 'table netdev t {\n\tchain a {\n\t\tcomment "x"\n'
    listing = f"{begin}\t\ttype filter hook ingress {named} priority filter; policy drop;\n"
    document = f'{{"nftables": [{chain}]}}'
    printed = {"nft -j list chains": document, "nft -j list ruleset": document, "nft -t list table netdev t": listing}
    found = collect(Tools(printed), tmp_path)
    (base,) = ruleset(found).bases
    assert base.devices == ({"d0"} if "=" not in named else {"d0", "d1"})


def test_chains_that_cannot_be_divided_are_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY_CHAINS", 0)
    found = collect(Tools({"nft -j list chains": '{"nftables": [{"chain": {}}'}), tmp_path)
    assert found.ruleset == ""
    assert "output of nft" in found.unread[0]


def test_tables_are_listed_one_by_one_beside_one_of_the_daemon(tmp_path: Path) -> None:
    """nft 1.0.6 ends by SIGABRT where it lists 50,000 rules together with a protected table."""
    chains = CHAINS.replace('"table": "nat"', '"table": "flanneld-masq"')
    own = TABLE.replace("inet", "ip").replace("fw", "flanneld-masq")
    tools = Tools(
        {
            "nft -j list chains": chains,
            "nft -j list table inet fw": TABLE,
            "nft -j list table ip flanneld-masq": own,
        }
    )
    found = collect(tools, tmp_path)
    assert "nft -j list ruleset" not in tools.called
    assert [table.name for table in tables(found.ruleset)] == ["flanneld-masq", "fw"]
    assert found.unread == ()


def test_few_chains_are_listed_beside_a_save_that_was_cut(tmp_path: Path) -> None:
    chains = CHAINS.replace('"table": "fw"', '"table": "flanneld-masq"')
    own = TABLE.replace("fw", "flanneld-masq")
    printed = {
        "nft -j list chains": chains,
        "nft -j list table inet flanneld-masq": own,
        "iptables-nft-save": SAVE[:30],
    }
    found = collect(Tools(printed), tmp_path)
    assert [table.name for table in tables(found.ruleset)] == ["flanneld-masq"]


def test_a_table_that_the_save_lacks_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY_CHAINS", 1)
    save = "# Table `nat' is incompatible, use 'nft' tool.\n"
    tools = Tools({"nft -j list chains": CHAINS, "nft -j list table inet fw": TABLE, "iptables-nft-save": save})
    collect(tools, tmp_path)
    assert "nft -j list table ip nat" in tools.called


def test_the_daemon_loads_nothing_of_it() -> None:
    code = "import sys, flanneld_masq.service.daemon; print([m for m in sys.modules if 'packet_path' in m])"
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
