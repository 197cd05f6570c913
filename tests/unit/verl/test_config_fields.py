"""Every setting states its sentence and its limits, and values outside them are refused."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache

import pytest

from verl.config.checks import check_values
from verl.config.compose import compose_config, compose_sft_config
from verl.config.fields import Facts, check_fields, setting, settings
from verl.config.sft import check_sft_config
from verl.utils.errors import UserError

MODEL = "actor_rollout_ref.model.path=m"


@cache
def ppo():
    return compose_config([MODEL, "algorithm.entropy_control.name=epo"])[1]


@cache
def sft():
    return compose_sft_config(["model.path=m", "data.train_files=[a.jsonl]"])[1]


ALL = {
    f"{name}: {key}": (config, check, key, value, facts)
    for name, config, check in (
        ("ppo", ppo(), check_values),
        ("sft", sft(), check_sft_config),
    )
    for key, value, facts in settings(config)
}
NUMBERS = {
    name: case for name, case in ALL.items() if not isinstance(case[3], str | bool | list | dict)
}
LIMITED = {name: case for name, case in ALL.items() if case[-1].accepted}


def changed(config, key, value):
    """A copy of `config` with one value set after composing."""
    config = deepcopy(config)
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = node[parent] if isinstance(node, dict) else getattr(node, parent)
    assert hasattr(node, name)
    setattr(node, name, value)
    return config


def outside(facts):
    """A value beyond each limit."""
    if facts.choices:
        yield "nonsense"
    if facts.least is not None:
        yield facts.least - 1
        yield math.nan
    if facts.most is not None:
        yield facts.most + 1
    if facts.above is not None:
        yield facts.above
        yield math.nan
    if facts.below is not None:
        yield facts.below


@pytest.mark.parametrize("name", ALL)
def test_every_setting_has_a_sentence(name):
    assert ALL[name][-1].doc


@pytest.mark.parametrize("name", ALL)
def test_every_default_is_within_its_own_limits(name):
    _, _, _, value, facts = ALL[name]
    assert facts.problem(value) is None


@pytest.mark.parametrize("name", LIMITED)
def test_a_value_outside_is_refused_with_key_value_and_what_is_accepted(name):
    config, check, key, value, facts = LIMITED[name]
    for wrong in outside(facts):
        given = [wrong, *value[1:]] if isinstance(value, list) else wrong
        with pytest.raises(UserError) as refused:
            check(changed(config, key, given))
        sentence = str(refused.value)
        shown = wrong if facts.choices else given
        assert sentence.startswith(f"{key}={shown} ") and sentence.endswith(facts.accepted)


def test_metadata_has_no_words_that_nobody_reads():
    known = {fact.name for fact in fields(Facts)}

    def metadata_below(config):
        for entry in fields(config):
            value = getattr(config, entry.name)
            yield from entry.metadata
            for inner in value.values() if isinstance(value, dict) else [value]:
                if is_dataclass(inner):
                    yield from metadata_below(inner)

    assert set(metadata_below(ppo())) | set(metadata_below(sft())) == known


@dataclass
class Inner:
    share: float = setting(0.5, "from zero to one", least=0, most=1)


@dataclass
class Outer:
    by_name: dict[str, Inner] = field(default_factory=dict)
    kinds: list[str] = setting(["a"], "some", choices=("a", "b"))
    pair: list[float] = setting([0.1, 0.2], "both", least=0, below=1, length=2)
    ending: str | None = setting(None, "one of two, or your own", choices=("x", "y"), open=True)
    weight: float = setting(1.0, "any number")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"by_name": {"a": Inner(2)}}, "by_name.a.share=2 makes no sense; .* between 0 and 1"),
        ({"kinds": ["a", "c"]}, "kinds=c is unknown; available: a, b"),
        ({"pair": [0.5]}, r"pair=\[0.5\] makes no sense; .* 2 numbers, each at least 0 and below"),
        ({"pair": [0.5, 1.0]}, r"pair=\[0.5, 1.0\] makes no sense"),
        (
            {"ending": "z"},
            "ending=z is unknown; available: x, y, or an import path of your own",
        ),
        ({"weight": math.nan}, "weight=nan makes no sense; it has to be a number"),
        ({"weight": math.inf}, "weight=inf makes no sense; no run needs a number beyond 1e[+]09"),
        ({"weight": -1.1e9}, "weight=-1100000000.0 makes no sense; no run needs"),
    ],
)
def test_limits_hold_in_dictionaries_and_lists_too(given, sentence):
    with pytest.raises(UserError, match=sentence):
        check_fields(Outer(**given))


def test_an_open_choice_takes_an_import_path_and_an_unset_one_is_left_alone():
    assert check_fields(Outer(ending="my.module:object", weight=1e9)) is None
    assert check_fields(Outer(by_name={"a": Inner(0)}, kinds=["b", "a"])) is None


def test_every_instance_has_a_list_of_its_own():
    first, second = Outer(), Outer()
    first.kinds.append("b")
    assert second.kinds == ["a"]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_finite_range(name):
    config, check, key, _, _ = NUMBERS[name]
    for value in (math.nan, math.inf, -math.inf, 1e18, -1e18):
        with pytest.raises(UserError, match=f"{key}={value}".replace("+", "[+]")):
            check(changed(config, key, value))


def test_numbers_in_free_form_settings_are_finite_too():
    config = deepcopy(ppo())
    config.env.options = {"nested": [{"weight": math.nan}]}
    with pytest.raises(UserError, match=r"env\.options=nan makes no sense"):
        check_values(config)
