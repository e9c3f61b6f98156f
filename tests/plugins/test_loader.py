from __future__ import annotations

import sys
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.plugins import COMPANIONS, Registry, load_plugins

HEAD = """
from limbeck.hookspecs import hookimpl, hookspec
from limbeck.interfaces import *

GOOD = LossPlugin(name="good", kind="token", config=TokenLossConfig, needs=lambda config: Needs(),
                  factory=lambda config, context: None, summary="Good.")
"""


def record(**changes: str) -> str:
    """A module that yields the good record with some fields changed."""
    fields = ", ".join(f"{name}={value}" for name, value in changes.items())
    return (
        f"import dataclasses\n{HEAD}\n@hookimpl\ndef limbeck_losses():\n    yield dataclasses.replace(GOOD, {fields})"
    )


def hook(body: str, name: str = "limbeck_losses") -> str:
    return f"{HEAD}\n@hookimpl\ndef {name}():\n    {body}\n"


BROKEN = {
    "an import that fails": ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
    "a syntax error": ("def (", "SyntaxError"),
    "sys.exit at import": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "an exit in a hook": (hook("raise SystemExit(3)"), "SystemExit: 3"),
    "a hook that raises": (hook("raise RuntimeError('no network')"), "RuntimeError: no network"),
    "a generator that raises midway": (hook("yield GOOD\n    raise RuntimeError('midway')"), "RuntimeError: midway"),
    "an error that cannot be shown": (
        hook("class Odd(Exception):\n        def __str__(self): raise ValueError\n    raise Odd()"),
        "Odd: (its message cannot be shown)",
    ),
    "nothing returned": (hook("pass"), "limbeck_losses must yield LossPlugin records, but returned None"),
    "a text returned": (hook("return 'good'"), "must yield LossPlugin records, but yielded 'g'"),
    "another hook's record": (
        hook("yield SchedulerPlugin(name='x', config=Config, factory=int, summary='X.')"),
        "must yield LossPlugin records, but yielded SchedulerPlugin",
    ),
    "a generator without an end": (hook("while True: yield GOOD"), "more than 1000 records"),
    "a config that is no Config": (record(config="dict"), "config must be a subclass of LossConfig"),
    "a config of another kind": (record(config="Config"), "config must be a subclass of LossConfig"),
    "a config that is an instance": (record(config="TokenLossConfig()"), "config must be a subclass of LossConfig"),
    "a config with the field plugin": (
        record(config="type('C', (LossConfig,), {'__annotations__': {'plugin': int}})"),
        "cannot have the field `plugin`",
    ),
    "a factory that cannot be called": (record(factory="None"), "factory must be callable"),
    "an unknown kind of loss": (record(kind="'tokens'"), "kind must be one of token, sequence, feature, not 'tokens'"),
    "a name with a dot": (record(name="'my.loss'"), "name 'my.loss' must be small letters"),
    "no summary": (record(summary="' '"), "summary must be a sentence"),
    "needs that is no function": (record(needs="Needs()"), "needs must be a function"),
    "a misspelt hook": (
        hook("yield GOOD", "limbeck_loses"),
        "limbeck_loses is no hook of Limbeck: did you mean limbeck_losses?",
    ),
    "a misspelt hook without marker": (f"{HEAD}\ndef limbeck_schedular(): pass", "did you mean limbeck_schedulers?"),
    "an unknown hook": (
        hook("pass", "limbeck_zzz_qqq"),
        "limbeck_zzz_qqq is no hook of Limbeck: hooks are limbeck_teachers",
    ),
    "a marked function of any name": (hook("pass", "things"), "things is no hook of Limbeck"),
    "a hook without its marker": (f"{HEAD}\ndef limbeck_losses(): yield GOOD", "lacks its @hookimpl marker"),
    "an argument that the hook lacks": (f"{HEAD}\n@hookimpl\ndef limbeck_losses(config): yield GOOD", "config"),
    "an observer without the event": (
        f"{HEAD}\n@hookimpl\ndef limbeck_event(): pass",
        "must take the argument `event`",
    ),
    "a wrapper": (f"{HEAD}\n@hookimpl(wrapper=True)\ndef limbeck_losses(): return (yield)", "hook wrapper"),
    "a module without hooks": ("x = 1", "offers nothing: implement one of"),
    "the same name twice": (hook("yield GOOD\n    yield GOOD"), "yields the loss name 'good' twice"),
}


@pytest.mark.parametrize(("source", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_kept_with_its_error_and_harms_no_other(install, loss, source, said):
    install("limbeck-broken", source)
    install("limbeck-fine", loss("fine"))
    registry = load_plugins()
    (failure,) = registry.failures
    assert said in failure.error
    assert (failure.distribution, failure.version, failure.entry_point) == ("limbeck-broken", "1.0", "limbeck-broken")
    assert registry.get("loss", "fine").summary == "A loss."
    assert registry.get("loss", "forward_kl").name == "forward_kl"
    assert not [entry for entry in registry.entries if entry.distribution == "limbeck-broken"]


def test_the_error_names_the_line_of_the_plugin(install):
    install("limbeck-broken", hook("raise RuntimeError('no network')"))
    (failure,) = load_plugins().failures
    assert failure.error.endswith("limbeck_broken.py:10)")


def test_a_user_who_interrupts_is_obeyed(install):
    install("limbeck-broken", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_plugins()


def test_an_unknown_name_lists_the_nearest_the_known_and_every_failure(install):
    install("limbeck-broken", "import no_such_module_at_all")
    with pytest.raises(LimbeckError) as caught:
        load_plugins().get("loss", "forwrd_kl")
    assert caught.value.reason is Reason.PLUGIN_UNKNOWN
    text = str(caught.value)
    assert "no loss plugin is called 'forwrd_kl' (did you mean 'forward_kl'?; known: contrastive, cross_entropy" in text
    assert "limbeck-broken 1.0 (limbeck-broken): ModuleNotFoundError: No module named 'no_such_module_at_all'" in text


def test_a_name_of_another_kind_is_pointed_out():
    with pytest.raises(LimbeckError, match="'cosine' is a scheduler"):
        load_plugins().get("loss", "cosine")


def test_a_clash_names_both_and_only_that_name_is_lost(install, loss):
    install("limbeck-one", loss("twice"))
    install("limbeck-two", loss("twice"), version="2.5")
    registry = load_plugins()
    with pytest.raises(LimbeckError) as caught:
        registry.get("loss", "twice")
    assert caught.value.reason is Reason.PLUGIN_INVALID
    assert "'twice' is claimed by limbeck-one 1.0 and limbeck-two 2.5" in str(caught.value)
    assert registry.clashes() == ["the loss name 'twice' is claimed by limbeck-one 1.0 and limbeck-two 2.5"]
    assert not registry.failures
    assert registry.get("loss", "forward_kl")


def test_a_built_in_name_cannot_be_taken_over_in_silence(install, loss):
    install("limbeck-one", loss("forward_kl"))
    with pytest.raises(LimbeckError, match="A plugin breaks") as caught:
        load_plugins().get("loss", "forward_kl")
    assert "limbeck-one 1.0" in str(caught.value)


def test_one_name_may_be_used_by_two_kinds(install):
    source = hook("yield GOOD") + (
        "\n@hookimpl\ndef limbeck_schedulers():\n"
        "    yield SchedulerPlugin(name='good', config=Config, factory=int, summary='X.')\n"
    )
    install("limbeck-both", source)
    registry = load_plugins()
    assert registry.get("loss", "good").summary == "Good."
    assert registry.get("scheduler", "good").summary == "X."


def test_a_distribution_found_twice_is_no_clash(install, loss, tmp_path, monkeypatch):
    install("Limbeck.Again", loss("again"))
    install("limbeck-again", loss("again"), folder=tmp_path / "other", version="0.9")
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    sys.path.append(sys.path[0])  # and once more, in the same folder
    try:
        registry = load_plugins()
    finally:
        sys.path.pop()
    (entry,) = registry.claims("loss", "again")
    assert entry.version == "0.9"  # the first on the path, which is what an import finds
    assert not registry.clashes()


def test_an_observer_and_a_method_of_an_object_are_taken(install):
    source = f"""{HEAD}
class Plugin:
    seen = []
    @hookimpl
    def limbeck_event(self, event):
        self.seen.append(event)

    @hookimpl(specname="limbeck_losses")
    def my_losses(self):
        return [GOOD]

plugin = Plugin()
"""
    install("limbeck-object", source, points="[limbeck.plugins]\nobject = limbeck_object:plugin\n")
    registry = load_plugins()
    assert not registry.failures
    ((name, call),) = registry.observers
    assert name == "limbeck-object:object"
    call(event="an event")
    assert sys.modules["limbeck_object"].plugin.seen == ["an event"]
    assert registry.get("loss", "good")


def test_a_plugin_is_taken_whole_or_not_at_all(install):
    source = hook("yield GOOD") + "\n@hookimpl\ndef limbeck_schedulers(): raise RuntimeError('no')\n"
    install("limbeck-half", source + "\n@hookimpl\ndef limbeck_event(event): pass\n")
    registry = load_plugins()
    assert [failure.error.split(" (")[0] for failure in registry.failures] == ["RuntimeError: no"]
    assert "good" not in registry.names("loss")
    assert not registry.observers


def test_an_entry_point_that_names_nothing_is_a_failure(install, loss):
    install("limbeck-typo", loss("typo"), points="[limbeck.plugins]\nt = limbeck_typo:no_such_object\n")
    (failure,) = load_plugins().failures
    assert "no_such_object" in failure.error


def test_a_broken_neighbour_is_survived(install, loss):
    info = install("limbeck-fine", loss("fine"))
    broken = info.with_name("other-1.0.dist-info")
    broken.mkdir()
    (broken / "METADATA").write_bytes(b"\xff\xfe\x00")
    (broken / "entry_points.txt").write_bytes(b"\xff\xfe[console_scripts]")
    unnamed = info.with_name("unnamed-1.0.dist-info")
    unnamed.mkdir()
    (unnamed / "entry_points.txt").write_text("this is no ini file: limbeck.plugins\n= = =\n[")
    registry = load_plugins()
    assert registry.get("loss", "fine")
    assert registry.get("loss", "forward_kl")


def test_a_finder_that_raises_is_survived(install, loss, monkeypatch):
    class Broken:
        def find_spec(self, *given: object) -> None:
            return None

        def find_distributions(self, context: object) -> list[object]:
            raise RuntimeError("a broken neighbour")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    install("limbeck-fine", loss("fine"))
    registry = load_plugins()
    assert registry.get("loss", "forward_kl")
    assert registry.get("loss", "fine")


def test_built_ins_come_through_the_same_hooks():
    registry = load_plugins()
    assert {entry.kind for entry in registry.entries if entry.distribution == "limbeck"} == {
        "teacher",
        "generator",
        "loss",
        "scheduler",
    }
    assert not registry.failures


def test_an_empty_registry_says_that_nothing_is_known():
    with pytest.raises(LimbeckError, match="A plugin of this name") as caught:
        Registry((), ()).get("teacher", "x")
    assert "known: none" in str(caught.value)


def test_a_teacher_of_another_distribution_of_ours_is_told_with_what_to_install():
    ours = {path.name for path in (Path(__file__).parents[2] / "plugins").iterdir()}
    found = {entry.plugin.name: entry.distribution for entry in load_plugins().entries if entry.distribution in ours}
    assert found == COMPANIONS
    with pytest.raises(LimbeckError) as caught:
        Registry((), ()).get("teacher", "openai")
    assert "no teacher plugin is called 'openai' (it comes with limbeck-openai: pip install limbeck-openai)" in str(
        caught.value
    )
