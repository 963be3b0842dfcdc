"""The machines of the matrix, what each is booted with, and the cells of each boot. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from flanneld_masq.model import SLOTS

IPV6_OFF = "ipv6.disable=1"
# systemd 256 and later want to be forced; the variable comes from the kernel's command line.
CGROUP_V1 = "systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
_SECONDS = 2400.0
_TOOLS = (
    *("python3", "python3-systemd", "python3-pluggy", "python3-tomli", "python3-dbus-next", "python3-watchdog"),
    *("nftables", "iptables", "iproute2", "conntrack", "kmod"),
)
_BOOTED = ("systemd", "systemd-sysv", "dbus", "udev", "procps", *_TOOLS)
_UNPACKED = ("dash", "coreutils", "mount", "util-linux", *_TOOLS)
_SELFTEST = ("selftest-nft", "selftest-iptables-nft", "selftest-iptables-legacy")  # takes minutes
_EVERYWHERE = ("service", "backends", "nft", "iptables-nft", "iptables-legacy", "restart")
_LACKING = ("no-ip_tables", "no-nft_compat", "no-nft_masq")
_RELEASE = ("no-modules", *_EVERYWHERE, "upgrade", "protected", "cgroup-v2", *_LACKING, *_SELFTEST)


@dataclass(frozen=True, **SLOTS)
class Boot:
    """One boot: its cells in order, and what is added to the kernel's command line."""

    cells: tuple[str, ...]
    append: str = ""
    seconds: float = _SECONDS  # until it must have powered off


@dataclass(frozen=True, **SLOTS)
class Machine:
    """One column of the matrix. `emulator` is the command line of qemu without disk, kernel and console. `unpacked`:
    its programs do not run on this machine, so its packages are unpacked and not configured, and it has no systemd."""

    name: str
    title: str
    suite: str
    architectures: str
    kernel: str
    emulator: tuple[str, ...]
    console: str
    boots: tuple[Boot, ...]
    unpacked: bool = False
    note: str = ""  # what an administrator of such a machine must know

    @property
    def packages(self) -> tuple[str, ...]:
        return (*(_UNPACKED if self.unpacked else _BOOTED), self.kernel)

    @property
    def cells(self) -> tuple[str, ...]:
        return tuple(cell for boot in self.boots for cell in boot.cells)


_X86 = ("qemu-system-x86_64", "-machine", "q35", "-cpu", "qemu64")
_ARM64 = ("qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a72")
_ARM = ("qemu-system-arm", "-machine", "virt,highmem=off", "-cpu", "cortex-a15")
_S390X = ("qemu-system-s390x", "-machine", "s390-ccw-virtio")

_FULL = (Boot(_RELEASE), Boot(("ipv6-off",), IPV6_OFF), Boot(("cgroup-v1",), CGROUP_V1))
_SHORT = (Boot((*_EVERYWHERE, *_SELFTEST)),)


def _release(suite: str, title: str, note: str = "") -> Machine:
    return Machine(suite, title, suite, "amd64", "linux-image-amd64", _X86, "ttyS0", _FULL, note=note)


def _other(name: str, title: str, kernel: str, emulator: tuple[str, ...], console: str) -> Machine:
    boots = (Boot(("backends", *_SELFTEST)),)
    return Machine(name, title, "bookworm", name, kernel, emulator, console, boots, True, _WITHOUT_SYSTEMD)


_WITHOUT_SYSTEMD = (
    "The packages are unpacked and not configured, as that takes the programs of the machine. So it runs without "
    "systemd, and only what needs no service."
)
_OLD = (
    "Debian 11 has no python3-tomli and no python3-dbus-next, and its python3-watchdog is too old. These packages came "
    "from Debian 12, with libjs-sphinxdoc, which one of them needs; all are pure Python."
)
MACHINES = (
    _release("bullseye", "Debian 11", _OLD),
    _release("bookworm", "Debian 12"),
    _release("trixie", "Debian 13"),
    Machine(
        *("i386", "Debian 12, i386 on an amd64 kernel", "bookworm", "i386,amd64", "linux-image-amd64:amd64"),
        *(_X86, "ttyS0", _SHORT, False, "What does not depend on the userland's machine is left to Debian 12."),
    ),
    _other("arm64", "Debian 12, arm64", "linux-image-arm64", _ARM64, "ttyAMA0"),
    _other("armhf", "Debian 12, armhf", "linux-image-armmp-lpae", _ARM, "ttyAMA0"),
    _other("s390x", "Debian 12, s390x", "linux-image-s390x", _S390X, "ttysclp0"),
)
