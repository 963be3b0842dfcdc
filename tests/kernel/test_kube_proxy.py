"""kube-proxy's mark, read from rules as kube-proxy writes them, and followed while the daemon runs."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from flanneld_masq.hookspecs import Backend
from flanneld_masq.model import BackendName, Family, Mark, MarkEvidence

from ..common import eventually
from .conftest import BACKENDS, Node

BY_EVENTS_ALONE = "[reconcile]\nresync_seconds = 3600\nlegacy_poll_seconds = 0.05\n"
RESYNCED = "[reconcile]\nresync_seconds = 1\nlegacy_poll_seconds = 0.05\n"

# ---- kube-proxy's rules, by mode and release


def iptables(bit: int, option: str = "--or-mark {0:#x}") -> str:
    """Mode iptables, since release 1.15; with --set-xmark before."""
    return f"""\
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-A6YTXBGM6P4RKG3W - [0:0]
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SEP-A6YTXBGM6P4RKG3W -s 10.0.0.5 -m comment --comment "default/a" -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m mark ! --mark {bit:#x}/{bit:#x} -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark {bit:#x}
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK {option.format(bit)}
COMMIT
"""


def nftables(family: Family, bit: int) -> str:
    """Mode nftables, since release 1.31."""
    return f"""\
table {family.data.nft} kube-proxy {{
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    jump masquerading
  }}
  chain masquerading {{
    meta mark & {bit:#x} != 0 meta mark set meta mark ^ {bit:#x} masquerade fully-random
  }}
}}
"""


def old_nftables(family: Family, bit: int) -> str:
    """Up to release 1.30."""
    return f"""\
table {family.data.nft} kube-proxy {{
  chain masquerading {{
    meta mark & {bit:#x} == 0 return
    meta mark set meta mark ^ {bit:#x}
    masquerade fully-random
  }}
  chain mark-for-masquerade {{
    meta mark set meta mark | {bit:#x}
  }}
}}
"""


def mark_chain_alone(family: Family, bit: int) -> str:
    return (
        f"table {family.data.nft} kube-proxy {{ chain mark-for-masquerade {{ meta mark set meta mark | {bit:#x}; }}; }}"
    )


NFT_MODES: dict[str, Callable[[Family, int], str]] = {
    "since 1.31": nftables,
    "up to 1.30": old_nftables,
    "mark chain alone": mark_chain_alone,
}
NFT, IPTABLES_NFT, LEGACY = map(BackendName, BACKENDS)


def read(node: Node, family: Family, name: BackendName) -> MarkEvidence | None:
    with node.entered():
        return node.backends(family)[name].kube_proxy_mark()


def restore(node: Node, flavour: str, text: str, family: Family = Family.IPV4) -> None:
    node.tool(f"{family.data.tools}-{flavour}-restore", "--noflush", "--wait", stdin=text)


@pytest.mark.parametrize("bit", [1, 0x4000, 0x8000, 1 << 31])
class TestRead:
    @pytest.mark.parametrize("option", ["--or-mark {0:#x}", "--set-xmark {0:#x}/{0:#x}"])
    @pytest.mark.parametrize(("flavour", "name"), [("nft", IPTABLES_NFT), ("legacy", LEGACY)])
    def test_from_iptables(
        self, node: Node, family: Family, flavour: str, name: BackendName, option: str, bit: int
    ) -> None:
        assert read(node, family, name) is None
        text = iptables(bit, option).replace("10.0.0.5", "10.0.0.5" if family is Family.IPV4 else "fd00::5")
        restore(node, flavour, text, family)
        evidence = read(node, family, name)
        assert evidence is not None and evidence.mark == Mark(bit, bit)
        assert "chain KUBE-MARK-MASQ of" in evidence.where
        assert read(node, next(one for one in Family if one is not family), name) is None

    @pytest.mark.parametrize("mode", NFT_MODES)
    def test_from_nftables(self, node: Node, family: Family, mode: str, bit: int) -> None:
        assert read(node, family, NFT) is None
        node.tool("nft", "-f", "-", stdin=NFT_MODES[mode](family, bit))
        chain = "mark-for-masquerade" if mode == "mark chain alone" else "masquerading"
        where = f"chain {chain} of table {family.data.nft} kube-proxy"
        assert read(node, family, NFT) == MarkEvidence(Mark(bit, bit), where)


def test_reading_makes_no_legacy_table(node: Node) -> None:
    before = node.ruleset()
    assert read(node, Family.IPV4, LEGACY) is None
    assert node.ruleset() == before


@pytest.mark.parametrize(("name", "flavour"), [(NFT, ""), (IPTABLES_NFT, "nft")])
def test_fingerprint_differs_with_the_mark_alone(node: Node, name: BackendName, flavour: str) -> None:
    """kube-proxy writes its chains again at every sync; that is no reason for a pass."""

    def write(bit: int) -> None:
        if flavour:
            restore(node, flavour, iptables(bit))
        else:
            text = "flush chain ip kube-proxy masquerading\n" if seen else ""
            node.tool("nft", "-f", "-", stdin=text + nftables(Family.IPV4, bit).replace("    jump masquerading\n", ""))

    with node.entered():
        backend: Backend = node.backends(Family.IPV4)[name]
    seen: list[bytes | None] = []
    for bit in (1, 1, 2, 1):
        write(bit)
        with node.entered():
            seen.append(backend.fingerprint(frozenset()))
    assert seen[0] == seen[1] == seen[3] != seen[2]


# ---- the daemon

Writer = Callable[[Node, int], None]


def write_nftables(node: Node, bit: int) -> None:
    removal = "add table ip kube-proxy\ndelete table ip kube-proxy\n"
    node.tool("nft", "-f", "-", stdin=removal + nftables(Family.IPV4, bit))


WRITERS: dict[str, Writer] = {
    "nft": write_nftables,
    "iptables-nft": lambda node, bit: restore(node, "nft", iptables(bit)),
    "iptables-legacy": lambda node, bit: restore(node, "legacy", iptables(bit)),
}


@pytest.mark.parametrize("proxy", WRITERS)
@pytest.mark.parametrize("name", BACKENDS)
def test_daemon_follows_the_mark(node: Node, name: str, proxy: str) -> None:
    legacy = proxy == "iptables-legacy"
    write = WRITERS[proxy]
    write(node, 0x8000)
    node.configure(RESYNCED if legacy else BY_EVENTS_ALONE, backend=name)
    with node.running() as daemon:
        daemon.reached("synced")
        assert marked(daemon.status()) == "0x8000/0x8000"
        assert len(daemon.lines("ipv4: rules applied")) == 1, "the mark was read before the first write"
        assert rule_of(node, name) == "0x8000"
        for bit in (1, 0x4000):
            write(node, bit)
            eventually(lambda: marked(daemon.status()) == f"{bit:#x}/{bit:#x}")
            assert rule_of(node, name) == f"{bit:#x}"
            assert len(daemon.lines(f"kube-proxy's mark {bit:#x}/{bit:#x} are left")) == 1
            assert node.masq("plan").returncode == 0
        assert not daemon.lines("drift repaired")
        assert "kube-proxy's mark: 0x4000/0x4000 (chain " in node.masq("status").stdout
        assert daemon.stop() == 0
    with node.running() as daemon:
        daemon.reached("synced")
        assert daemon.lines("ipv4: the kernel already holds the right rules; nothing written")


def marked(status: dict[str, object]) -> str:
    families = status["families"]
    assert isinstance(families, dict)
    mark = families["ipv4"].get("kube_proxy_mark", {}).get("mark")
    assert isinstance(mark, str)
    return mark


def rule_of(node: Node, name: str) -> str:
    """The mark that the daemon's rule tests."""
    if name == "nft":
        listed = node.tool("nft", "list", "table", "ip", "flanneld-masq")
        found = re.search(r"meta mark (?:& \S+ == )?(0x[0-9a-f]+)", listed)
        assert found is not None
        return f"{int(found[1], 16):#x}"
    listed = node.tool(f"iptables-{name.split('-')[1]}", "-w", "-t", "nat", "-S", "FLANNELD-MASQ")
    return listed.split("--mark ")[1].split("/")[0]


def test_mark_that_vanishes_gives_way_to_the_default(node: Node) -> None:
    WRITERS["nft"](node, 1)
    node.configure(BY_EVENTS_ALONE, backend="nft")
    with node.running() as daemon:
        daemon.reached("synced")
        assert marked(daemon.status()) == "0x1/0x1"
        node.tool("nft", "delete", "table", "ip", "kube-proxy")
        eventually(lambda: marked(daemon.status()) == "0x4000/0x4000")
        assert rule_of(node, "nft") == "0x4000"


def test_explain_and_render_name_the_mark(node: Node) -> None:
    WRITERS["iptables-nft"](node, 0x8000)
    asked = ("explain", "--ours", "--src", "10.244.1.5", "--dst", "192.0.2.1", "--mark")
    left = node.masq(*asked, "0x8000").stdout
    assert "keeps its source address" in left
    assert "kube-proxy's mark: 0x8000/0x8000 (chain KUBE-MARK-MASQ of table ip nat)" in left
    assert "masqueraded" in node.masq(*asked, "0x4000").stdout
    rendered = node.masq("render").stdout
    assert 'kube_proxy_mark = "auto": 0x4000/0x4000 here' in rendered and "0x00008000" not in rendered


def test_mark_of_the_settings_is_not_read(node: Node) -> None:
    WRITERS["nft"](node, 0x8000)
    node.configure('[masquerade]\nkube_proxy_mark = "0x2/0x2"\n', backend="nft")
    assert node.masq("apply").returncode == 0
    assert rule_of(node, "nft") == "0x2"


def test_families_that_are_left_out_keep_their_forward_rules(node: Node) -> None:
    node.configure('[masquerade]\nfamilies = ["ipv4"]\n', backend="nft")
    assert node.masq("apply").returncode == 0
    listed = node.tool("nft", "list", "table", "ip6", "flanneld-masq")
    assert "accept" in listed and "masquerade" not in listed
    assert "masquerade" in node.tool("nft", "list", "table", "ip", "flanneld-masq")
    assert node.masq("plan").returncode == 0
    explained = node.masq("explain", "--ours", "--src", "fd00:10:244:1::5", "--dst", "2001:db8::1").stdout
    assert "masquerade.families leaves the family out" in explained
