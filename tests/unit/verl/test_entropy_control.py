"""An entropy control is EPO, or an object at an import path with options of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from omegaconf import MISSING, OmegaConf

from epo import EPOConfig
from epo.plugin import EPOPlugin
from verl.algorithms.entropy_control import EntropyControl, Plugin, StepHook
from verl.config.checks import check_values
from verl.config.compose import compose_config
from verl.config.entropy_control import build_plugin
from verl.config.saved import load_saved
from verl.utils.errors import UserError
from verl.utils.importing import load_object

KEY = "algorithm.entropy_control"


@dataclass
class Targets:
    first: float = 1.0
    later: list[float] = field(default_factory=list)


@dataclass
class Options:
    floor: float = 0.5
    warm_steps: int = 0
    targets: Targets = field(default_factory=Targets)


class Regularizer:
    required_columns = ()

    def __init__(self, options):
        self.options = options

    def __call__(self, entropy_BT, mask_BT, columns, context):
        return entropy_BT.sum() * 0.0, {}


class Hook(StepHook):
    """All its answers are inherited."""


class Control:
    options = Options

    def validate(self, options):
        if options.floor < 0:
            raise ValueError(f"floor={options.floor} is below 0; raise it")

    def build(self, options):
        return Plugin(Regularizer(options), Hook())


@dataclass
class MandatoryOptions:
    target: float = MISSING


class ControlWithoutDefault(Control):
    options = MandatoryOptions


class ControlOfAnotherKind(Control):
    options = dict


CONTROL, MANDATORY, OTHER = Control(), ControlWithoutDefault(), ControlOfAnotherKind()
MINE = f"{KEY}.name={__name__}:CONTROL"


def config(*overrides):
    composed = compose_config(list(overrides), "custom_env")[1]
    check_values(composed)
    return composed


def test_without_a_choice_there_is_none():
    assert build_plugin(config()) is None


@pytest.mark.parametrize("choice", ["epo.enable=true", f"{KEY}.name=epo"])
def test_epo_has_the_settings_of_epo(choice):
    plugin = build_plugin(config(choice, "epo.penalty=indicator", "epo.aggregation=token_mean"))
    assert isinstance(plugin, EPOPlugin)
    assert plugin.regularizer.required_columns == ("token_weight", "turn_ids")


def test_the_control_that_epo_offers_is_one():
    control = load_object("epo.plugin:CONTROL")
    assert isinstance(control, EntropyControl)
    assert control.options is EPOConfig


def test_a_control_of_ones_own_gets_its_options_as_its_dataclass():
    options = f"{KEY}.options={{floor: 0.25, targets: {{later: [1, 2]}}}}"
    plugin = build_plugin(config(MINE, options))
    assert plugin is not None
    # an integer where a number is due is a number
    assert plugin.regularizer.options == Options(0.25, 0, Targets(1.0, [1.0, 2.0]))


def test_options_may_be_set_one_by_one():
    plugin = build_plugin(config(MINE, f"{KEY}.options.floor=0.75", f"+{KEY}.options.warm_steps=2"))
    assert plugin is not None and plugin.regularizer.options == Options(0.75, 2)


def test_a_hook_without_state_needs_no_method():
    hook = Hook()
    hook.load_state_dict(hook.state_dict())
    assert hook.context_state(0, 10) == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [MINE, f"{KEY}.options.flor=1"],
            rf"'{KEY}.options.flor'; did you mean 'floor'",
        ),
        (
            [MINE, f"{KEY}.options.x=1"],
            rf"unknown key '{KEY}.options.x'; available: floor, warm_steps, targets",
        ),
        ([MINE, f"{KEY}.options.targets.frst=1"], rf"'{KEY}.options.targets.frst'; did.*'first'"),
        ([MINE, f"{KEY}.options.floor=low"], rf"{KEY}.options.floor: Value 'low'.*Float"),
        ([MINE, f"{KEY}.options.warm_steps=true"], rf"{KEY}.options.warm_steps: Value 'True'"),
        ([MINE, f"{KEY}.options.floor=-1"], r"floor=-1.0 is below 0; raise it"),
        ([f"{KEY}.name={__name__}:MANDATORY"], rf"{KEY}.options.target is not set; add"),
        ([f"{KEY}.name={__name__}:OTHER"], "is of type ControlOfAnotherKind; name an object with"),
        ([f"{KEY}.name=math:floor"], "math:floor is of type builtin_function_or_method; name an"),
        ([f"{KEY}.name=math:no_such"], "cannot load 'math:no_such'"),
        ([f"{KEY}.name=ep"], rf"{KEY}.name=ep is unknown; available: epo, or an import path"),
        ([MINE, "epo.enable=true"], r"and epo.enable=true are two controls of one entropy; set"),
        ([f"{KEY}.options.floor=1"], rf"has no effect here; name the control in {KEY}.name"),
        ([f"{KEY}.name=epo", f"{KEY}.options.alpha=1"], r"no effect here; EPO's settings are epo"),
        (
            [MINE, "actor_rollout_ref.actor.entropy_coeff=0.01"],
            rf"{KEY}.name=.*:CONTROL replaces the entropy bonus .*=0.01; set that to 0",
        ),
        (
            ["algorithm.entropy_plugin=epo.plugin:build"],
            rf"a control brings its own options now; see {KEY}.name",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(overrides, message):
    with pytest.raises(UserError, match=message):
        config(*overrides)


def test_a_runs_own_options_are_read_back(tmp_path):
    choice = [MINE, f"{KEY}.options.floor=0.75"]
    composed, run = compose_config(choice, "quickstart")
    OmegaConf.save(composed, tmp_path / "config.yaml")
    read = load_saved(tmp_path / "config.yaml", [MINE, "epo.enable=false"])[1]
    assert read.algorithm == run.algorithm
