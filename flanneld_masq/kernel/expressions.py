"""Says in nft's words what an nf_tables rule does, whoever wrote it. For people; nothing is compared by it.

Formats: include/uapi/linux/netfilter/nf_tables.h of the kernel for expressions, the xt_*.h headers
beside it for what iptables-nft passes through nft_compat.
"""

from __future__ import annotations

import struct
import sys
from functools import lru_cache
from ipaddress import ip_address

from flanneld_masq.kernel.nfnetlink import Expression, KernelRule, attributes, comment_in, text, u32
from flanneld_masq.model import Family

_VERDICTS = {-5: "return", -4: "goto", -3: "jump", -2: "break", -1: "continue", 0: "drop", 1: "accept"}
_OPERATORS = {0: "", 1: "!= ", 2: "< ", 3: "<= ", 4: "> ", 5: ">= "}
_META_KEYS = {0: "length", 1: "protocol", 3: "mark", 4: "iif", 5: "oif", 6: "iifname", 7: "oifname", 16: "l4proto"}
_META_MARK = 3
_CACHED = 256
_NAT_FLAGS = {1 << 2: "random", 1 << 3: "persistent", 1 << 4: "fully-random"}
_ADDRESS_FIELDS = {
    (Family.IPV4, 12): "saddr",
    (Family.IPV4, 16): "daddr",
    (Family.IPV6, 8): "saddr",
    (Family.IPV6, 24): "daddr",
}


def describe(rule: KernelRule, family: Family) -> str:
    """The whole rule as one line of nft's language, or close to it where nft has no word for it."""
    found = comment(rule)
    words = _words(rule.expressions, family)
    return " ".join([*words, f'comment "{found}"'] if found else words) or "(no expression)"


def comment(rule: KernelRule) -> str:
    """The comment that nft keeps in the user data, or iptables-nft in a match; empty for none."""
    return _comment(rule.expressions, rule.userdata)


def jump_target(rule: KernelRule) -> str | None:
    """The chain that the rule jumps or goes to, if it does."""
    return _jump_target(rule.expressions)


def drops(rule: KernelRule) -> bool:
    """Whether the rule drops or rejects what it matches."""
    return any(
        ((verdict := _verdict(found)) is not None and verdict[0] == "drop")
        or found.name == "reject"
        or (found.name == "target" and _extension(found)[0] == "REJECT")
        for found in rule.expressions
    )


# The same few rules are read again and again, so what they say is remembered.


@lru_cache(_CACHED)
def _words(expressions: tuple[Expression, ...], family: Family) -> tuple[str, ...]:
    reader = _Reader(family)
    return tuple(word for expression in expressions if (word := reader.read(expression)))


@lru_cache(_CACHED)
def _comment(expressions: tuple[Expression, ...], userdata: bytes) -> str:
    found = comment_in(userdata)
    if found:
        return found
    for expression in expressions:
        name, info = _extension(expression)
        if name == "comment":
            return text(info.split(b"\0", 1)[0])
    return ""


@lru_cache(_CACHED)
def _jump_target(expressions: tuple[Expression, ...]) -> str | None:
    for expression in expressions:
        verdict = _verdict(expression)
        if verdict is not None and verdict[1]:
            return verdict[1]
    return None


class _Reader:
    """Follows what each register holds from one expression to the next."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._registers: dict[int, tuple[str, bytes]] = {}  # what it holds, and the mask laid over it

    def read(self, expression: Expression) -> str:
        """The words that this expression adds; none where it only loads a register, or counts."""
        name = expression.name
        found = dict(attributes(expression.data))
        if name == "counter":
            return ""
        if name in ("match", "target"):
            return _describe_extension(expression, self._family)
        if name == "immediate":
            verdict = _verdict(expression)
            return " ".join(verdict).strip() if verdict else f"immediate({expression.data.hex()})"
        if name == "masq":
            return "masquerade" + _nat_flags(u32(found.get(1)))
        if name == "payload" and 1 in found:
            self._registers[u32(found[1])] = (self._payload(found), b"")
            return ""
        if name == "meta" and 1 in found:
            key = u32(found.get(2))
            self._registers[u32(found[1])] = (f"meta {_META_KEYS.get(key, f'key {key}')}", b"")
            return ""
        if name == "bitwise" and {1, 2, 4} <= set(found) and not any(_value(found.get(5, b""))):
            held, _ = self._registers.get(u32(found[1]), ("?", b""))
            self._registers[u32(found[2])] = (held, _value(found[4]))
            return ""
        if name == "cmp":
            held, mask = self._registers.get(u32(found.get(1)), ("?", b""))
            return _comparison(held, mask, _OPERATORS.get(u32(found.get(2)), "? "), _value(found.get(3, b"")))
        return f"{name}({expression.data.hex()})"

    def _payload(self, found: dict[int, bytes]) -> str:
        base, offset, length = u32(found.get(2)), u32(found.get(3)), u32(found.get(4))
        field = _ADDRESS_FIELDS.get((self._family, offset))
        if base == 1 and field and length * 8 <= self._family.data.width:
            return f"{self._family.data.nft} {field}"
        return f"@{base},{offset * 8},{length * 8}"


def _comparison(held: str, mask: bytes, operator: str, value: bytes) -> str:
    if held.endswith(("saddr", "daddr")):
        width = 4 if held.startswith("ip ") else 16
        length = _prefix_length(mask or b"\xff" * len(value), width)
        if length is not None and len(value) <= width:
            prefix = f"/{length}" if length < width * 8 else ""
            return f"{held} {operator}{ip_address(value.ljust(width, bytes(1)))}{prefix}"
    if held == f"meta {_META_KEYS[_META_MARK]}":
        wanted = f"{int.from_bytes(value, sys.byteorder):#010x}"
        masked = f" & {int.from_bytes(mask, sys.byteorder):#010x}" if mask else ""
        return f"{held}{masked} {operator or ('== ' if mask else '')}{wanted}"
    masked = f" & 0x{mask.hex()}" if mask else ""
    return f"{held}{masked} {operator}0x{value.hex()}"


def _prefix_length(mask: bytes, width: int) -> int | None:
    """How many bits from the left a mask of an address of `width` bytes keeps; None if it keeps others too."""
    bits = int.from_bytes(mask.ljust(width, bytes(1)), "big")
    length = bin(bits).count("1")
    return length if len(mask) <= width and bits == (1 << length) - 1 << (width * 8 - length) else None


def _verdict(expression: Expression) -> tuple[str, str] | None:
    """The verdict and its chain, if this expression sets one."""
    if expression.name != "immediate":
        return None
    data = dict(attributes(expression.data)).get(2, b"")
    nested = dict(attributes(data)).get(2)
    if nested is None:
        return None
    found = dict(attributes(nested))
    code = int.from_bytes(found.get(1, b"")[:4], "big", signed=True)
    return _VERDICTS.get(code, f"verdict {code}"), text(found.get(2))


def _extension(expression: Expression) -> tuple[str, bytes]:
    """Name and private data of an xtables extension; empty for any other expression."""
    if expression.name not in ("match", "target"):
        return "", b""
    found = dict(attributes(expression.data))
    return text(found.get(1)), found.get(3, b"")


def _describe_extension(expression: Expression, family: Family) -> str:
    name, info = _extension(expression)
    if name == "comment":
        return ""
    if name == "MASQUERADE" and len(info) >= 8:
        # struct nf_nat_ipv4_multi_range_compat starts with a count, struct nf_nat_range with the flags
        flags = struct.unpack_from("=I", info, 4 if family is Family.IPV4 else 0)[0]
        return "masquerade" + _nat_flags(flags)
    if name == "mark" and len(info) >= 9:
        value, mask, inverted = struct.unpack_from("=IIB", info)
        return f"meta mark & {mask:#010x} {'!=' if inverted else '=='} {value:#010x}"
    return f"xt {name}({info.rstrip(bytes(1)).hex()})"


def _nat_flags(flags: int) -> str:
    names = [name for bit, name in _NAT_FLAGS.items() if flags & bit]
    return " " + ",".join(names) if names else ""


def _value(data: bytes) -> bytes:
    return dict(attributes(data)).get(1, b"")
