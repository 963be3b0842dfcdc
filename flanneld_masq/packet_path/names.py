"""Names of numbers, as nft and iptables write them. Sources: nft(8), iptables-extensions(8), the kernel's headers."""

from __future__ import annotations

from collections.abc import Mapping

from flanneld_masq.packet_path.packet import CtState

PROTOCOLS: Mapping[str, int] = {
    "hopopt": 0,
    "icmp": 1,
    "igmp": 2,
    "ipencap": 4,
    "ipv4": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "ipv6-route": 43,
    "ipv6-frag": 44,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "icmpv6": 58,
    "ipv6-nonxt": 59,
    "ipv6-opts": 60,
    "ospf": 89,
    "ospfigp": 89,
    "ipip": 94,
    "pim": 103,
    "comp": 108,
    "ipcomp": 108,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "mh": 135,
    "ipv6-mh": 135,
    "udplite": 136,
}
NFPROTOS: Mapping[str, int] = {"ipv4": 2, "ipv6": 10, "ip": 2, "ip6": 10, "arp": 3}
TCP_FLAGS: Mapping[str, int] = {
    "fin": 1,
    "syn": 2,
    "rst": 4,
    "psh": 8,
    "ack": 16,
    "urg": 32,
    "ecn": 64,
    "cwr": 128,
    "none": 0,
    "all": 63,
}
# include/uapi/linux/netfilter/nf_conntrack_common.h: NF_CT_STATE_BIT and _INVALID_BIT, _UNTRACKED_BIT
STATE_BITS: Mapping[CtState, int] = {
    CtState.INVALID: 1,
    CtState.ESTABLISHED: 2,
    CtState.RELATED: 4,
    CtState.NEW: 8,
    CtState.UNTRACKED: 64,
}
CT_STATES: Mapping[str, int] = {state.value: bit for state, bit in STATE_BITS.items()}
SNAT_BIT, DNAT_BIT = 1 << 7, 1 << 8  # of this model, beside the bits of the state
STATES_AND_NAT: Mapping[str, int] = {**CT_STATES, "snat": SNAT_BIT, "dnat": DNAT_BIT}
CT_STATUS: Mapping[str, int] = {
    "none": 0,
    "expected": 0x1,
    "seen-reply": 0x2,
    "seen_reply": 0x2,
    "assured": 0x4,
    "confirmed": 0x8,
    "snat": 0x10,
    "dnat": 0x20,
    "dying": 0x200,
}
DIRECTIONS: Mapping[str, int] = {"original": 0, "reply": 1}
# Groups of devices. Others may have names in a file that the snapshot does not have. Source: ip-link(8)
DEVICE_GROUPS: Mapping[str, int] = {"default": 0}
ICMP_TYPES: Mapping[str, int] = {
    "echo-reply": 0,
    "pong": 0,
    "destination-unreachable": 3,
    "source-quench": 4,
    "redirect": 5,
    "echo-request": 8,
    "ping": 8,
    "router-advertisement": 9,
    "router-solicitation": 10,
    "time-exceeded": 11,
    "ttl-exceeded": 11,
    "parameter-problem": 12,
    "timestamp-request": 13,
    "timestamp-reply": 14,
    "info-request": 15,
    "info-reply": 16,
    "address-mask-request": 17,
    "address-mask-reply": 18,
}
ICMPV6_TYPES: Mapping[str, int] = {
    "destination-unreachable": 1,
    "packet-too-big": 2,
    "time-exceeded": 3,
    "ttl-exceeded": 3,
    "parameter-problem": 4,
    "echo-request": 128,
    "ping": 128,
    "echo-reply": 129,
    "pong": 129,
    "mld-listener-query": 130,
    "mld-listener-report": 131,
    "mld-listener-done": 132,
    "mld-listener-reduction": 132,
    "router-solicitation": 133,
    "nd-router-solicit": 133,
    "router-advertisement": 134,
    "nd-router-advert": 134,
    "neighbour-solicitation": 135,
    "neighbor-solicitation": 135,
    "nd-neighbor-solicit": 135,
    "neighbour-advertisement": 136,
    "neighbor-advertisement": 136,
    "nd-neighbor-advert": 136,
    "redirect": 137,
    "nd-redirect": 137,
    "router-renumbering": 138,
    "ind-neighbor-solicit": 141,
    "ind-neighbor-advert": 142,
    "mld2-listener-report": 143,
}
# include/uapi/linux/rtnetlink.h: RTN_*; include/uapi/linux/if_packet.h: PACKET_*
ROUTE_TYPES: Mapping[str, int] = {
    "unspec": 0,
    "unicast": 1,
    "local": 2,
    "broadcast": 3,
    "anycast": 4,
    "multicast": 5,
    "blackhole": 6,
    "unreachable": 7,
    "prohibit": 8,
    "throw": 9,
    "nat": 10,
    "xresolve": 11,
}
# Types of devices, as nft and ip name them. Source: include/uapi/linux/if_arp.h
DEVICE_TYPES: Mapping[str, int] = {
    "ether": 1,
    "ppp": 512,
    "ipip": 768,
    "ipip6": 769,
    "tunnel6": 769,
    "loopback": 772,
    "sit": 776,
    "ipgre": 778,
    "gre": 778,
    "none": 0xFFFE,
}
PACKET_TYPES: Mapping[str, int] = {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3}
SERVICES: Mapping[str, int] = {
    "ftp": 21,
    "ssh": 22,
    "smtp": 25,
    "domain": 53,
    "bootps": 67,
    "bootpc": 68,
    "http": 80,
    "ntp": 123,
    "snmp": 161,
    "https": 443,
    "kubelet": 10250,
}
