"""Which backend carries which group, and why."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from flanneld_masq.errors import BackendUnavailable, ConfigError, PluginError
from flanneld_masq.model import AUTO, BackendName, ForwardSettings, Group, Probe, Settings
from flanneld_masq.ruleset import backend_choice
from flanneld_masq.ruleset.backend_choice import Choice

NFT, IPTABLES, LEGACY = map(BackendName, ("nft", "iptables-nft", "iptables-legacy"))
YES = Probe(True)
PROBES = {NFT: YES, IPTABLES: YES, LEGACY: YES}


def no(reason: str, remedy: str = "") -> Probe:
    return Probe(False, reason, remedy)


def wished(backend: str = AUTO, forward: str = AUTO) -> Settings:
    return Settings(backend=BackendName(backend), forward=ForwardSettings(backend=BackendName(forward)))


def choose(
    settings: Settings, probes: dict[BackendName, Probe] = PROBES, **evidence: Any
) -> dict[Group, tuple[Choice, ...]]:
    return backend_choice.choose(settings, probes, probes.__getitem__, **evidence)


def chosen(
    settings: Settings, probes: dict[BackendName, Probe] = PROBES, *, flannel: bool = False
) -> tuple[Choice, Choice]:
    choices = choose(settings, probes, flannel_uses_nftables=flannel)
    assert set(choices) == set(Group)
    (masquerade,), (forward,) = choices[Group.MASQUERADE], choices[Group.FORWARD]
    return masquerade, forward


class TestAuto:
    def test_takes_the_first_that_can_be_used(self) -> None:
        assert chosen(wished())[0] == Choice(NFT, "the first choice of auto")

    def test_says_why_the_others_were_passed_over(self) -> None:
        probes = {NFT: no("no module"), IPTABLES: no("no program"), LEGACY: YES}
        expected = "because nft cannot be used (no module); iptables-nft cannot be used (no program)"
        assert chosen(wished(), probes)[0] == Choice(LEGACY, expected)

    def test_backends_behind_the_first_usable_are_not_probed(self) -> None:
        probes = {NFT: no("no module"), IPTABLES: YES}
        assert backend_choice.choose(wished(), PROBES, probes.__getitem__)[Group.MASQUERADE][0].backend == IPTABLES

    def test_follows_the_order_of_the_probes(self) -> None:
        assert chosen(wished(), dict(reversed(list(PROBES.items()))))[0].backend == LEGACY

    def test_the_forward_group_goes_with_masquerade(self) -> None:
        for settings in (wished(), wished(backend=LEGACY)):
            masquerade, forward = chosen(settings)
            assert forward == Choice(masquerade.backend, "goes with the masquerade group")

    def test_none_can_be_used(self) -> None:
        with pytest.raises(BackendUnavailable) as caught:
            chosen(wished(), {NFT: no("no module"), LEGACY: no("no program")})
        assert caught.value.backend == AUTO
        assert "nft cannot be used (no module); iptables-legacy cannot be used (no program)" in str(caught.value)
        assert "flanneld-masq backends" in str(caught.value)

    def test_there_is_none(self) -> None:
        with pytest.raises(BackendUnavailable, match="no plugin offers one"):
            chosen(wished(), {})

    def test_flannel_in_its_nftables_mode_asks_for_nft(self) -> None:
        probes = {IPTABLES: YES, NFT: YES}
        assert chosen(wished(), probes)[0].backend == IPTABLES
        expected = Choice(NFT, "/etc/kube-flannel/net-conf.json says EnableNFTables")
        assert chosen(wished(), probes, flannel=True)[0] == expected

    def test_and_is_not_given_another(self) -> None:
        with pytest.raises(BackendUnavailable, match="backend nft cannot be used: no module; load it"):
            chosen(wished(), {NFT: no("no module", "load it"), LEGACY: YES}, flannel=True)


class TestForward:
    DROPS: ClassVar = {IPTABLES: "chain FORWARD drops by policy"}

    def test_goes_where_packets_are_dropped(self) -> None:
        choices = choose(wished(), PROBES, drops=self.DROPS)
        assert choices[Group.MASQUERADE][0].backend == NFT
        assert choices[Group.FORWARD] == (Choice(IPTABLES, "chain FORWARD drops by policy"),)

    def test_stays_with_masquerade_where_that_is_the_place(self) -> None:
        (forward,) = choose(wished(backend=IPTABLES), PROBES, drops=self.DROPS)[Group.FORWARD]
        assert forward == Choice(IPTABLES, "goes with the masquerade group")

    def test_goes_to_every_place_where_packets_are_dropped(self) -> None:
        drops = {**self.DROPS, LEGACY: "chain FORWARD drops in legacy"}
        elsewhere = tuple(Choice(name, why) for name, why in drops.items())
        assert choose(wished(), PROBES, drops=drops)[Group.FORWARD] == elsewhere
        beside = Choice(LEGACY, "goes with the masquerade group")
        assert choose(wished(backend=LEGACY), PROBES, drops=drops)[Group.FORWARD] == (beside, elsewhere[0])

    def test_not_to_a_backend_that_cannot_be_used(self) -> None:
        probes = {**PROBES, IPTABLES: no("no program")}
        assert choose(wished(), probes, drops=self.DROPS)[Group.FORWARD][0].backend == NFT
        drops = {**self.DROPS, LEGACY: "chain FORWARD drops in legacy"}
        assert [choice.backend for choice in choose(wished(), probes, drops=drops)[Group.FORWARD]] == [LEGACY]

    def test_a_name_in_the_configuration_wins(self) -> None:
        choices = choose(wished(forward=LEGACY), PROBES, drops=self.DROPS)
        assert choices[Group.FORWARD] == (Choice(LEGACY, 'forward.backend = "iptables-legacy"'),)


class TestByName:
    @pytest.mark.parametrize("name", PROBES)
    def test_is_taken(self, name: BackendName) -> None:
        assert chosen(wished(backend=name), flannel=True)[0] == Choice(name, f'backend = "{name}"')

    def test_no_other_backend_is_probed(self) -> None:
        answer = backend_choice.choose(wished(backend=LEGACY), PROBES, {LEGACY: YES}.__getitem__)
        assert answer[Group.MASQUERADE][0].backend == LEGACY

    def test_each_group_by_its_own(self) -> None:
        masquerade, forward = chosen(wished(backend=NFT, forward=LEGACY))
        assert (masquerade.backend, forward) == (NFT, Choice(LEGACY, 'forward.backend = "iptables-legacy"'))

    def test_is_not_replaced_by_another(self) -> None:
        probes = {**PROBES, LEGACY: no("no program", "install it")}
        for settings in (wished(backend=LEGACY), wished(forward=LEGACY)):
            with pytest.raises(BackendUnavailable) as caught:
                chosen(settings, probes)
            assert (caught.value.backend, caught.value.reason, caught.value.remedy) == (
                LEGACY,
                "no program",
                "install it",
            )

    def test_that_no_plugin_offers(self) -> None:
        with pytest.raises(BackendUnavailable, match="backend ipfw cannot be used: no plugin offers it"):
            chosen(wished(backend="ipfw"))


class TestNames:
    def test_known_ones(self) -> None:
        for name in (*PROBES, AUTO):
            backend_choice.check_names(wished(backend=name, forward=name), PROBES)

    @pytest.mark.parametrize(("settings", "key"), [(wished("ipfw"), "backend"), (wished(forward="ipfw"), "forward.")])
    def test_unknown_ones(self, settings: Settings, key: str) -> None:
        with pytest.raises(ConfigError) as caught:
            backend_choice.check_names(settings, PROBES)
        assert caught.value.key.startswith(key)
        assert 'no plugin offers a backend "ipfw"' in caught.value.reason
        assert all(f'"{name}"' in caught.value.reason for name in (AUTO, *PROBES))

    def test_a_plugin_that_failed_may_be_why(self) -> None:
        failure = PluginError("elsewhere", "loading", "no luck")
        with pytest.raises(ConfigError, match=r"there are .*; plugin elsewhere failed in loading: no luck"):
            backend_choice.check_names(wished("ipfw"), PROBES, [failure])
        backend_choice.check_names(wished(), PROBES, [failure])
