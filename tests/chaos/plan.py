"""Plan of a run: rounds of actions. Pure: the plan follows from the seed alone.

Actions are dealt from decks with each kind in it, so that a short run has all of them. The kinds of a long deck, which
replace the process, come once in several decks: a process must grow old before a leak shows.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Optional

from flanneld_masq.controller.backoff import BURST, REFILL_PER_SECOND
from flanneld_masq.model import SLOTS, Family

from .. import attacker
from .cluster import Cluster, Sync

BACKENDS = ("nft", "iptables-nft", "iptables-legacy")
FLAVOURS = ("nft", "legacy")
MAX_ACTIONS = 9  # of one round
MAX_PAUSE = 0.4  # seconds between two actions, unless the back-off of repairs asks for more
RESERVE = 2.0  # free repairs that the plan leaves, for it estimates their number
DECKS_OF_A_PROCESS = 12  # eight minutes or so
CHOICES = 1 << 16

LEASES = {
    "the usual subnet": """\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_IPV6_NETWORK=fd00:10:244::/56
FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64
""",
    "another subnet": """\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.9.1/24
FLANNEL_IPV6_NETWORK=fd00:10:244::/56
FLANNEL_IPV6_SUBNET=fd00:10:244:9::1/64
""",
    "two networks": """\
FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16
FLANNEL_SUBNET=10.245.3.1/24
FLANNEL_IPV6_NETWORK=fd00:10:244::/56
FLANNEL_IPV6_SUBNET=fd00:10:244:3::1/64
""",
    "IPv4 alone": """\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
""",
}
BAD_LEASES = ("", "FLANNEL_NETWORK=10.244.0.0/16\n", "FLANNEL_NETWORK=0.0.0.0/0\nFLANNEL_SUBNET=10.244.1.1/24\n")
# No two of them are in force at once. The first one is the default, so it comes more often.
TABLES = (
    "",
    "",
    "",
    '[masquerade]\nnon_masquerade_cidrs = ["192.168.0.0/16", "fd99::/16"]\n',
    '[masquerade]\nposition = "first"\n',
    "[masquerade]\nrandom_fully = false\n",
    "[masquerade]\nmasquerade_link_local = false\nto_remote_pods = false\n",
    '[masquerade]\nfamilies = ["ipv4"]\n',
    "[masquerade]\nenabled = false\n",
    '[forward]\nposition = "first"\n',
    '[forward]\nposition = "last"\n',
    "[forward]\nenabled = false\n",
    '[forward]\nbackend = "iptables-nft"\n',
    '[forward]\nbackend = "iptables-legacy"\n',
    "[stop]\nremove_rules = true\n",
)
BAD_TABLES = ("[masquerade]\nrandom_fully = 3\n", "colour = 1\n", "[masquerade\n", '[forward]\nbackend = "none"\n')


@dataclass(frozen=True, **SLOTS)
class Traits:
    """How often a kind is in a deck, how many repairs one action of it may cost (of both families, if `both`), and if
    it replaces the process."""

    copies: int
    cost: float = 0.0
    both: bool = False
    replaces: bool = False


class Kind(enum.Enum):
    """A kind of action. The value is what the report calls it."""

    KUBE_PROXY = "kube-proxy syncs"
    RULE = "rule of an administrator"
    POLICY = "policy of FORWARD"
    UFW = "ufw"
    FILTER_RESTORE = "filter table restored"
    FIREWALLD = "firewalld's table"
    PERSISTENT = "netfilter-persistent"
    FLUSH_COMMANDS = "flush by single commands"
    FLUSH = "flush"
    SNAPSHOT = "snapshot taken"
    RESTORE = "snapshot restored"
    DAMAGE = "damage to our rules"
    STALE = "old rules of ours"
    LEASE = "subnet file"
    BAD_LEASE = "bad subnet file"
    SETTINGS = "settings"
    BACKEND = "backend"
    BAD_SETTINGS = "bad configuration"
    HANGUP = "SIGHUP"
    APPLY = "apply"
    SECOND = "second daemon"
    ATTACK = "attack on D-Bus"
    BUS = "bus restarted"
    KILL = "SIGKILL"
    RESTART = "SIGTERM"

    @property
    def traits(self) -> Traits:
        return _TRAITS[self]


_TRAITS = {
    Kind.KUBE_PROXY: Traits(8),
    Kind.RULE: Traits(3, cost=1),
    Kind.POLICY: Traits(2, cost=1),
    Kind.UFW: Traits(2, cost=3),
    Kind.FILTER_RESTORE: Traits(2, cost=2),
    Kind.FIREWALLD: Traits(2),
    Kind.PERSISTENT: Traits(1, cost=5),
    Kind.FLUSH_COMMANDS: Traits(1, cost=4),
    Kind.FLUSH: Traits(2, cost=2, both=True),
    Kind.SNAPSHOT: Traits(3),
    Kind.RESTORE: Traits(3, cost=3, both=True),
    Kind.DAMAGE: Traits(12, cost=2),
    Kind.STALE: Traits(3, cost=2),
    Kind.LEASE: Traits(2),
    Kind.BAD_LEASE: Traits(1),
    Kind.SETTINGS: Traits(3),
    Kind.BACKEND: Traits(3),
    Kind.BAD_SETTINGS: Traits(1),
    Kind.HANGUP: Traits(1),
    Kind.APPLY: Traits(1),
    Kind.SECOND: Traits(1),
    Kind.ATTACK: Traits(2),
    Kind.BUS: Traits(1),
    Kind.KILL: Traits(2, replaces=True),
    Kind.RESTART: Traits(1, replaces=True),
}


@dataclass(frozen=True, **SLOTS)
class Action:
    """One action, `pause` seconds after the one before. `choice` picks among what the kind has to offer; it is below
    CHOICES. `text` is what is written, if the plan decides that, and `sync` that of kube-proxy."""

    kind: Kind
    family: Family
    flavour: str
    choice: int
    pause: float
    text: str = ""
    sync: Optional[Sync] = None

    def __str__(self) -> str:
        return f"{self.pause:.2f} s, {self.kind.value} ({self.family}, {self.flavour}, {self.choice})"


@dataclass(frozen=True, **SLOTS)
class Round:
    """Actions, and after them quiet."""

    number: int
    actions: tuple[Action, ...]


@dataclass
class _Planner:
    random: Random
    backend: str = BACKENDS[0]
    tables: str = ""
    clusters: dict[tuple[Family, str], Cluster] = field(default_factory=dict)
    tokens: dict[Family, float] = field(default_factory=lambda: dict.fromkeys(Family, BURST))

    def kinds(self) -> Iterator[Kind]:
        deck = 0
        while True:
            kinds = [kind for kind in Kind if not kind.traits.replaces or deck % DECKS_OF_A_PROCESS == 0]
            cards = [kind for kind in kinds for _ in range(kind.traits.copies)]
            self.random.shuffle(cards)
            yield from cards
            deck += 1

    def action(self, kind: Kind) -> Action:
        family, flavour = self.random.choice(tuple(Family)), self.random.choice(FLAVOURS)
        choice = self.random.randrange(CHOICES)
        text, sync = "", None
        if kind is Kind.KUBE_PROXY:
            sync = self.clusters.setdefault((family, flavour), Cluster(family)).change(self.random)
        elif kind is Kind.LEASE:
            text = self.random.choice(tuple(LEASES.values()))
        elif kind is Kind.BAD_LEASE:
            text = self.random.choice(BAD_LEASES)
        elif kind is Kind.ATTACK:
            text = self.random.choice((*attacker.KINDS, *attacker.CROWDS))
        elif kind in (Kind.BACKEND, Kind.SETTINGS):
            if kind is Kind.BACKEND:
                self.backend = self.random.choice([name for name in BACKENDS if name != self.backend])
            else:
                self.tables = self.random.choice(TABLES)
            text = configuration(self.backend, self.tables)
        elif kind is Kind.BAD_SETTINGS:
            text = configuration(self.backend, self.random.choice(BAD_TABLES))
        return Action(kind, family, flavour, choice, self._pause(kind, family), text, sync)

    def _pause(self, kind: Kind, family: Family) -> float:
        """Return a random pause, or as long a one as the free repairs need to suffice."""
        families = tuple(Family) if kind.traits.both else (family,)
        lacking = max(kind.traits.cost + RESERVE - self.tokens[of] for of in families) if kind.traits.cost else 0.0
        pause = round(max(self.random.uniform(0, MAX_PAUSE), lacking / REFILL_PER_SECOND), 3)
        for of in Family:
            spent = kind.traits.cost if of in families else 0.0
            self.tokens[of] = min(BURST, self.tokens[of] + pause * REFILL_PER_SECOND) - spent
        return pause


def configuration(backend: str, tables: str) -> str:
    """Return the part of the configuration file that the plan decides."""
    return f'backend = "{backend}"\n{tables}'


def rounds(seed: int) -> Iterator[Round]:
    """Yield the rounds of a run, without end."""
    planner = _Planner(Random(seed))
    kinds = planner.kinds()
    number = 0
    while True:
        number += 1
        size = planner.random.randint(1, MAX_ACTIONS)
        yield Round(number, tuple(planner.action(next(kinds)) for _ in range(size)))
