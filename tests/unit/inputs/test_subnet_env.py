"""Subnet files that are accepted, and those that are refused."""

from __future__ import annotations

import os
import random
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flanneld_masq.errors import SubnetFileError
from flanneld_masq.inputs import subnet_env
from flanneld_masq.model import Family, FamilyLease, Lease, Network, family_of

PATH = "/run/flannel/subnet.env"
V4 = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n"
V6 = "FLANNEL_IPV6_NETWORK=fd00:10:244::/56\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n"
REST = "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
LEASE_V4 = FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1"))
LEASE_V6 = FamilyLease(
    (ip_network("fd00:10:244::/56"),), ip_network("fd00:10:244:1::/64"), ip_address("fd00:10:244:1::1")
)


def parse(text: str | bytes) -> Lease:
    return subnet_env.parse(text if isinstance(text, bytes) else text.encode(), PATH)


def networks(text: str) -> list[str]:
    lease = parse(f"FLANNEL_NETWORK={text}\nFLANNEL_SUBNET=10.244.1.1/24\n").ipv4
    assert lease is not None
    return [str(network) for network in lease.networks]


def test_what_flannel_writes() -> None:
    assert parse(V4 + V6 + REST) == Lease(PATH, LEASE_V4, LEASE_V6, 1450, True)


@pytest.mark.parametrize(
    ("text", "ipv4", "ipv6"),
    [
        (V4, LEASE_V4, None),
        (V6, None, LEASE_V6),
        (V6 + V4, LEASE_V4, LEASE_V6),
        (V4 + "FLANNEL_IPV6_NETWORK=\nFLANNEL_IPV6_SUBNET=\n", LEASE_V4, None),
        (V4 + "FLANNEL_IPV6_NETWORK=\nFLANNEL_IPV6_SUBNET=''  # none\n", LEASE_V4, None),
        (V4 + "FLANNEL_IPV6_NETWORK=\n", LEASE_V4, None),
        # k3s, 'no IPv6':
        (V4 + "FLANNEL_IPV6_NETWORK=::/0\nFLANNEL_IPV6_SUBNET=::/0\n", LEASE_V4, None),
        (V4 + "FLANNEL_IPV6_NETWORK='::/0'\nFLANNEL_IPV6_SUBNET=nonsense\n", LEASE_V4, None),
        (V4 + "FLANNEL_IPV6_NETWORK=0::/0\nFLANNEL_IPV6_SUBNET='open\n", LEASE_V4, None),
        (V4 + "FLANNEL_IPV6_NETWORK=::/0\n", LEASE_V4, None),
        (V4 + "FLANNEL_IPV6_NETWORK=::/0\nFLANNEL_IPV6_SUBNET=fd00::1/64\n", LEASE_V4, None),
    ],
)
def test_each_family_stands_alone(text: str, ipv4: FamilyLease | None, ipv6: FamilyLease | None) -> None:
    assert parse(text) == Lease(PATH, ipv4, ipv6)


@pytest.mark.parametrize(
    "text",
    [
        V4.replace("\n", "\r\n"),
        V4.rstrip("\n"),
        "\ufeff" + V4,
        "\n\n" + V4 + "\n \n\t\n",
        "  FLANNEL_NETWORK  =  10.244.0.0/16  \n\tFLANNEL_SUBNET\t=\t10.244.1.1/24\t\n",
        "FLANNEL_NETWORK=\"10.244.0.0/16\"\nFLANNEL_SUBNET='10.244.1.1/24'\n",
        'FLANNEL_NETWORK=" 10.244.0.0/16 "  \r\nFLANNEL_SUBNET="10.244.1.1/24"\t\r\n',
        "export FLANNEL_NETWORK=10.244.0.0/16\n export\tFLANNEL_SUBNET=10.244.1.1/24\n",
        "# flannel\n   # was here = 1\n" + V4 + "#FLANNEL_MTU=x\n#",
        "FLANNEL_NETWORK=10.244.0.0/16 # pods\nFLANNEL_SUBNET=10.244.1.1/24\t# 'ours'\n",
        'FLANNEL_NETWORK=\'10.244.0.0/16\' # pods\nFLANNEL_SUBNET="10.244.1.1/24"   #"ours"\n',
        "SOMETHING=else\nOTHER='open\nEMPTY=\nfoo.bar-baz=1\nFLANNEL_NETWORKS=no\n_=\u00e9\u2028\x85\n" + V4,
        "FLANNEL_SUBNET=rubbish\nFLANNEL_NETWORK='\n" + V4,
        "FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_NETWORK=10.244.0.0/16\n",
        "FLANNEL_NETWORK=10.244.77.1/16\nFLANNEL_SUBNET=10.244.1.1/24\n",
    ],
)
def test_forms_of_the_same_lease(text: str) -> None:
    assert parse(text) == Lease(PATH, LEASE_V4)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("10.244.0.0/16,10.96.0.0/12", ["10.244.0.0/16", "10.96.0.0/12"]),
        ("10.96.0.0/12 , 10.244.0.0/16", ["10.96.0.0/12", "10.244.0.0/16"]),
        ("'10.96.0.0/12,\t10.244.0.0/16' # two", ["10.96.0.0/12", "10.244.0.0/16"]),
        ("10.244.5.6/16,10.244.0.0/16", ["10.244.0.0/16"]),
        ("10.244.1.0/24", ["10.244.1.0/24"]),
        ("10.244.1.1/8", ["10.0.0.0/8"]),
    ],
)
def test_network_is_a_list(written: str, read: list[str]) -> None:
    assert networks(written) == read


def test_the_subnet_keeps_its_host_bits_as_the_gateway() -> None:
    lease = parse("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.9/26\n").ipv4
    assert lease is not None
    assert (str(lease.subnet), str(lease.gateway)) == ("10.244.7.0/26", "10.244.7.9")


@pytest.mark.parametrize("word", ["1", "t", "T", "TRUE", "true", "True", '"true"', "true # yes"])
def test_ipmasq_true(word: str) -> None:
    assert parse(V4 + f"FLANNEL_IPMASQ={word}\n").ipmasq is True


@pytest.mark.parametrize("word", ["0", "f", "F", "FALSE", "false", "False", "'false'"])
def test_ipmasq_false(word: str) -> None:
    assert parse(V4 + f"FLANNEL_IPMASQ={word}\n").ipmasq is False


@pytest.mark.parametrize(("written", "read"), [("1450", 1450), ("'9000'", 9000), ("0", 0), ("65536 # lo", 65536)])
def test_mtu(written: str, read: int) -> None:
    assert parse(V4 + f"FLANNEL_MTU={written}\n").mtu == read


N4, S4 = V4.splitlines(keepends=True)
N6, S6 = V6.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        # The file as a whole
        (b"", 0, "is empty"),
        (b"\xef\xbb\xbf", 0, "is empty"),
        (b" \r\n\t\n", 0, "is empty"),
        ("# only a comment\n", 0, "names no network and no subnet"),
        ("FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", 0, "names no network and no subnet"),
        ("FLANNEL_IPV6_NETWORK=::/0\nFLANNEL_IPV6_SUBNET=::/0\n", 0, "names no network and no subnet"),
        ("FLANNEL_IPV6_NETWORK=\n", 0, "names no network and no subnet"),
        # Not text
        (V4.encode() + b"\0", 3, "holds binary data (byte 0x00)"),
        (b"FLANNEL_NETWORK=10.244\x00.0.0/16\n", 1, "holds binary data"),
        (b"\x7fELF\x02\x01", 1, "holds binary data (byte 0x7f)"),
        (V4.encode() + b"X=1\nY=\xff\n", 4, "is not UTF-8 text"),
        (b"\xef\xbb\xbf\n\xff", 2, "is not UTF-8 text"),
        (V4.encode("utf-16"), 1, "is not UTF-8 text"),
        (V4.encode("utf-16-le"), 1, "holds binary data"),
        # Not assignments, as where a file is cut off
        (N4 + "FLANNEL_SUBNET\n", 2, "FLANNEL_SUBNET is not followed by `=`"),
        (N4 + "export FLANNEL_SUBNET", 2, "FLANNEL_SUBNET is not followed by `=`"),
        (N4 + "FLANNEL_SUBNET 10.244.1.1/24\n", 2, "FLANNEL_SUBNET is not followed by `=`"),
        (N4 + "FLANNEL_SUBNET: 10.244.1.1/24\n", 2, "FLANNEL_SUBNET is not followed by `=`"),
        (V4 + "FLANNEL_IPM", 3, "'FLANNEL_IPM' is neither KEY=VALUE nor a comment"),
        (V4 + "=1\n", 3, "'=1' is neither KEY=VALUE"),
        (V4 + "two words=1\n", 3, "neither KEY=VALUE"),
        (V4 + "x" * 5000, 3, "xxx...' is neither KEY=VALUE"),
        # One without the other
        (N4, 1, "FLANNEL_NETWORK names a network, but FLANNEL_SUBNET names no subnet in it"),
        (S4, 1, "FLANNEL_SUBNET names a subnet, but FLANNEL_NETWORK names no network for it"),
        (V4 + N6, 3, "FLANNEL_IPV6_NETWORK names a network, but FLANNEL_IPV6_SUBNET names no subnet"),
        (V4 + S6, 3, "FLANNEL_IPV6_SUBNET names a subnet, but FLANNEL_IPV6_NETWORK names no network"),
        (V4 + N6 + "FLANNEL_IPV6_SUBNET=\n", 3, "FLANNEL_IPV6_SUBNET names no subnet"),
        (N4 + "\nFLANNEL_SUBNET=\n", 3, "FLANNEL_SUBNET: is empty"),
        (N4 + "FLANNEL_SUBNET= # none\n", 2, "FLANNEL_SUBNET: is empty"),
        ("FLANNEL_NETWORK=''\n" + S4, 1, "FLANNEL_NETWORK: is empty"),
        # Quotes
        ("FLANNEL_NETWORK='10.244.0.0/16\n" + S4, 1, "a quote without its match"),
        ("FLANNEL_NETWORK='10.244.0.0/16\"\n" + S4, 1, "a quote without its match"),
        ("FLANNEL_NETWORK='10.244.0.0/16' x\n" + S4, 1, "text after it"),
        ("FLANNEL_NETWORK='10.244.0.0/16'# x\n" + S4, 1, "text after it"),
        ("FLANNEL_NETWORK=10.244.0.0/16'\n" + S4, 1, "has a prefix length that is not a number"),
        ("FLANNEL_NETWORK=10.244.0.0/16# x\n" + S4, 1, "has a prefix length that is not a number"),
        # CIDRs
        (N4 + "FLANNEL_SUBNET=10.244.1.1\n", 2, "'10.244.1.1' has no prefix length"),
        ("FLANNEL_NETWORK=10.244.0.0\n" + S4, 1, "'10.244.0.0' has no prefix length"),
        ("FLANNEL_NETWORK=10.244.0/16\n" + S4, 1, "does not begin with an IP address"),
        ("FLANNEL_NETWORK=10.244.0.256/16\n" + S4, 1, "does not begin with an IP address"),
        ("FLANNEL_NETWORK=/16\n" + S4, 1, "does not begin with an IP address"),
        ("FLANNEL_NETWORK=$NET\n" + S4, 1, "'$NET' has no prefix length"),
        ("FLANNEL_NETWORK=10.244.0.0/33\n" + S4, 1, "not a number from 0 to 32"),
        ("FLANNEL_NETWORK=10.244.0.0/-1\n" + S4, 1, "not a number from 0 to 32"),
        ("FLANNEL_NETWORK=10.244.0.0/\n" + S4, 1, "not a number from 0 to 32"),
        ("FLANNEL_NETWORK=10.244.0.0/\u0661\u0662\n" + S4, 1, "not a number from 0 to 32"),
        ("FLANNEL_NETWORK=10.244.0.0/255.255.0.0\n" + S4, 1, "not a number from 0 to 32"),
        ("FLANNEL_NETWORK=10.244.0.0/16/8\n" + S4, 1, "not a number from 0 to 32"),
        ("FLANNEL_IPV6_NETWORK=fd00::/129\n" + S6, 1, "not a number from 0 to 128"),
        ("FLANNEL_IPV6_NETWORK=fd00::%eth0/56\n" + S6, 1, "names a zone"),
        ("FLANNEL_NETWORK=10.244.0.0/16,\n" + S4, 1, "empty entry in its list"),
        ("FLANNEL_NETWORK=10.244.0.0/16 10.96.0.0/12\n" + S4, 1, "has a prefix length that is not a number"),
        (N4 + "FLANNEL_SUBNET=10.244.1.1/24,10.244.2.1/24\n", 2, "names several subnets"),
        # The wrong family
        ("FLANNEL_NETWORK=fd00::/56\n" + S4, 1, "'fd00::/56' is not ipv4"),
        (N4 + "FLANNEL_SUBNET=fd00::1/64\n", 2, "'fd00::1/64' is not ipv4"),
        ("FLANNEL_IPV6_NETWORK=10.0.0.0/8\n" + S6, 1, "'10.0.0.0/8' is not ipv6"),
        (N6 + "FLANNEL_IPV6_SUBNET=10.0.0.1/8\n", 2, "'10.0.0.1/8' is not ipv6"),
        ("FLANNEL_NETWORK=::/0\n" + S4, 1, "'::/0' is not ipv4"),
        # Not within
        (N4 + "FLANNEL_SUBNET=10.245.1.1/24\n", 2, "10.245.1.1/24 is not within 10.244.0.0/16"),
        (N4 + "FLANNEL_SUBNET=10.244.1.1/15\n", 2, "10.244.1.1/15 is not within 10.244.0.0/16"),
        (N4 + "FLANNEL_SUBNET=10.244.1.1/2", 2, "10.244.1.1/2 is not within 10.244.0.0/16"),
        (N6 + "FLANNEL_IPV6_SUBNET=fd01::1/64\n", 2, "fd01::1/64 is not within fd00:10:244::/56"),
        (
            "FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16\nFLANNEL_SUBNET=10.3.0.1/24\n",
            2,
            "10.3.0.1/24 is not within 10.1.0.0/16 or 10.2.0.0/16",
        ),
        # Everything
        ("FLANNEL_NETWORK=0.0.0.0/0\nFLANNEL_SUBNET=0.0.0.0/0\n", 1, "0.0.0.0/0 covers every address"),
        ("FLANNEL_NETWORK=10.0.0.0/0\n" + S4, 1, "10.0.0.0/0 covers every address"),
        ("FLANNEL_NETWORK=10.244.0.0/16,0.0.0.0/0\n" + S4, 1, "0.0.0.0/0 covers every address"),
        (N4 + "FLANNEL_SUBNET=10.244.1.1/0\n", 2, "is not within"),
        (V4 + "FLANNEL_IPV6_NETWORK=fd00:10:244::/56,::/0\n" + S6, 3, "::/0 covers every address"),
        (V4 + "FLANNEL_IPV6_NETWORK=fd00::/0\n" + S6, 3, "fd00::/0 covers every address"),
        # Multicast
        ("FLANNEL_NETWORK=239.0.0.0/16\nFLANNEL_SUBNET=239.0.1.1/24\n", 1, "239.0.0.0/16 overlaps multicast"),
        ("FLANNEL_NETWORK=128.0.0.0/1\nFLANNEL_SUBNET=128.0.1.1/24\n", 1, "128.0.0.0/1 overlaps multicast"),
        ("FLANNEL_IPV6_NETWORK=ff05::/56\nFLANNEL_IPV6_SUBNET=ff05::1/64\n", 1, "multicast (ff00::/8)"),
        ("FLANNEL_IPV6_NETWORK=8000::/1\nFLANNEL_IPV6_SUBNET=fd00::1/64\n", 1, "8000::/1 overlaps multicast"),
        # The rest
        (V4 + "FLANNEL_MTU=big\n", 3, "FLANNEL_MTU: 'big' is not a number of bytes"),
        (V4 + "FLANNEL_MTU=\n", 3, "FLANNEL_MTU: '' is not a number"),
        (V4 + "FLANNEL_MTU=-1\n", 3, "FLANNEL_MTU: '-1' is not a number"),
        (V4 + "FLANNEL_MTU=1_450\n", 3, "FLANNEL_MTU: '1_450' is not a number"),
        (V4 + "FLANNEL_MTU=4294967296\n", 3, "is not a number of bytes"),
        (V4 + f"FLANNEL_MTU={'9' * 5000}\n", 3, "is not a number of bytes"),
        (V4 + "FLANNEL_IPMASQ=yes\n", 3, "FLANNEL_IPMASQ: 'yes' is neither true nor false"),
        (V4 + "FLANNEL_IPMASQ=\n", 3, "FLANNEL_IPMASQ: '' is neither true nor false"),
        (V4 + "FLANNEL_IPMASQ=tru", 3, "'tru' is neither true nor false"),
        # The line is that of the assignment that counts
        (V4 + "FLANNEL_MTU=1450\n# later\nFLANNEL_MTU=x\n", 5, "FLANNEL_MTU: 'x'"),
        (V4 + "\r\n" + "FLANNEL_SUBNET=1.2.3.4/24\r\n", 4, "1.2.3.4/24 is not within"),
    ],
)
def test_refusals(text: str | bytes, line: int, reason: str) -> None:
    with pytest.raises(SubnetFileError) as caught:
        parse(text)
    assert (caught.value.path, caught.value.line) == (PATH, line)
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"{PATH}, line {line}: " if line else f"{PATH}: ")
    assert "\n" not in str(caught.value)


class TestRead:
    def test_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "subnet.env"
        file.write_text(V4)
        assert subnet_env.read(file) == Lease(str(file), LEASE_V4)

    def test_none(self, tmp_path: Path) -> None:
        assert subnet_env.read(tmp_path / "missing" / "subnet.env") is None

    def test_a_link_to_none(self, tmp_path: Path) -> None:
        link = tmp_path / "subnet.env"
        link.symlink_to(tmp_path / "missing")
        assert subnet_env.read(link) is None

    def test_refusals_name_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "subnet.env"
        file.write_text("FLANNEL_NETWORK=x\n")
        with pytest.raises(SubnetFileError, match=r"subnet\.env, line 1: FLANNEL_NETWORK: 'x' has no prefix"):
            subnet_env.read(file)

    @pytest.mark.parametrize("kind", ["directory", "fifo", "device", "large", "below a file", "loop"])
    def test_what_is_no_subnet_file(self, kind: str, tmp_path: Path) -> None:
        path, reason = tmp_path / "subnet.env", ""
        if kind == "directory":
            path.mkdir()
            reason = "is a directory"
        elif kind == "fifo":
            os.mkfifo(path)
            reason = "is not a regular file"
        elif kind == "device":
            path, reason = Path("/dev/null"), "is not a regular file"
        elif kind == "large":
            path.write_text(V4 + "#" * 65536)
            reason = "is larger than 64 KiB"
        elif kind == "below a file":
            path.write_text(V4)
            path, reason = path / "subnet.env", "Not a directory"
        else:
            path.symlink_to(path)
            reason = "Too many levels of symbolic links"
        with pytest.raises(SubnetFileError, match=reason) as caught:
            subnet_env.read(path)
        assert (caught.value.path, caught.value.line) == (str(path), 0)

    def test_as_large_as_it_may_be(self, tmp_path: Path) -> None:
        file = tmp_path / "subnet.env"
        file.write_text(V4 + "#" * (65536 - len(V4)))
        assert subnet_env.read(file) == Lease(str(file), LEASE_V4)

    def test_no_descriptor_stays_open(self, tmp_path: Path) -> None:
        before = set(Path("/proc/self/fd").iterdir())
        for path in (tmp_path, Path("/dev/null")):
            with pytest.raises(SubnetFileError):
                subnet_env.read(path)
        assert set(Path("/proc/self/fd").iterdir()) == before


def pod_networks(family: Family) -> st.SearchStrategy[Network]:
    network = IPv4Network if family is Family.IPV4 else IPv6Network
    width, multicast = family.data.width, family.data.multicast

    def create(prefix: int, address: int) -> Network:
        return network((address >> (width - prefix) << (width - prefix), prefix))

    return st.builds(create, st.integers(1, width), st.integers(0, 2**width - 1)).filter(
        lambda network: not multicast.overlaps(network)
    )


@st.composite
def family_leases(draw: st.DrawFn, family: Family) -> FamilyLease:
    networks = tuple(draw(st.lists(pod_networks(family), min_size=1, max_size=3, unique=True)))
    around = draw(st.sampled_from(networks))
    address = around.network_address + draw(st.integers(0, around.num_addresses - 1))
    prefix = draw(st.integers(around.prefixlen, family.data.width))
    return FamilyLease(networks, ip_network(f"{address}/{prefix}", strict=False), address)


leases = st.builds(
    Lease,
    path=st.just(PATH),
    ipv4=st.none() | family_leases(Family.IPV4),
    ipv6=st.none() | family_leases(Family.IPV6),
    mtu=st.none() | st.integers(0, 2**32 - 1),
    ipmasq=st.none() | st.booleans(),
).filter(lambda lease: lease.ipv4 is not None or lease.ipv6 is not None)


def written(lease: Lease, noise: random.Random) -> str:
    """A lease as some writer of subnet files might write it."""
    lines = []
    for family_lease in filter(None, (lease.ipv4, lease.ipv6)):
        infix = "" if family_of(family_lease.subnet) is Family.IPV4 else "IPV6_"
        lines.append((f"FLANNEL_{infix}NETWORK", noise.choice([",", " , "]).join(map(str, family_lease.networks))))
        lines.append((f"FLANNEL_{infix}SUBNET", f"{family_lease.gateway}/{family_lease.subnet.prefixlen}"))
    lines += [("FLANNEL_MTU", str(lease.mtu))] if lease.mtu is not None else []
    lines += [("FLANNEL_IPMASQ", str(lease.ipmasq).lower())] if lease.ipmasq is not None else []
    noise.shuffle(lines)
    return "".join(_line(key, value, noise) for key, value in lines)


def _line(key: str, value: str, noise: random.Random) -> str:
    before = noise.choice(["", "export ", "  ", "# a comment\n\n", "UNKNOWN='\n", f"{key}=overruled\n"])
    quote = noise.choice(["", "'", '"'])
    after = noise.choice(["", " ", "\t# said 'flannel'", "\r"])
    return f"{before}{key}={quote}{value}{quote}{after}\n"


@given(leases, st.randoms(use_true_random=False))
def test_a_lease_survives_writing_and_reading(lease: Lease, noise: random.Random) -> None:
    assert parse(written(lease, noise)) == lease


FRAGMENTS = st.sampled_from(
    [
        *(b"FLANNEL_NETWORK", b"FLANNEL_SUBNET", b"FLANNEL_IPV6_NETWORK", b"FLANNEL_IPV6_SUBNET"),
        *(b"FLANNEL_MTU", b"FLANNEL_IPMASQ", b"10.244.0.0/16", b"10.244.1.1/24", b"fd00::/56", b"fd00::1/64", b"::/0"),
        *(
            b"=",
            b"\n",
            b"\r",
            b",",
            b" ",
            b"\t",
            b"#",
            b"'",
            b'"',
            b"/",
            b"%",
            b"export ",
            b"\0",
            b"\xff",
            b"\xef\xbb\xbf",
        ),
    ]
)


@given(st.binary() | st.lists(FRAGMENTS, max_size=20).map(b"".join))
@example(V4.encode("utf-16"))
def test_whatever_the_bytes_a_lease_or_a_refusal_with_its_line(data: bytes) -> None:
    try:
        lease = parse(data)
    except SubnetFileError as error:
        assert 0 <= error.line <= data.count(b"\n") + 1
        assert error.reason
    else:
        for family_lease in filter(None, (lease.ipv4, lease.ipv6)):
            assert family_lease.gateway in family_lease.subnet
            assert any(family_lease.subnet.network_address in network for network in family_lease.networks)
            assert all(network.prefixlen for network in family_lease.networks)
