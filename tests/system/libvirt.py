"""libvirt in a machine, with a network that its guests leave by NAT."""

from __future__ import annotations

from .machine import Machine

NETWORK_FILE = "/root/network.xml"
# Without DHCP and DNS, for which it would need dnsmasq.
_NETWORK = """<network><name>{name}</name><forward mode='nat'/><bridge name='virbr9' stp='off'/><dns enable='no'/>
<ip address='{address}' netmask='255.255.255.0'/></network>
"""


def prepare(machine: Machine, name: str, address: str) -> None:
    """Let libvirt write sysctls, and write NETWORK_FILE: a network of this name with the bridge virbr9, which has this
    address of a /24."""
    machine.run("sh", "-c", "mount --bind /proc/sys/net /proc/sys/net && mount -o remount,bind,rw /proc/sys/net")
    machine.write(NETWORK_FILE, _NETWORK.format(name=name, address=address))
