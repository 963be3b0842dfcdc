"""Plugins that work, plugins that do not, and one of another distribution."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pluggy
import pytest

from flanneld_masq import hookspecs, plugin_loader
from flanneld_masq.errors import ConfigError, KernelError, PluginError
from flanneld_masq.hookspecs import Backend, BackendType, Event, Host, Metric, MetricKind, hookimpl
from flanneld_masq.model import BackendName, Desired, Family, Network, Observation, Probe, Settings
from flanneld_masq.plugin_loader import Plugins
from flanneld_masq.process import ProcessRunner
from flanneld_masq.testing import MemoryBackend, MemoryKernel, memory_backend_type

HOST = Host(ProcessRunner())
NETWORKS = (ip_network("192.168.0.0/16"), ip_network("fd99::/64"))


@pytest.fixture(autouse=True)
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plugin but those that a test brings."""
    monkeypatch.setattr(plugin_loader, "_entry_points", lambda: iter(()))


class Offers:
    """A plugin that offers what it is given."""

    def __init__(self, *backends: object) -> None:
        self._backends = backends

    @hookimpl
    def flanneld_masq_backends(self) -> Any:
        return list(self._backends)


class Answers:
    """A plugin whose hooks return or raise the given answers, one for each call."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def _next(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @hookimpl
    def flanneld_masq_backends(self) -> Any:
        return self._next()

    @hookimpl
    def flanneld_masq_non_masquerade_cidrs(self) -> Any:
        return self._next()

    @hookimpl
    def flanneld_masq_event(self, event: Event) -> Any:
        return self._next()


def load(**named: object) -> Plugins:
    return plugin_loader.load(named)


def failures(plugins: Plugins) -> list[tuple[str, str]]:
    return [(failure.plugin, failure.hook) for failure in plugins.failures]


class TestLoading:
    def test_without_plugins(self) -> None:
        plugins = load()
        assert (plugins.backends, plugins.failures, plugins.create(Family.IPV4, HOST)) == ({}, [], {})

    def test_backends_in_the_order_of_preference(self) -> None:
        plugins = load(
            one=Offers(memory_backend_type("none"), memory_backend_type("late", 30)),
            two=Offers(memory_backend_type("early", 10), memory_backend_type("alike", 30)),
        )
        assert plugins.failures == []
        assert list(plugins.create(Family.IPV4, HOST)) == ["early", "alike", "late", "none"]

    def test_a_module_is_a_plugin_too(self) -> None:
        module = ModuleType("outside")
        module.flanneld_masq_backends = hookimpl(lambda: [memory_backend_type("outside")])  # type: ignore[attr-defined]
        assert list(load(outside=module).backends) == ["outside"]

    def test_an_unknown_hook_is_refused_by_name(self) -> None:
        class Misspelt(Offers):
            @hookimpl
            def flanneld_masq_backend(self) -> None: ...

        plugins = load(good=Offers(memory_backend_type("good")), bad=Misspelt(memory_backend_type("bad")))
        assert failures(plugins) == [("bad", "registration")]
        assert "flanneld_masq_backend'" in str(plugins.failures[0])
        assert list(plugins.backends) == ["good"], "a plugin that is half understood is not used"

    def test_an_unknown_argument_is_refused_by_name(self) -> None:
        class Misread:
            @hookimpl
            def flanneld_masq_event(self, event: Event, colour: str) -> None: ...

        plugins = load(bad=Misread())
        assert failures(plugins) == [("bad", "registration")]
        assert "colour" in str(plugins.failures[0])

    def test_a_failure_is_no_failure_of_the_next(self) -> None:
        class Misspelt:
            @hookimpl
            def flanneld_masq_backend(self) -> None: ...

        plugins = load(bad=Misspelt(), good=Offers(memory_backend_type("good")))
        assert failures(plugins) == [("bad", "registration")]
        assert list(plugins.backends) == ["good"]

    @pytest.mark.parametrize("error", [RuntimeError("no luck"), ImportError("x"), KernelError("asking", "no")])
    def test_one_that_raises_is_named(self, error: Exception) -> None:
        plugins = load(bad=Answers(error), good=Offers(memory_backend_type("good")))
        assert failures(plugins) == [("bad", "flanneld_masq_backends")]
        assert (str if isinstance(error, KernelError) else repr)(error) in str(plugins.failures[0])
        assert list(plugins.backends) == ["good"]

    @pytest.mark.parametrize("answer", [None, 5, "nft", {"nft": 1}, [None], [BackendType], object()])
    def test_one_that_returns_rubbish_is_named(self, answer: object) -> None:
        plugins = load(bad=Answers(answer), good=Offers(memory_backend_type("good")))
        assert set(failures(plugins)) == {("bad", "flanneld_masq_backends")}
        assert "which is not a BackendType" in str(plugins.failures[0])
        assert list(plugins.backends) == ["good"]

    def test_what_is_good_of_one_that_returns_rubbish_is_used(self) -> None:
        plugins = load(bad=Answers([None, memory_backend_type("good")]))
        assert len(plugins.failures) == 1
        assert list(plugins.backends) == ["good"]

    @pytest.mark.parametrize("name", ["auto", "", "Upper", "a/b", "../x", "a b"])
    def test_a_name_that_no_configuration_can_say_is_refused(self, name: str) -> None:
        plugins = load(bad=Offers(memory_backend_type(name)))
        assert failures(plugins) == [("bad", "flanneld_masq_backends")]
        assert repr(name) in str(plugins.failures[0])
        assert plugins.backends == {}

    def test_a_name_that_is_taken_names_both(self) -> None:
        first, second = memory_backend_type("twice"), memory_backend_type("twice")
        plugins = plugin_loader.load({"one": Offers(first), "two": Offers(second)})
        assert plugins.backends == {"twice": first} or plugins.backends == {"twice": second}
        (failure,) = plugins.failures
        loser = failure.plugin
        winner = {"one": "two", "two": "one"}[loser]
        assert f"a backend named twice was already registered by plugin {winner}" in str(failure)
        assert plugins.owners == {"twice": winner}

    def test_a_name_that_is_taken_stays_with_the_first_plugin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        entry = Entry("nft", lambda: Offers(memory_backend_type("first")))
        monkeypatch.setattr(plugin_loader, "_entry_points", lambda: iter((entry,)))
        plugins = load(nft=Offers(memory_backend_type("second")))
        assert failures(plugins) == [("nft", "registration")]
        assert list(plugins.backends) == ["first"]


class Entry:
    """An entry point whose module is made by `load`."""

    def __init__(self, name: str, load: Callable[[], object]) -> None:
        self.name = name
        self.load = load


@pytest.mark.parametrize(
    "error", [ImportError("no module named x"), SyntaxError("bad"), SystemExit(1), ValueError("x")]
)
def test_a_plugin_that_raises_on_import_is_named(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> object:
        raise error

    entries = (Entry("bad", fail), Entry("good", lambda: Offers(memory_backend_type("good"))))
    monkeypatch.setattr(plugin_loader, "_entry_points", lambda: iter(entries))
    plugins = load()
    assert failures(plugins) == [("bad", "loading")]
    assert repr(error) in str(plugins.failures[0])
    assert list(plugins.backends) == ["good"]


class TestNonMasqueradeCidrs:
    def answers(self, plugins: Plugins) -> tuple[tuple[Network, ...], list[str]]:
        networks, failed = plugins.non_masquerade_cidrs(Settings())
        return networks, [failure.plugin for failure in failed]

    def test_of_all_plugins_together(self) -> None:
        plugins = load(one=Answers([], NETWORKS[:1]), two=Answers([], list(NETWORKS[1:])), three=Offers())
        networks, failed = self.answers(plugins)
        assert (set(networks), failed) == (set(NETWORKS), [])

    def test_one_that_raises_keeps_its_last_good_answer(self) -> None:
        plugins = load(one=Answers([], NETWORKS, RuntimeError("no luck"), NETWORKS[:1], []))
        assert self.answers(plugins) == (NETWORKS, [])
        assert self.answers(plugins) == (NETWORKS, ["one"])
        assert self.answers(plugins) == (NETWORKS[:1], [])
        assert self.answers(plugins) == ((), [])

    def test_one_that_never_answered_adds_nothing(self) -> None:
        plugins = load(one=Answers([], RuntimeError("no luck")), two=Answers([], NETWORKS))
        assert self.answers(plugins) == (NETWORKS, ["one"])

    @pytest.mark.parametrize("rubbish", [None, 5, "10.0.0.0/8", ["10.0.0.0/8"], [None], NETWORKS[0], [NETWORKS]])
    def test_rubbish_is_as_good_as_an_exception(self, rubbish: object) -> None:
        plugins = load(one=Answers([], NETWORKS, rubbish))
        self.answers(plugins)
        networks, (failure,) = plugins.non_masquerade_cidrs(Settings())
        assert networks == NETWORKS
        assert (failure.plugin, failure.hook) == ("one", "flanneld_masq_non_masquerade_cidrs")
        assert repr(rubbish) in str(failure)

    def test_the_settings_are_there_for_those_who_ask(self) -> None:
        seen = []

        class Asks:
            @hookimpl
            def flanneld_masq_non_masquerade_cidrs(self, settings: Settings) -> Sequence[Network]:
                seen.append(settings)
                return ()

        load(one=Asks()).non_masquerade_cidrs(Settings(net_conf="/x"))
        assert seen == [Settings(net_conf="/x")]


class TestWatchedFiles:
    class Names:
        def __init__(self, answer: object) -> None:
            self.answer = answer

        @hookimpl
        def flanneld_masq_watched_files(self, settings: Settings) -> Any:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    def test_of_all_plugins_each_once(self) -> None:
        plugins = load(one=self.Names(["/a", "/b*"]), two=self.Names(("/a", "/c")), three=Offers())
        files, failed = plugins.watched_files(Settings())
        assert (sorted(files), failed) == (["/a", "/b*", "/c"], ())

    @pytest.mark.parametrize("rubbish", [None, 5, "/a", ["a"], [None], RuntimeError("no luck")])
    def test_rubbish_is_left_out(self, rubbish: object) -> None:
        files, (failure,) = load(one=self.Names(rubbish), two=self.Names(["/b"])).watched_files(Settings())
        assert files == ("/b",)
        assert (failure.plugin, failure.hook) == ("one", "flanneld_masq_watched_files")

    def test_an_error_on_purpose_is_shown_as_it_is(self) -> None:
        _, (failure,) = load(one=self.Names(ConfigError("/a", "key", "is wrong"))).watched_files(Settings())
        assert failure.reason == "/a: key: is wrong"


def test_events_reach_everybody_and_failures_come_back() -> None:
    seen = []

    class Sees:
        @hookimpl
        def flanneld_masq_event(self, event: Event) -> None:
            seen.append(event)

    event = Event("notice", "hello")
    plugins = load(bad=Answers([], RuntimeError("no luck")), one=Sees(), two=Sees())
    (failure,) = plugins.tell(event)
    assert (failure.plugin, failure.hook) == ("bad", "flanneld_masq_event")
    assert seen == [event, event]


def test_each_plugin_exports_metrics_and_failures_come_back() -> None:
    seen: list[object] = []

    class Exports:
        @hookimpl
        def flanneld_masq_export(self, metrics: Callable[[], Sequence[Metric]]) -> None:
            seen.append(metrics())

        @hookimpl
        def flanneld_masq_stop(self) -> None:
            seen.append("stop")

    class Fails:
        @hookimpl
        def flanneld_masq_export(self, settings: Settings) -> None:
            raise KernelError("binding", str(settings.metrics_port))

        @hookimpl
        def flanneld_masq_stop(self) -> None:
            raise RuntimeError("no luck")

    metric = Metric("x", MetricKind.GAUGE, "An x.")
    plugins = load(bad=Fails(), one=Exports(), two=Exports())
    (failure,) = plugins.export(Settings(metrics_port=7), lambda: (metric,))
    assert (failure.plugin, failure.hook, failure.reason) == ("bad", "flanneld_masq_export", "binding: 7")
    (failure,) = plugins.stop()
    assert (failure.plugin, failure.hook) == ("bad", "flanneld_masq_stop")
    assert seen == [(metric,), (metric,), "stop", "stop"]


class TestGuardedBackend:
    class Broken(MemoryBackend):
        answer: Any = RuntimeError("no luck")

        def _answer(self, *_: object) -> Any:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    for _method in plugin_loader._ANSWERS:
        setattr(Broken, _method, Broken._answer)

    CALLS: ClassVar[dict[str, Callable[[Backend], object]]] = {
        "wanted": lambda backend: backend.wanted(Desired(Family.IPV4)),
        "render": lambda backend: backend.render(Desired(Family.IPV4)),
        "observe": lambda backend: backend.observe(()),
        "replace": lambda backend: backend.replace(Desired(Family.IPV4), Observation(), ()),
        "drops_forwarding": lambda backend: backend.drops_forwarding(),
        "kube_proxy_mark": lambda backend: backend.kube_proxy_mark(),
        "survey": lambda backend: backend.survey(()),
        "remove": lambda backend: backend.remove(()),
        "fingerprint": lambda backend: backend.fingerprint(()),
        "generation": lambda backend: backend.generation(),
        "poll": lambda backend: backend.poll(),
    }

    def guarded(self, create: Callable[[Family, Host], Backend]) -> Backend:
        name = BackendName("outside")
        return load(mine=Offers(BackendType(name, "", create))).create(Family.IPV4, HOST)[name]

    def broken(self, answer: object) -> Backend:
        inner = self.Broken(BackendName("outside"), Family.IPV4, MemoryKernel())
        inner.answer = answer
        return self.guarded(lambda family, host: inner)

    def test_every_method_of_the_protocol_is_tried_here(self) -> None:
        methods = {name for name, method in vars(Backend).items() if callable(method) and not name.startswith("_")}
        assert methods == {"probe", *self.CALLS}

    @pytest.mark.parametrize("method", CALLS)
    def test_an_unexpected_exception_names_plugin_and_method(self, method: str) -> None:
        with pytest.raises(PluginError) as caught:
            self.CALLS[method](self.broken(ZeroDivisionError("oops")))
        assert (caught.value.plugin, caught.value.hook) == ("mine", f"outside.{method}")
        assert "ZeroDivisionError('oops')" in str(caught.value)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    @pytest.mark.parametrize("method", CALLS)
    def test_an_error_that_backends_may_raise_passes(self, method: str) -> None:
        error = KernelError("asking", "no")
        with pytest.raises(KernelError) as caught:
            self.CALLS[method](self.broken(error))
        assert caught.value is error

    @pytest.mark.parametrize("method", CALLS)
    def test_rubbish_names_plugin_and_method(self, method: str) -> None:
        with pytest.raises(PluginError) as caught:
            self.CALLS[method](self.broken(3.5))
        assert (caught.value.plugin, caught.value.hook) == ("mine", f"outside.{method}")
        assert "it returned 3.5" in str(caught.value)

    @pytest.mark.parametrize("answer", [ZeroDivisionError("oops"), KernelError("asking", "no"), None, "yes"])
    def test_probe_never_raises(self, answer: object) -> None:
        probe = self.broken(answer).probe()
        assert isinstance(probe, Probe)
        assert not probe.usable
        assert probe.reason

    def test_one_that_cannot_even_be_made(self) -> None:
        def create(family: Family, host: Host) -> Backend:
            raise OSError("no such library")

        guarded = self.guarded(create)
        assert "plugin mine failed in outside.probe: OSError('no such library')" in guarded.probe().reason
        with pytest.raises(PluginError, match=r"outside\.observe"):
            guarded.observe(())

    def test_what_works_passes_through(self) -> None:
        kernel = MemoryKernel()
        made = []

        def create(family: Family, host: Host) -> Backend:
            made.append((family, host))
            return MemoryBackend(BackendName("outside"), family, kernel)

        guarded = self.guarded(create)
        assert made == [], "made when it is first used"
        assert guarded.probe().usable
        for call in self.CALLS.values():
            call(guarded)
        assert made == [(Family.IPV4, HOST)]
        assert [method for method, *_ in kernel.log] == [
            *("probe", "observe", "replace", "drops_forwarding", "kube_proxy_mark", "survey", "remove")
        ]


class TestEntryPoints:
    """Distributions as pip leaves them on sys.path."""

    @pytest.fixture
    def site(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.undo()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        return tmp_path

    def names(self) -> list[str]:
        return [entry_point.name for entry_point in plugin_loader._entry_points()]

    def test_none(self, site: Path) -> None:
        assert self.names() == []

    def test_only_those_of_our_group(self, site: Path) -> None:
        distribution(site, "one", "[console_scripts]\nx = y\n[flanneld_masq]\none = one_plugin\nmore = one_more\n")
        distribution(site, "two", "[console_scripts]\nx = y\n")
        assert sorted(self.names()) == ["more", "one"]

    def test_the_same_name_of_two_distributions_is_there_twice(self, site: Path) -> None:
        distribution(site, "one", "[flanneld_masq]\nsame = one_plugin\n")
        distribution(site, "two", "[flanneld_masq]\nsame = two_plugin\n")
        assert self.names() == ["same", "same"]

    def test_one_distribution_that_is_found_twice_is_there_once(
        self, site: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for directory in (site / "a", site / "b"):
            directory.mkdir()
            distribution(directory, "one", "[flanneld_masq]\none = one_plugin\n")
        monkeypatch.setattr(sys, "path", [str(site / "a"), str(site / "b")])
        assert self.names() == ["one"]


def distribution(site: Path, name: str, entry_points: str) -> None:
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


OUTSIDE = """
from flanneld_masq.hookspecs import hookimpl
from flanneld_masq.testing import memory_backend_type

@hookimpl
def flanneld_masq_backends():
    return [memory_backend_type("outside", 99)]
"""
RAISES = OUTSIDE.replace("return", "raise RuntimeError('no luck') #")
RAISES_LATER = """
from flanneld_masq.hookspecs import BackendType, hookimpl
from flanneld_masq.testing import MemoryBackend, MemoryKernel

class Backend(MemoryBackend):
    def render(self, desired):
        raise RuntimeError("no luck")

@hookimpl
def flanneld_masq_backends():
    return [BackendType("outside", "", lambda family, host: Backend("outside", family, MemoryKernel()))]
"""


class TestOutsidePlugin:
    """The real program, and a plugin in a distribution that it knows nothing of."""

    @pytest.fixture
    def masq(self, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
        (tmp_path / "subnet.env").write_text("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n")
        (tmp_path / "config.toml").write_text(
            f'subnet_files = ["{tmp_path}/subnet.env"]\nnet_conf = "{tmp_path}/no"\nstate_directory = "{tmp_path}/x"\n'
        )
        (tmp_path / "config.toml").chmod(0o644)
        distribution(tmp_path, "outside", "[flanneld_masq]\nelsewhere = outside_plugin\n")

        def run(module: str, *argv: str) -> subprocess.CompletedProcess[str]:
            (tmp_path / "outside_plugin.py").write_text(module)
            inherited = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
            root = str(Path(hookspecs.__file__).parents[1])
            environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root, *inherited])}
            environ["PYTHONDONTWRITEBYTECODE"] = "1"
            command = (sys.executable, "-m", "flanneld_masq", "--config", str(tmp_path / "config.toml"), *argv)
            return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)

        return run

    def test_is_found_and_selected_by_name(self, masq: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        done = masq(OUTSIDE, "render", "--backend", "outside")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("# ipv4, outside\n# kube_proxy_mark = ")
        assert "from 10.244.0.0/16 not to 224.0.0.0/4 masquerade to random ports" in done.stdout

    def test_is_listed(self, masq: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        done = masq(OUTSIDE, "backends", "--json")
        assert done.returncode == 0, done.stderr
        for family in json.loads(done.stdout)["families"].values():
            assert "outside" in [backend["name"] for backend in family["backends"]]

    def test_is_named_when_it_raises(self, masq: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        done = masq(RAISES, "render")
        assert "plugin elsewhere failed in flanneld_masq_backends: RuntimeError('no luck')" in done.stderr
        assert done.returncode == 0

    def test_is_named_when_it_raises_and_was_asked_for(
        self, masq: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        done = masq(RAISES, "render", "--backend", "outside")
        assert done.returncode == 2
        assert "plugin elsewhere failed in flanneld_masq_backends: RuntimeError('no luck')" in done.stderr

    def test_is_named_when_its_backend_raises(self, masq: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        done = masq(RAISES_LATER, "render", "--backend", "outside")
        assert done.returncode == 1
        assert "plugin elsewhere failed in outside.render: RuntimeError('no luck')" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_marker_is_the_one_that_pluggy_looks_for() -> None:
    manager = pluggy.PluginManager(hookspecs.ENTRY_POINT_GROUP)
    manager.add_hookspecs(hookspecs.HookSpecs)
    manager.register(Offers())
    manager.check_pending()
    assert manager.hook.flanneld_masq_backends() == [[]]
