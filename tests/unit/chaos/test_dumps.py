"""Listings are told apart: foreign rules in a form to compare, and the copies of the daemon's with their places."""

from __future__ import annotations

import pytest

from flanneld_masq.inputs import config, subnet_env
from flanneld_masq.model import Desired, Family, Group, Settings
from flanneld_masq.ruleset import policy

from ...chaos.dumps import Copy, Listings, copies, differences, drops, foreign, misplaced, wanted
from ...chaos.plan import LEASES

TAG, OTHER = "flanneld-masq:0123456789ab", "flanneld-masq:ba9876543210"
JUMP = f"-A FORWARD -m comment --comment {TAG!r} -j FLANNELD-MASQ-FWD".replace("'", '"')
OWN = f'-A FLANNELD-MASQ-FWD -s 10.244.0.0/16 -m comment --comment "{OTHER}" -j ACCEPT'
NATIVE = f"""\
table ip flanneld-masq {{
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tmeta mark & 0x00004000 == 0x00004000 return comment "{TAG}"
\t\tip saddr 10.244.0.0/16 masquerade comment "{OTHER}"
\t}}
}}
"""


def save(*rules: str, policy_of_forward: str = "ACCEPT", table: str = "filter") -> str:
    chains = dict.fromkeys(rule.split()[1] for rule in rules if rule.split()[1] != "FORWARD")
    heads = [f":FORWARD {policy_of_forward} [0:0]", *(f":{chain} - [0:0]" for chain in chains)]
    return "\n".join([f"*{table}", *heads, *rules, "COMMIT", ""])


def listings(legacy: str = "", nft: str = "", tables: str = "") -> Listings:
    saved = {(family, flavour): "" for family in Family for flavour in ("nft", "legacy")}
    saved.update({(Family.IPV4, "legacy"): legacy, (Family.IPV4, "nft"): nft})
    return Listings(tables, saved)


def settings(text: str = "") -> Settings:
    return config.parse(text, "config.toml")


def desired(text: str = "") -> dict[Family, Desired]:
    lease = subnet_env.parse(next(iter(LEASES.values())).encode(), "subnet.env")
    return {family: policy.desired(settings(text), (lease,), family, frozenset(Group)) for family in Family}


# ---- foreign rules


def test_ours_is_no_part_of_the_foreign_rules() -> None:
    theirs = "-A FORWARD -d 203.0.113.9/32 -j DROP"
    assert foreign(listings(save(JUMP, theirs, OWN), tables=NATIVE)) == foreign(listings(save(theirs)))


def test_an_empty_built_in_chain_counts_as_missing() -> None:
    bare = "table ip nat {\n\tchain POSTROUTING {\n\t\ttype nat hook postrouting priority 100; policy accept;\n\t}\n}\n"
    assert foreign(listings(save(), tables=bare)) == ()


@pytest.mark.parametrize(
    "changed",
    [
        save("-A FORWARD -j A", "-A FORWARD -j B", policy_of_forward="DROP"),
        save("-A FORWARD -j B", "-A FORWARD -j A"),
        save("-A FORWARD -j A"),
        save("-A FORWARD -j A", "-A FORWARD -j B", "-A FORWARD -j B"),
        save("-A FORWARD -j A", "-A FORWARD -j B", '-A FORWARD -m comment --comment "flanneld-masq: office" -j ACCEPT'),
        save("-A FORWARD -j A", "-A FORWARD -j B", "-A MINE -j RETURN"),
    ],
    ids=["policy", "order", "rule gone", "rule twice", "comment that begins like ours", "chain more"],
)
def test_each_change_of_the_foreign_rules_shows(changed: str) -> None:
    before, after = foreign(listings(save("-A FORWARD -j A", "-A FORWARD -j B"))), foreign(listings(changed))
    assert before != after
    assert list(differences(before, after))


def test_tables_of_nft_are_compared_too() -> None:
    text = "table inet firewalld {\n\tchain c {\n\t\tct state established accept\n\t}\n}\n"
    assert foreign(listings(tables=text)) == ("table inet firewalld: chain c: ct state established accept",)
    assert foreign(listings(tables=text.replace("accept", "drop"))) != foreign(listings(tables=text))


# ---- the daemon's rules


def test_copies_are_found_in_every_backend() -> None:
    found = copies(listings(save(JUMP, OWN), tables=NATIVE))
    assert found == {
        (Family.IPV4, "iptables-legacy", Group.FORWARD): Copy((OTHER[-12:],), 1),
        (Family.IPV4, "nft", Group.MASQUERADE): Copy((TAG[-12:], OTHER[-12:])),
    }


@pytest.mark.parametrize(
    ("rules", "copy"),
    [
        ((JUMP, JUMP, OWN), Copy((OTHER[-12:],), 2)),
        ((OWN,), Copy((OTHER[-12:],), 0)),
        ((JUMP,), Copy((), 1)),
        ((JUMP, OWN, OWN), Copy((OTHER[-12:],) * 2, 1)),
    ],
    ids=["two jumps", "no jump", "no chain", "rule twice"],
)
def test_copies_that_are_not_whole_show(rules: tuple[str, ...], copy: Copy) -> None:
    assert copies(listings(save(*rules))) == {(Family.IPV4, "iptables-legacy", Group.FORWARD): copy}


def test_a_foreign_rule_in_our_chain_shows() -> None:
    (found,) = copies(listings(save(JUMP, OWN, "-A FLANNELD-MASQ-FWD -j DROP"))).values()
    assert found.tags == (OTHER[-12:], "no tag: -A FLANNELD-MASQ-FWD -j DROP")


def test_a_chain_more_in_our_table_shows() -> None:
    text = NATIVE.replace("\tchain post", "\tchain extra {\n\t}\n\n\tchain post", 1)
    assert (Family.IPV4, "nft, chain extra", Group.FORWARD) in copies(listings(tables=text))


def carriers(found: Listings, group: Group, backend: str = "nft", forward: str = "auto") -> set[str]:
    keys = wanted(desired(), backend, forward, found)
    return {name for family, name, of in keys if (family, of) == (Family.IPV4, group)}


def test_the_forward_group_goes_where_forward_drops() -> None:
    dropping, quiet = save(policy_of_forward="DROP"), save()
    assert carriers(listings(quiet, quiet), Group.FORWARD) == {"nft"}
    assert carriers(listings(dropping, quiet), Group.FORWARD) == {"iptables-legacy"}
    assert carriers(listings(quiet, dropping), Group.FORWARD) == {"iptables-nft"}
    assert carriers(listings(dropping, dropping), Group.FORWARD) == {"iptables-nft", "iptables-legacy"}
    assert carriers(listings(dropping, quiet), Group.FORWARD, forward="nft") == {"nft"}
    assert carriers(listings(dropping, dropping), Group.MASQUERADE) == {"nft"}


def test_each_group_is_wanted_with_the_tags_of_the_policy() -> None:
    rules = desired()[Family.IPV6].rules_of(Group.MASQUERADE)
    assert rules is not None
    found = wanted(desired(), "nft", "auto", listings())
    assert found[Family.IPV6, "nft", Group.MASQUERADE] == Copy(tuple(rule.tag for rule in rules.rules))


@pytest.mark.parametrize(
    ("rule", "all_of_them"),
    [
        ("-j DROP", True),
        ("-j REJECT --reject-with icmp-port-unreachable", True),
        ("-m comment --comment all -j DROP", True),
        ('-m comment --comment "all of them" -j DROP', True),
        ("-d 203.0.113.9/32 -j DROP", False),
        ("-m conntrack --ctstate INVALID -j DROP", False),
        ("-j ACCEPT", False),
    ],
)
def test_only_what_drops_every_packet_drops(rule: str, all_of_them: bool) -> None:
    assert drops(save(f"-A FORWARD {rule}")) is all_of_them


@pytest.mark.parametrize(
    ("position", "rules", "right"),
    [
        ("auto", ("-A FORWARD -j A", JUMP, "-A FORWARD -j DROP", "-A FORWARD -j B"), True),
        ("auto", (JUMP, "-A FORWARD -j A", "-A FORWARD -j DROP"), False),
        ("auto", ("-A FORWARD -j A", "-A FORWARD -j DROP", JUMP), False),
        ("auto", ("-A FORWARD -j A", JUMP), True),
        ("auto", (JUMP, "-A FORWARD -j A"), False),
        ("first", (JUMP, "-A FORWARD -j A"), True),
        ("first", ("-A FORWARD -j A", JUMP), False),
        ("last", ("-A FORWARD -j DROP", JUMP), True),
        ("last", (JUMP, "-A FORWARD -j DROP"), False),
    ],
)
def test_a_jump_out_of_its_place_shows(position: str, rules: tuple[str, ...], right: bool) -> None:
    found = list(misplaced(desired(f'[forward]\nposition = "{position}"'), listings(save(*rules, OWN))))
    assert (not found) is right
