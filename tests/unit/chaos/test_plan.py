"""The plan follows from the seed alone, has every kind in it, and leaves the back-off of repairs alone."""

from __future__ import annotations

import re
from itertools import islice
from random import Random

import pytest

from flanneld_masq.controller.backoff import RepairBackoff
from flanneld_masq.errors import ConfigError, SubnetFileError
from flanneld_masq.inputs import config, subnet_env
from flanneld_masq.model import Family

from ...chaos.cluster import JUMPS, Cluster
from ...chaos.plan import BAD_LEASES, BAD_TABLES, LEASES, TABLES, Action, Kind, configuration, rounds

SEEDS = (1, 2, 3)


def actions(seed: int, count: int = 400) -> list[Action]:
    return list(islice((action for planned in rounds(seed) for action in planned.actions), count))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_gives_the_same_plan_each_time(seed: int) -> None:
    assert list(islice(rounds(seed), 50)) == list(islice(rounds(seed), 50))


def test_another_seed_gives_another_plan() -> None:
    assert actions(1) != actions(2)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_deck_has_every_kind(seed: int) -> None:
    deck = sum(kind.traits.copies for kind in Kind)
    assert {action.kind for action in actions(seed, deck)} == set(Kind)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_process_lives_for_several_decks(seed: int) -> None:
    replaced = [index for index, action in enumerate(actions(seed, 1200)) if action.kind.traits.replaces]
    assert max(later - earlier for earlier, later in zip(replaced, replaced[1:])) > 400


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", Family)
def test_repairs_at_their_planned_number_are_not_contended(seed: int, family: Family) -> None:
    backoff, now = RepairBackoff(), 0.0
    for action in actions(seed):
        now += action.pause
        traits = action.kind.traits
        for _ in range(int(traits.cost) if traits.both or action.family is family else 0):
            backoff.repaired(now)
    assert not backoff.contended


@pytest.mark.parametrize("tables", TABLES)
def test_good_configurations_are_accepted(tables: str) -> None:
    assert config.parse(configuration("nft", tables), "config.toml").backend == "nft"


@pytest.mark.parametrize("tables", BAD_TABLES[:3])  # a backend that no plugin offers is for the daemon to find out
def test_bad_configurations_are_refused(tables: str) -> None:
    with pytest.raises(ConfigError):
        config.parse(configuration("nft", tables), "config.toml")


@pytest.mark.parametrize("text", LEASES.values(), ids=LEASES)
def test_good_subnet_files_are_accepted(text: str) -> None:
    assert subnet_env.parse(text.encode(), "subnet.env").ipv4


@pytest.mark.parametrize("text", BAD_LEASES)
def test_bad_subnet_files_are_refused(text: str) -> None:
    with pytest.raises(SubnetFileError):
        subnet_env.parse(text.encode(), "subnet.env")


# ---- kube-proxy


def chains(text: str) -> tuple[set[str], set[str], set[str]]:
    """The chains that an input declares, deletes, and leads to."""
    return (
        set(re.findall(r"^:(\S+)", text, re.MULTILINE)),
        set(re.findall(r"^-X (\S+)", text, re.MULTILINE)),
        set(re.findall(r"-j (KUBE-\S+)", text)),
    )


@pytest.mark.parametrize("family", Family)
def test_a_full_sync_leads_only_to_chains_that_it_declares(family: Family) -> None:
    cluster, random = Cluster(family), Random(1)
    for _ in range(50):
        declared, deleted, targets = chains(cluster.change(random).full)
        assert targets <= declared
        assert not deleted
        assert {rule.rpartition(" ")[2] for _, _, rule in JUMPS} <= declared


@pytest.mark.parametrize("family", Family)
def test_partial_syncs_leave_what_full_ones_hold(family: Family) -> None:
    cluster, random = Cluster(family), Random(2)
    known: set[str] = set()
    for _ in range(50):
        sync = cluster.change(random)
        declared, deleted, targets = chains(sync.partial)
        known = (known | declared) - deleted
        assert targets <= known
        assert known == chains(sync.full)[0]


@pytest.mark.parametrize("family", Family)
def test_addresses_are_of_the_family(family: Family) -> None:
    text = Cluster(family).change(Random(1)).full
    assert ("fd00:" in text) == (family is Family.IPV6)
    assert ("10.244." in text) == (family is Family.IPV4)
