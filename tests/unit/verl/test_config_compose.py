"""Composition: presets, typed objects, and one sentence for every kind of mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from agent_system.config import EnvConfig
from agent_system.environments.registry import get_env_package
from epo.config import EPOConfig
from verl.config.compose import CONFIG_DIR, compose_config, plain, ppo_keys
from verl.utils.errors import UserError

MODEL = "actor_rollout_ref.model.path=m"


def compose(*overrides):
    return compose_config([MODEL, *overrides])[1]


def test_defaults_are_typed_objects():
    config = compose()
    assert isinstance(config.env, EnvConfig)
    assert isinstance(config.epo, EPOConfig)
    assert config.epo.enable is False
    assert config.critic.model.path == "m"  # follows the policy
    assert config.trainer.default_local_dir == "runs/epo/run"


@pytest.mark.parametrize("preset", ["ppo_trainer", "launch", "quickstart"])
def test_named_configurations_compose(preset):
    _, config = compose_config([MODEL], preset)
    assert config.algorithm.adv_estimator == "grpo"
    assert config.env.val


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (folder.name, file.stem)
        for folder in CONFIG_DIR.iterdir()
        if folder.is_dir() and folder.name != "__pycache__"
        for file in folder.glob("*.yaml")
    ],
)
def test_every_preset_composes(group, name):
    config = compose(f"{group}={name}")
    if group == "epo":
        assert config.epo.enable == (name != "off")
    elif group == "env":
        assert get_env_package(config.env.env_name).name
    else:
        assert (config.algorithm.adv_estimator == "gae") == (name == "ppo")


def test_paper_settings():
    sciworld, alfworld = compose("epo=sciworld").epo, compose("epo=alfworld").epo
    for epo in (sciworld, alfworld):
        assert (epo.entropy_coeff, epo.kappa_l, epo.kappa_r, epo.gamma) == (0.001, 0.0, 2.0, 3.0)
    assert (sciworld.alpha, alfworld.alpha) == (0.05, 0.1)


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_plus_signs_make_no_difference(prefix):
    assert compose(f"{prefix}trainer.seed=5").trainer.seed == 5


def test_dictionaries_take_new_entries():
    config = compose("env.options.a.b=3", "env.val.l2.name=L2_test", "env.val.l2.max_tasks=4")
    assert config.env.options == {"a": {"b": 3}}
    assert (config.env.val["l2"].name, config.env.val["l2"].max_tasks) == ("L2_test", 4)
    assert config.env.val["l0"].name == "L0_test"  # the preset's stay


def test_dictionary_entries_can_be_changed_and_removed():
    config = compose("env.val.l0.max_tasks=3", "~env.val.l1")
    assert list(config.env.val) == ["l0"]
    assert (config.env.val["l0"].name, config.env.val["l0"].max_tasks) == ("L0_test", 3)


def test_last_override_wins():
    assert compose("trainer.seed=1", "trainer.seed=2").trainer.seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.totl_epochs=3", "unknown key 'trainer.totl_epochs'.*'trainer.total_epochs'"),
        ("actor_rollout_ref.actor.lr=1", "did you mean 'actor_rollout_ref.actor.optim.lr'"),
        ("+nonsense=1", "unknown key 'nonsense'.*docs/configuration.md"),
        ("env.val.l2.nme=x", "unknown key 'env.val.l2.nme'.*'env.val.<name>.name'"),
        ("env.val={l0:{max_tsks:3}}", "unknown key 'env.val.l0.max_tsks'.*max_tasks"),
        ("trainer.seed.deep=1", "unknown key 'trainer.seed.deep'"),
        ("actor_rollout_ref.actor.ppo_epochs=abc", "ppo_epochs: Value 'abc'.*Integer"),
        ("trainer.logger=wandb", "trainer.logger: .*str is not a ListConfig"),
        ("actor_rollout_ref=3", "actor_rollout_ref: .*int"),
        ("env=alfwrld", "unknown env preset 'alfwrld'; available: alfworld, blackjack"),
        ("epo=on", "unknown epo preset 'on'; available: alfworld, off"),
        ("trainer.logger=[console", "cannot read the override"),
        ("trainer.seed", "cannot read the override 'trainer.seed'; write key=value"),
        ("trainer.seed=1,2", "Ambiguous value"),
        ("trainer.experiment_name=${nothing}", "nothing"),
    ],
)
def test_mistakes_are_one_sentence(override, message):
    with pytest.raises(UserError, match=message) as caught:
        compose(override)
    assert "\n" not in str(caught.value)


def test_missing_model_names_the_key():
    with pytest.raises(UserError, match=r"actor_rollout_ref\.model\.path is not set"):
        compose_config([])


def test_unknown_configuration_lists_those_there_are():
    with pytest.raises(UserError, match=r"unknown config name 'quick'.*quickstart"):
        compose_config([MODEL], "quick")


def test_every_key_of_the_schema_is_accepted():
    keys = ppo_keys()
    for key in keys.walk():
        written = key.replace("<name>", "l0")
        assert keys.normalize(f"{written}=1").lstrip("+").split("=")[0] in written


@given(st.from_regex(r"[a-z]{3,12}(\.[a-z]{3,12}){0,2}", fullmatch=True))
def test_random_keys_are_refused_unless_they_exist(key):
    keys = ppo_keys()
    open_keys = ("env.options.", "env.val.", "ray_kwargs.ray_init.runtime_env.")
    if key in set(keys.walk()) or key.startswith(open_keys):
        return
    with pytest.raises(UserError, match="unknown key") as caught:
        keys.normalize(f"{key}=1")
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "env=1e-320",
        f"actor_rollout_ref.actor.optim.lr={'1' * 400}",
        f"algo={'x' * 5000}",
        "trainer.total_epochs=[1,",
        "data={a: {b: 1}}",
    ],
)
def test_what_hydra_lets_through_is_one_short_sentence_too(override):
    with pytest.raises(UserError) as caught:
        compose_config([MODEL, override])
    assert len(str(caught.value)) < 600 and str(caught.value).isprintable()


def test_secrets_of_free_form_settings_are_in_no_file():
    env_vars = "+ray_kwargs.ray_init.runtime_env.env_vars"
    composed, config = compose_config(
        [MODEL, "env=frozen_lake", f"{env_vars}.HF_TOKEN=abc", f"{env_vars}.LEVEL=info"]
    )
    runtime_env = plain(composed)["ray_kwargs"]["ray_init"]["runtime_env"]
    assert runtime_env == {"env_vars": {"HF_TOKEN": "***", "LEVEL": "info"}}
    assert config.ray_kwargs.ray_init.runtime_env["env_vars"]["HF_TOKEN"] == "abc"


def test_apart_from_secrets_the_written_configuration_is_the_whole_one():
    composed, _ = compose_config([MODEL, "env=sciworld", "epo=sciworld"])
    assert plain(composed) == OmegaConf.to_container(composed)
