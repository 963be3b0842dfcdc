"""Describes in nft's words what a rule of nf_tables does, whichever program wrote it. For people; nothing is compared
by it.

Formats: include/uapi/linux/netfilter/nf_tables.h of the kernel for expressions, the xt_*.h headers
beside it for what iptables-nft passes through nft_compat.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import attributes, text, u32
from flanneld_masq.kernel.objects import CACHED_RULES, Expression, KernelRule, comment_in
from flanneld_masq.model import SLOTS, Family

_CT_STATE = "ct state"
# struct xt_conntrack_mtinfo2 and 3: match_flags, invert_flags, state_mask and status_mask stand behind 8 addresses,
# 2 numbers of seconds, the protocol and 4 ports
_CONNTRACK_FLAGS = 8 * 16 + 2 * 4 + 5 * 2
_CONNTRACK_INVALID = struct.pack("=HHHH", uapi.XT_CONNTRACK_STATE, 0, uapi.XT_CONNTRACK_STATE_INVALID, 0)
_VERDICTS = {
    uapi.NFT_RETURN: "return",
    uapi.NFT_GOTO: "goto",
    uapi.NFT_JUMP: "jump",
    uapi.NFT_BREAK: "break",
    uapi.NFT_CONTINUE: "continue",
    uapi.NF_DROP: "drop",
    uapi.NF_ACCEPT: "accept",
}
_OPERATORS = {
    uapi.NFT_CMP_EQ: "",
    uapi.NFT_CMP_NEQ: "!= ",
    uapi.NFT_CMP_LT: "< ",
    uapi.NFT_CMP_LTE: "<= ",
    uapi.NFT_CMP_GT: "> ",
    uapi.NFT_CMP_GTE: ">= ",
}
_META_KEYS = {
    uapi.NFT_META_LEN: "length",
    uapi.NFT_META_PROTOCOL: "protocol",
    uapi.NFT_META_MARK: "mark",
    uapi.NFT_META_IIF: "iif",
    uapi.NFT_META_OIF: "oif",
    uapi.NFT_META_IIFNAME: "iifname",
    uapi.NFT_META_OIFNAME: "oifname",
    uapi.NFT_META_L4PROTO: "l4proto",
}
_NAT_FLAGS = {
    uapi.NF_NAT_RANGE_PROTO_RANDOM: "random",
    uapi.NF_NAT_RANGE_PERSISTENT: "persistent",
    uapi.NF_NAT_RANGE_PROTO_RANDOM_FULLY: "fully-random",
}
_ADDRESS_FIELDS = {  # offsets in bytes in struct iphdr and struct ipv6hdr
    (Family.IPV4, 12): "saddr",
    (Family.IPV4, 16): "daddr",
    (Family.IPV6, 8): "saddr",
    (Family.IPV6, 24): "daddr",
}
_BITWISE_READ = {uapi.NFTA_BITWISE_SREG, uapi.NFTA_BITWISE_DREG, uapi.NFTA_BITWISE_MASK}
_UNKNOWN = ("?", b"")
_MATCHLESS = frozenset({"counter", "immediate", "last", "log", "notrack", "queue", "reject", "target"})
_META_LOAD = frozenset({uapi.NFTA_META_DREG, uapi.NFTA_META_KEY})
_INTERFACE_NAMES = frozenset({uapi.NFT_META_IIFNAME, uapi.NFT_META_OIFNAME})
# expressions, and targets of xtables, that end the way of a packet without being verdicts
_HANDED_OVER = {
    **dict.fromkeys(("reject", "REJECT"), "drop"),
    **dict.fromkeys(("queue", "NFQUEUE", "QUEUE"), "queue"),
    **dict.fromkeys(("synproxy", "SYNPROXY"), "synproxy"),
    **dict.fromkeys(("fwd",), "fwd"),
}


def describe(rule: KernelRule, family: Family) -> str:
    """Return the whole rule as one line of nft's language, or close to it where nft has no word for it."""
    tag = comment(rule)
    words = _words(rule.expressions, family)
    return " ".join([*words, f'comment "{tag}"'] if tag else words) or "(no expression)"


def comment(rule: KernelRule) -> str:
    """Return the comment that nft keeps in the user data, or iptables-nft in a match; empty for none."""
    return _comment(rule.expressions, rule.userdata)


def jump_target(rule: KernelRule) -> str | None:
    """Return the chain that the rule jumps or goes to; None if it does neither."""
    return _jump_target(rule.expressions)


@dataclass(frozen=True, **SLOTS)
class Decision:
    """The decision of a rule. `verdict` is in nft's words ("drop" also for a reject; empty if it decides nothing),
    `chain` where a jump or goto leads to. `always` is True if the rule matches every packet for certain."""

    verdict: str
    chain: str
    always: bool


def decision(rule: KernelRule) -> Decision:
    """Return what the rule decides."""
    return _decision(rule.expressions)


# The same few rules are read again and again, so their descriptions are cached.


@lru_cache(CACHED_RULES)
def _words(expressions: tuple[Expression, ...], family: Family) -> tuple[str, ...]:
    reader = _Reader(family)
    return tuple(word for expression in expressions if (word := reader.read(expression)))


@lru_cache(CACHED_RULES)
def _comment(expressions: tuple[Expression, ...], userdata: bytes) -> str:
    in_userdata = comment_in(userdata)
    if in_userdata:
        return in_userdata
    for expression in expressions:
        name, info = extension(expression)
        if name == "comment":
            return text(info.split(b"\0", 1)[0])
    return ""


@lru_cache(CACHED_RULES)
def _jump_target(expressions: tuple[Expression, ...]) -> str | None:
    for expression in expressions:
        verdict = _verdict(expression)
        if verdict is not None and verdict[1]:
            return verdict[1]
    return None


@lru_cache(CACHED_RULES)
def _decision(expressions: tuple[Expression, ...]) -> Decision:
    always = True
    verdict = chain = ""
    for expression in expressions:
        name, (xtables, _) = expression.name, extension(expression)
        always = always and (
            name in _MATCHLESS or (name == "match" and xtables == "comment") or _loads_name(expression)
        )
        if name in ("reject", "target", *_HANDED_OVER):
            verdict = _HANDED_OVER.get(xtables or name, verdict)
        elif name == "lookup":
            verdict = "vmap"  # perhaps; a verdict behind it says that the map has none
        verdict, chain = _verdict(expression) or (verdict, chain)
    return Decision(verdict, chain, always)


def _loads_name(expression: Expression) -> bool:
    """Return True if the expression only loads the name of an interface. Alone it matches any name, as iptables-nft
    writes `-i +`; if a comparison follows, the comparison is the condition."""
    values = dict(attributes(expression.data)) if expression.name == "meta" else {}
    return values.keys() >= _META_LOAD and u32(values[uapi.NFTA_META_KEY]) in _INTERFACE_NAMES


class _Reader:
    """Follows what each register holds from one expression to the next."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._registers: dict[int, tuple[str, bytes]] = {}  # the field that it holds, and the mask laid over it

    def read(self, expression: Expression) -> str:
        """Return the words that this expression adds; none if it only loads a register, or counts."""
        name = expression.name
        values = dict(attributes(expression.data))
        if name == "counter" or self._loads(name, values):
            return ""
        if name in ("match", "target"):
            return _describe_extension(expression, self._family)
        if name == "immediate":
            verdict = _verdict(expression)
            return " ".join(verdict).strip() if verdict else f"immediate({expression.data.hex()})"
        if name == "masq":
            return "masquerade" + _nat_flags(u32(values.get(uapi.NFTA_MASQ_FLAGS)))
        if name == "cmp":
            held, mask = self._registers.get(u32(values.get(uapi.NFTA_CMP_SREG)), _UNKNOWN)
            operator = _OPERATORS.get(u32(values.get(uapi.NFTA_CMP_OP)), "? ")
            return _comparison(held, mask, operator, _value(values.get(uapi.NFTA_CMP_DATA, b"")))
        return f"{name}({expression.data.hex()})"

    def _loads(self, name: str, values: dict[int, bytes]) -> bool:
        """Return True if an expression of that name loads a register, after following it."""
        if name == "payload" and uapi.NFTA_PAYLOAD_DREG in values:
            self._registers[u32(values[uapi.NFTA_PAYLOAD_DREG])] = (self._payload(values), b"")
            return True
        if name == "meta" and uapi.NFTA_META_DREG in values:
            key = u32(values.get(uapi.NFTA_META_KEY))
            self._registers[u32(values[uapi.NFTA_META_DREG])] = (f"meta {_META_KEYS.get(key, f'key {key}')}", b"")
            return True
        if name == "ct" and uapi.NFTA_CT_DREG in values and u32(values.get(uapi.NFTA_CT_KEY)) == uapi.NFT_CT_STATE:
            self._registers[u32(values[uapi.NFTA_CT_DREG])] = (_CT_STATE, b"")
            return True
        if name == "bitwise" and values.keys() >= _BITWISE_READ:
            if any(_value(values.get(uapi.NFTA_BITWISE_XOR, b""))):
                return False
            held, _ = self._registers.get(u32(values[uapi.NFTA_BITWISE_SREG]), _UNKNOWN)
            self._registers[u32(values[uapi.NFTA_BITWISE_DREG])] = (held, _value(values[uapi.NFTA_BITWISE_MASK]))
            return True
        return False

    def _payload(self, values: dict[int, bytes]) -> str:
        base = u32(values.get(uapi.NFTA_PAYLOAD_BASE))
        offset, length = u32(values.get(uapi.NFTA_PAYLOAD_OFFSET)), u32(values.get(uapi.NFTA_PAYLOAD_LEN))
        field = _ADDRESS_FIELDS.get((self._family, offset))
        if base == uapi.NFT_PAYLOAD_NETWORK_HEADER and field and length * 8 <= self._family.data.width:
            return f"{self._family.data.nft} {field}"
        return f"@{base},{offset * 8},{length * 8}"


def _comparison(held: str, mask: bytes, operator: str, value: bytes) -> str:
    if held.endswith(("saddr", "daddr")):
        width = 4 if held.startswith("ip ") else 16
        length = _prefix_length(mask or b"\xff" * len(value), width)
        if length is not None and len(value) <= width:
            prefix = f"/{length}" if length < width * 8 else ""
            return f"{held} {operator}{ip_address(value.ljust(width, bytes(1)))}{prefix}"
    if held == f"meta {_META_KEYS[uapi.NFT_META_MARK]}":
        wanted = f"{int.from_bytes(value, sys.byteorder):#010x}"
        masked = f" & {int.from_bytes(mask, sys.byteorder):#010x}" if mask else ""
        return f"{held}{masked} {operator or ('== ' if mask else '')}{wanted}"
    if held == _CT_STATE and mask and not any(value) and operator == _OPERATORS[uapi.NFT_CMP_NEQ]:
        bits = int.from_bytes(mask, sys.byteorder)
        return f"{held} {'invalid' if bits == uapi.NF_CT_STATE_INVALID_BIT else f'{bits:#x}'}"
    masked = f" & 0x{mask.hex()}" if mask else ""
    return f"{held}{masked} {operator}0x{value.hex()}"


def _prefix_length(mask: bytes, width: int) -> int | None:
    """Return the bits of the prefix that a mask of an address of `width` bytes keeps; None for any other mask."""
    bits = int.from_bytes(mask.ljust(width, bytes(1)), "big")
    length = bin(bits).count("1")
    return length if len(mask) <= width and bits == (1 << length) - 1 << (width * 8 - length) else None


def _verdict(expression: Expression) -> tuple[str, str] | None:
    """Return the verdict and its chain (empty for none); None if this expression does not set a verdict."""
    if expression.name != "immediate":
        return None
    data = dict(attributes(expression.data)).get(uapi.NFTA_IMMEDIATE_DATA, b"")
    nested = dict(attributes(data)).get(uapi.NFTA_DATA_VERDICT)
    if nested is None:
        return None
    verdict = dict(attributes(nested))
    code = int.from_bytes(verdict.get(uapi.NFTA_VERDICT_CODE, b"")[:4], "big", signed=True)
    return _VERDICTS.get(code, f"verdict {code}"), text(verdict.get(uapi.NFTA_VERDICT_CHAIN))


def extension(expression: Expression) -> tuple[str, bytes]:
    """Return the name and the private data of an xtables extension; both empty for any other expression."""
    if expression.name == "match":
        name, info = uapi.NFTA_MATCH_NAME, uapi.NFTA_MATCH_INFO
    elif expression.name == "target":
        name, info = uapi.NFTA_TARGET_NAME, uapi.NFTA_TARGET_INFO
    else:
        return "", b""
    values = dict(attributes(expression.data))
    return text(values.get(name)), values.get(info, b"")


def _describe_extension(expression: Expression, family: Family) -> str:
    name, info = extension(expression)
    if name == "comment":
        return ""
    if name == "MASQUERADE" and len(info) >= 8:
        # struct nf_nat_ipv4_multi_range_compat starts with a count, struct nf_nat_range with the flags
        flags = struct.unpack_from("=I", info, 4 if family is Family.IPV4 else 0)[0]
        return "masquerade" + _nat_flags(flags)
    if name == "mark" and len(info) >= 9:
        value, mask, inverted = struct.unpack_from("=IIB", info)
        return f"meta mark & {mask:#010x} {'!=' if inverted else '=='} {value:#010x}"
    if (
        name == "conntrack"
        and info[_CONNTRACK_FLAGS : _CONNTRACK_FLAGS + len(_CONNTRACK_INVALID)] == _CONNTRACK_INVALID
    ):
        return f"{_CT_STATE} invalid"
    return f"xt {name}({info.rstrip(bytes(1)).hex()})"


def _nat_flags(flags: int) -> str:
    names = [name for bit, name in _NAT_FLAGS.items() if flags & bit]
    return " " + ",".join(names) if names else ""


def _value(data: bytes) -> bytes:
    return dict(attributes(data)).get(uapi.NFTA_DATA_VALUE, b"")
