"""A node whose rules, names and comments try to become markup, and a parser that holds a page to its form."""

from __future__ import annotations

from html.parser import HTMLParser
from ipaddress import ip_address, ip_network
from typing import Optional

from flanneld_masq.model import FamilyLease, Lease, Settings
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.flows import flows
from flanneld_masq.report.page import of_flow, page

from ..packet_path.nodes import DADDR, chain, match, rule, snapshot, table

LEASE = Lease(
    "/run/flannel/subnet.env",
    FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1")),
)
ATTACK = "</code></style><script>document.title='pwned'</script><img src=x onerror=alert(1)>\"'&\x1b[2J\n"
_WITHOUT_END = ("meta",)
_TAGS = frozenset(
    (
        *("html", "head", "meta", "title", "style", "body", "section", "div", "p", "h1", "h2", "h3", "ol", "ul", "li"),
        *("b", "i", "small", "strong", "code", "span", "details", "summary"),
        *("svg", "g", "line", "circle", "path", "text"),
    )
)


def hostile_node() -> Node:
    """Return a node that masquerades, and drops what goes to the other node, with ATTACK in all its names."""
    objects = [
        table(ATTACK),
        chain(f"post{ATTACK}", "postrouting", "nat", prio=100, table=ATTACK),
        rule(f"post{ATTACK}", {"masquerade": None}, table=ATTACK, comment=ATTACK),
        chain(f"forward{ATTACK}", "forward", table=ATTACK),
        rule(
            f"forward{ATTACK}",
            match(DADDR, {"prefix": {"addr": "10.244.2.0", "len": 24}}),
            {"drop": None},
            table=ATTACK,
            comment=ATTACK,
        ),
    ]
    legacy = f'*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m comment --comment "{ATTACK.strip()}" -j ACCEPT\nCOMMIT\n'
    return Node(snapshot(objects, legacy=legacy, unread=(ATTACK,)))


def page_of(node: Node, title: str = "node-1") -> str:
    return page(node, list(map(of_flow, flows(node, LEASE, Settings()))), title=title, about=(ATTACK,))


class Form(HTMLParser):
    """Reads a page. `text` is what it shows, `tags` are the elements in order."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Optional[str]]]] = []
        self.text = ""
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        assert tag in _TAGS
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        assert not any(name.startswith("on") or name in ("href", "src", "style", "action") for name in names)
        self.tags.append((tag, dict(attrs)))
        if tag not in _WITHOUT_END:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
