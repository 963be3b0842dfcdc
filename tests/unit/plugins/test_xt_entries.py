"""Tables of ip_tables as the kernel lays them out for a process of 64 bits, and for one of i386."""

from __future__ import annotations

import mmap
import struct

import pytest
from flanneld_masq_iptables.xt_entries import XT_RETURN, Entries, aligned

from flanneld_masq.model import Family

POSTROUTING = 4
HEADER = {Family.IPV4: 96, Family.IPV6: 148}  # bytes of an entry before its counters, not aligned
OFFSETS = {Family.IPV4: 88, Family.IPV6: 140}
MARK = struct.pack("=II", 0x4000, 0x4000)
COUNTERS = struct.pack("=QQ", 3, 252)
each_layout = pytest.mark.parametrize("alignment", [4, 8], ids=["i386", "others"])
each_family = pytest.mark.parametrize("family", list(Family), ids=str)


def extension(name: bytes, info: bytes, alignment: int, revision: int = 0) -> bytes:
    """A match or a target, as XT_ALIGN of the kernel ends it."""
    size = aligned(32 + len(info), alignment)
    return (struct.pack("=H29sB", size, name, revision) + info).ljust(size, b"\0")


def entry(family: Family, alignment: int, target: bytes, matches: bytes = b"") -> bytes:
    start = aligned(HEADER[family], alignment) + len(COUNTERS) + len(matches)
    header = bytearray(aligned(HEADER[family], alignment))
    struct.pack_into("=HH", header, OFFSETS[family], start, start + len(target))
    return bytes(header) + COUNTERS + matches + target


def table(family: Family, alignment: int, jumps_to: bytes = b"CHAIN") -> Entries:
    """POSTROUTING with one jump to a chain that sets a mark."""

    def standard(verdict: int) -> bytes:
        return extension(b"", struct.pack("=i", verdict), alignment)

    def error(name: bytes) -> bytes:
        return extension(b"ERROR", name.ljust(30, b"\0"), alignment)

    comment = extension(b"comment", b"a comment".ljust(256, b"\0"), alignment)
    policy = entry(family, alignment, standard(-2))
    head = entry(family, alignment, error(jumps_to))
    jump_size = len(entry(family, alignment, standard(0), comment))
    jump = entry(family, alignment, standard(jump_size + len(policy) + len(head)), comment)
    chain = entry(family, alignment, extension(b"MARK", MARK, alignment, 2))
    data = b"".join((jump, policy, head, chain, entry(family, alignment, standard(XT_RETURN))))
    data += entry(family, alignment, error(b"ERROR"))
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return Entries(family, (0,) * 5, (jump_size,) * 5, memory, 0, alignment)


@each_layout
@each_family
def test_a_table_is_read_in_either_layout(family: Family, alignment: int) -> None:
    entries = table(family, alignment)
    assert entries.targets("CHAIN") == frozenset({"MARK", ""})
    assert list(entries.marks("CHAIN")) == [(0x4000, 0x4000)]
    assert entries.packets(POSTROUTING) == (3,)
    assert not entries.drops_anything()
    assert entries.fingerprint("CHAIN", POSTROUTING) == entries._digest(
        entries._built_in(POSTROUTING), entries._user_chain(entries._start("CHAIN") or 0)
    )
    assert entries.targets("OTHER") is None


@each_layout
@each_family
def test_counters_alone_are_left_out(family: Family, alignment: int) -> None:
    entries = table(family, alignment)
    mask = entries.mask()
    assert len(mask) == len(entries.memory)
    assert mask.count(0) == 6 * len(COUNTERS)
    start = mask.index(0)
    assert bytes(entries.memory[start : start + len(COUNTERS)]) == COUNTERS


@pytest.mark.parametrize(("size", "four", "eight"), [(36, 36, 40), (62, 64, 64), (148, 148, 152), (96, 96, 96)])
def test_sizes_are_aligned_as_by_the_kernel(size: int, four: int, eight: int) -> None:
    assert (aligned(size, 4), aligned(size, 8)) == (four, eight)
