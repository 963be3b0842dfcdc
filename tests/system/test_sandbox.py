"""The unit: what systemd says of it, what it forbids, and that all backends work nevertheless."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flanneld_masq.model import BackendName, Family

from ..common import Tell, eventually, every_time
from .machine import UNIT, Machine
from .rules import BACKENDS
from .site import SUBNET_FILE, subnet_file_text

MAX_EXPOSED = 1.6
USER = "flanneld-masq"
SELFTEST_SECONDS = 120.0
LOCK = "/run/xtables.lock"

# As the unit, but it ends, and does what the daemon never does:
_PROOF = """\
[Service]
Type=oneshot
ExecStart=
ExecStart={command}
ExecReload=
ExecStopPost=
Restart=no
WatchdogSec=0
RuntimeDirectory=
TimeoutStartSec=infinity
StandardOutput=truncate:/run/proof.out
StandardError=truncate:/run/proof.err
"""
_NAMESPACES = """\
# It builds its hosts in namespaces of its own: for who is not root, below a user namespace.
RestrictNamespaces=user mnt net
# In there it mounts an empty /run, and `ip netns` a /sys that fits.
SystemCallFilter=@mount
# It makes a router of its node: /proc/sys/net of its own network namespaces.
ProtectKernelTunables=no
# Its packets are real, where the kernel lets systemd filter by address.
IPAddressDeny=
"""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> BackendName:
    found: BackendName = request.param
    return found


def drop_in(machine: Machine, text: str, unit: str = UNIT) -> None:
    machine.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
    machine.systemctl("daemon-reload")


def prove(machine: Machine, command: str, more: str = "") -> str:
    """Run a command in the sandbox of the unit, and return its output."""
    machine.write("/etc/systemd/system/proof.service", machine.path(f"/usr/lib/systemd/system/{UNIT}").read_text())
    drop_in(machine, _PROOF.format(command=command) + more, "proof.service")
    done = machine.run("systemctl", "start", "proof.service", check=False, timeout=SELFTEST_SECONDS)
    said = machine.path("/run/proof.out").read_text()
    assert done.returncode == 0, f"{done.stderr}{said}{machine.path('/run/proof.err').read_text()}"
    return said


def start(machine: Machine, backend: str = "nft", text: str = "") -> None:
    machine.configure(text, backend=backend)
    machine.write_subnet()
    machine.systemctl("start", UNIT)
    machine.reached("synced")


def test_it_verifies(machine: Machine) -> None:
    """The manual pages that it names too."""
    done = machine.run("systemd-analyze", "verify", UNIT)
    assert (done.stdout, done.stderr) == ("", "")


def test_how_exposed_it_is(machine: Machine, tell: Tell) -> None:
    said = machine.run("systemd-analyze", "security", "--no-pager", UNIT).stdout
    (figure,) = re.findall(r"Overall exposure level for \S+ (\d+\.\d)", said)
    version = machine.run("systemctl", "--version").stdout.split()[1]
    tell(f"{machine.release}, systemd {version}: exposure {figure}")
    assert float(figure) <= MAX_EXPOSED


def test_all_backends_pass_the_selftest_in_it(machine: Machine, tell: Tell) -> None:
    """The whole of it: real packets of every kind, sabotage and repair."""
    machine.run("mount", "-o", "remount,bind,rw", "/proc/sys")  # as on a host; systemd-nspawn has it read-only
    said = json.loads(prove(machine, "/usr/bin/flanneld-masq selftest --json", _NAMESPACES))
    assert said["ok"]
    assert {(found["backend"], found["family"]) for found in said["results"] if found["usable"]} == {
        (backend, str(family)) for backend in BACKENDS for family in Family
    }
    packets, repairs = (sum(len(found[kind]) for found in said["results"]) for kind in ("packets", "repairs"))
    tell(f"{machine.release}, selftest in the sandbox: {packets} packets and {repairs} repairs as they should be")


def test_the_service_masquerades_with_each(machine: Machine, backend: BackendName) -> None:
    start(machine, backend)
    pid = machine.show("MainPID")
    status = machine.path(f"/proc/{pid}/status").read_text()
    uid = machine.run("id", "-u", USER).stdout.strip()
    assert f"\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in status
    assert re.findall(r"^Cap(?:Prm|Eff|Bnd|Amb):\t(\w+)$", status, re.MULTILINE) == ["0000000000003000"] * 4
    assert machine.site.wrong_packets() == []
    machine.site.assert_masqueraded()
    assert machine.masq("plan").stdout == "in sync: nothing to change\n"


def test_it_takes_the_lock_of_every_iptables_legacy(machine: Machine) -> None:
    machine.configure(backend="iptables-legacy")
    machine.write_subnet()
    holder = machine.start("flock", LOCK, "sleep", "2")
    eventually(lambda: machine.run("flock", "--nonblock", LOCK, "true", check=False).returncode == 1)
    machine.systemctl("start", UNIT)
    assert holder.poll() == 0, "ready while another held the lock"
    assert re.fullmatch("synced: ipv4 iptables-legacy .*, ipv6 iptables-legacy .*", machine.show("StatusText"))


@pytest.mark.timing
def test_a_start_that_works_has_the_time_that_it_takes(machine: Machine) -> None:
    drop_in(machine, "[Service]\nTimeoutStartSec=2\nWatchdogSec=2\n")
    machine.configure(backend="iptables-legacy")
    machine.write_subnet()
    holder = machine.start("flock", LOCK, "sleep", "4")
    eventually(lambda: machine.run("flock", "--nonblock", LOCK, "true", check=False).returncode == 1)
    machine.systemctl("start", UNIT)
    assert holder.poll() == 0
    assert machine.show("NRestarts") == "0"


def test_tables_of_legacy_are_not_made_where_nobody_wants_them(machine: Machine) -> None:
    start(machine, "auto")
    names = machine.run("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names").stdout
    assert names == ""


def test_a_subnet_file_is_followed_when_its_directory_comes_back(machine: Machine) -> None:
    start(machine)
    shutil.rmtree(machine.path("/run/flannel"))
    machine.logged("/run/flannel/subnet.env is gone")
    machine.write(SUBNET_FILE, subnet_file_text().replace("10.244.1.1/24", "10.244.9.1/24"))
    eventually(lambda: "10.244.9.0/24" in machine.show("StatusText"))


def test_net_conf_is_read(machine: Machine) -> None:
    machine.write("/etc/kube-flannel/net-conf.json", '{"EnableNFTables": true}')
    start(machine, "auto")
    machine.logged("ipv4 masquerade", "net-conf.json says EnableNFTables")


def test_metrics_where_a_drop_in_opens_a_directory(machine: Machine) -> None:
    machine.run("install", "-d", "-o", USER, "/var/lib/metrics")
    drop_in(machine, "[Service]\nReadWritePaths=/var/lib/metrics\n")
    start(machine, text='[metrics]\ntextfile = "/var/lib/metrics/masq.prom"')
    eventually(lambda: 'flanneld_masq_state{state="synced"} 1' in read(machine.path("/var/lib/metrics/masq.prom")))
    drop_in(machine, "[Service]\nReadWritePaths=/var/lib/metrics\nRestartSec=3600\n")
    machine.run("kill", "-KILL", machine.show("MainPID"))
    eventually(lambda: 'flanneld_masq_state{state="stopped"} 1' in read(machine.path("/var/lib/metrics/masq.prom")))
    eventually(lambda: machine.show("ActiveState") == "activating")
    text = machine.path("/var/lib/metrics/masq.prom").read_text()
    assert 'flanneld_masq_state{state="stopped"} 1' in text and "in_sync" in text


_SCRAPE = """\
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9817/metrics", timeout=1).read().decode())
"""


@pytest.mark.skipif(not every_time(), reason="takes 6 s; LONG=1 runs it")
def test_metrics_over_http_where_a_drop_in_lets_scrapers_in(machine: Machine, tell: Tell) -> None:
    """The library is copied from this machine: it is no part of the roots."""
    packages = Path("/usr/lib/python3/dist-packages")
    shutil.copytree(packages / "prometheus_client", machine.path(f"{packages}/prometheus_client"))
    shutil.copy(packages / "decorator.py", machine.path(f"{packages}/decorator.py"))
    machine.write("/opt/scrape.py", _SCRAPE)

    def scrape() -> str:
        return machine.run("python3", "/opt/scrape.py", user="nobody", check=False).stdout

    start(machine, text="[metrics]\nport = 9817")
    eventually(lambda: ":9817" in machine.run("ss", "-Hltn").stdout)
    if scrape():
        tell(f"{machine.release}: systemd cannot filter by address here, so IPAddressDeny=any lets scrapers in")
    drop_in(machine, "[Service]\nIPAddressAllow=localhost\n")
    machine.systemctl("restart", UNIT)
    eventually(lambda: 'flanneld_masq_state{state="synced"} 1.0\n' in scrape())
    assert machine.status()["troubles"] == []
    assert "\nprocess_resident_memory_bytes " in scrape()


def test_root_in_a_drop_in_works_as_well(machine: Machine, backend: BackendName) -> None:
    drop_in(machine, "[Service]\nUser=root\n")
    start(machine, backend)
    machine.site.assert_masqueraded()


def test_root_and_the_daemon_share_the_state(machine: Machine) -> None:
    """Commands of an administrator before the first start, beside the daemon and after its stop."""
    machine.configure(backend="nft")
    machine.write("/root/subnet.env", subnet_file_text())
    machine.masq("apply", "--subnet-file", "/root/subnet.env")
    machine.systemctl("start", UNIT)
    machine.write_subnet()
    machine.reached("synced")
    assert machine.masq("apply").stdout == "in sync already\n"
    machine.systemctl("stop", UNIT)
    machine.masq("cleanup")
    shutil.rmtree(machine.path("/run/flanneld-masq"))
    machine.masq("apply")
    machine.systemctl("start", UNIT)
    machine.logged("ipv4: the kernel already holds the right rules")
    machine.reached("synced")


def test_a_lock_is_not_for_everybody(machine: Machine) -> None:
    """Who can open it can hold it, and keep the daemon from its work."""
    start(machine)
    for name in ("lock", "ipv4.lock", "ipv6.lock"):
        done = machine.run("flock", "--nonblock", f"/run/flanneld-masq/{name}", "true", user="nobody", check=False)
        assert "Permission denied" in done.stderr


_ATTEMPTS = """\
import ctypes, mmap, os, pathlib, socket, subprocess

def attempt(name, call):
    try:
        call()
    except OSError as error:
        print(name, "refused", error.strerror)
    else:
        print(name, "done")

libc = ctypes.CDLL(None, use_errno=True)

def system_call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

attempt("a file in /etc", lambda: pathlib.Path("/etc/proof").write_text(""))
attempt("a file in /run", lambda: pathlib.Path("/run/proof").write_text(""))
attempt("a kernel setting", lambda: pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("0"))
attempt("a secret", lambda: pathlib.Path("/etc/shadow").read_text())
attempt("a namespace", lambda: system_call("unshare", 0x10000000))
attempt("a mount", lambda: system_call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None))
attempt("a packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("a signal to others", lambda: os.kill(1, 0))
attempt("code made at run time", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC))
attempt("another user", lambda: os.setuid(0))
# what is allowed, and why is in the unit
attempt("the names of legacy tables", lambda: pathlib.Path("/proc/net/ip_tables_names").read_text())
attempt("the lock of xtables", lambda: open("/run/xtables.lock").close())
attempt("the command line of others", lambda: pathlib.Path("/proc/1/cmdline").read_text())
attempt("the unit of others", lambda: pathlib.Path("/proc/1/cgroup").read_text())
attempt("a raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
"""


def test_what_it_forbids_and_what_not(machine: Machine) -> None:
    machine.write("/opt/attempts.py", _ATTEMPTS)
    said = prove(machine, "/usr/bin/python3 /opt/attempts.py").splitlines()
    done = [line.removesuffix(" done") for line in said if line.endswith(" done")]
    assert done == [
        "the names of legacy tables",
        "the lock of xtables",
        "the command line of others",
        "the unit of others",
        "a raw socket",
    ]
    assert len(said) - len(done) == 10
    assert {"a file in /etc refused Read-only file system", "a file in /run refused Read-only file system"} < set(said)


@pytest.mark.parametrize("release", ["trixie"], indirect=True)
def test_a_drop_in_makes_a_reload_wait_for_the_rules(machine: Machine) -> None:
    """Type=notify-reload is of systemd 253."""
    drop_in(machine, "[Service]\nType=notify-reload\nExecReload=\nExecReload=/usr/bin/flanneld-masq check\n")
    start(machine, "iptables-nft")
    machine.configure(backend="nft")
    machine.systemctl("reload", UNIT)
    assert machine.status()["families"]["ipv4"]["groups"]["masquerade"]["backend"] == "nft"
    assert machine.masq("plan").returncode == 0
    machine.write("/etc/flanneld-masq/config.toml", 'backend = "nonsense"\n')
    assert machine.run("systemctl", "reload", UNIT, check=False).returncode != 0
    machine.logged("the running settings stay")
    assert machine.show("ActiveState") == "active"


@pytest.mark.parametrize("state", ["waiting", "synced"])
def test_a_reload_comes_to_an_end(machine: Machine, state: str) -> None:
    machine.configure(backend="nft")
    if state == "synced":
        machine.write_subnet()
    machine.systemctl("start", UNIT)
    for _ in range(3):
        machine.systemctl("reload", UNIT)
        eventually(lambda: machine.show("SubState") == "running")
    assert machine.show("NRestarts") == "0"


def test_a_wrong_configuration_is_not_tried_again(machine: Machine) -> None:
    machine.write("/etc/flanneld-masq/config.toml", "nonsense = 1\n")
    assert machine.run("systemctl", "start", UNIT, check=False).returncode != 0
    assert [machine.show(name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")] == ["failed", "2", "0"]


def test_a_crash_is_followed_by_a_start_however_often(machine: Machine) -> None:
    drop_in(machine, "[Service]\nRestartSec=10ms\n")
    start(machine)
    for count in range(1, 11):  # systemd's own limit would be five in ten seconds
        machine.systemctl("kill", "--signal=SIGKILL", UNIT)
        again = {f"NRestarts={count}", "ActiveState=active"}
        eventually(lambda: set(machine.systemctl("show", "--property=NRestarts,ActiveState", UNIT).split()) == again)
    machine.reached("synced")


def test_presets_leave_it_off(machine: Machine) -> None:
    machine.systemctl("enable", UNIT)
    machine.systemctl("preset", UNIT)
    assert machine.systemctl("is-enabled", UNIT, check=False).strip() == "disabled"


_FIREWALLS = ("nftables", "iptables", "ip6tables", "netfilter-persistent", "ufw", "firewalld")
_RUNTIMES = ("kubelet", "containerd", "crio", "docker", "k3s", "k3s-agent", "rke2-server", "rke2-agent")
_CONTAINERS = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
[Install]
WantedBy=multi-user.target
"""


def test_its_place_in_the_boot(make_machine: Callable[[], Machine]) -> None:
    """After firewalls, before whatever starts containers, and without a cycle."""
    machine = make_machine()
    for name in ("kubelet", "docker"):
        machine.write(f"/etc/systemd/system/{name}.service", _CONTAINERS)
    machine.configure(backend="nft")
    machine.systemctl("enable", UNIT, "nftables.service", "firewalld.service", "kubelet.service", "docker.service")
    machine.boot()
    assert machine.show("ActiveState") == "active"
    moments = {
        unit: int(machine.show("ActiveEnterTimestampMonotonic", unit))
        for unit in ("nftables.service", "firewalld.service", UNIT, "kubelet.service", "docker.service")
    }
    assert moments["nftables.service"] < moments[UNIT] > moments["firewalld.service"] > 0
    assert moments["kubelet.service"] > moments[UNIT] < moments["docker.service"]
    assert not [entry for entry in machine.journal("_PID=1") if "cycle" in entry["MESSAGE"]]
    for direction, names in (("After", _FIREWALLS), ("Before", _RUNTIMES)):
        known = machine.show(direction).split()
        assert [name for name in names if machine.show("Id", f"{name}.service") not in known] == []  # some are aliases


def read(path: Path) -> str:
    """Empty while there is no such file."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
