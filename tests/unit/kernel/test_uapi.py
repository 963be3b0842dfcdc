"""The kernel's numbers, compared with the headers where these are installed (linux-libc-dev, kernel-headers)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flanneld_masq.kernel import uapi

INCLUDE = Path("/usr/include/linux")
HEADERS = (
    "netlink.h",
    "netfilter.h",
    *(f"netfilter/{name}.h" for name in ("nfnetlink", "nfnetlink_log", "nf_nat", "nf_tables")),
)
NUMBERS = {name: value for name, value in vars(uapi).items() if name.isupper()}


def enumerators(source: str) -> dict[str, int]:
    """The members of all enums whose values are numbers, or follow from one."""
    values: dict[str, int] = {}
    for body in re.findall(r"\benum\s*\w*\s*{([^}]*)}", re.sub(r"(?m)^#.*", "", source)):
        number = -1
        for name, value in re.findall(r"(\w+)\s*(?:=\s*([^,]*))?,?", body):
            try:
                number = int(shifted(value), 0) if value else number + 1
            except ValueError:
                break
            values[name] = number
    return values


def shifted(value: str) -> str:
    one, _, bits = value.strip("() \n\t").partition("<<")
    return str(int(one, 0) << int(bits, 0)) if bits else one


def defines(source: str) -> dict[str, int]:
    numbers = r"^#define\s+(\w+)\s+\(?((?:0x[0-9a-fA-F]+|\d+)(?: ?<< ?\d+)?)\)?\s*$"
    return {name: int(shifted(value), 0) for name, value in re.findall(numbers, source, re.MULTILINE)}


def in_headers() -> dict[str, int]:
    values: dict[str, int] = {}
    for path in (INCLUDE / name for name in (*HEADERS, "netfilter/nf_tables_compat.h")):
        source = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        values |= enumerators(source) | defines(source)
    return values


@pytest.mark.skipif(not (INCLUDE / "netfilter/nf_tables_compat.h").exists(), reason="the kernel's headers are missing")
def test_numbers_are_those_of_the_kernel_s_headers() -> None:
    known = in_headers()
    compared = NUMBERS.keys() & known.keys()
    assert {name: NUMBERS[name] for name in compared} == {name: known[name] for name in compared}
    assert len(compared) > 110
