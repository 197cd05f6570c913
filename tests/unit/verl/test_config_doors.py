"""What a saved configuration may not have run without the user's word."""

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from verl.config.compose import compose_config
from verl.config.doors import check_doors
from verl.config.fields import settings
from verl.config.saved import load_saved, load_saved_ppo
from verl.trainer.main_eval import main as evaluate
from verl.trainer.main_export import main as export
from verl.utils.errors import UserError
from verl.utils.manifest import write_manifest

ROLLOUT, MODEL = "actor_rollout_ref.rollout", "actor_rollout_ref.model"
DOORS = [
    "env.env_name=my_env:PACKAGE",
    "env.options.wrapper=my_env:Wrapper",
    "env.options.id=my_env:Env-v0",
    "env.options.wrapper_kwargs.inner=my_env:Other",
    f"{ROLLOUT}.agent_world=my_world:World",
    f"{ROLLOUT}.name=my_engine:build",
    "algorithm.adv_estimator=my_maths:estimator",
    "algorithm.entropy_control.name=my_control:CONTROL",
    "algorithm.entropy_control.options.inner=my_control:Other",
    "actor_rollout_ref.actor.policy_loss.loss_mode=my_maths:loss",
    "actor_rollout_ref.actor.optim.warmup_style=my_maths:schedule",
    "critic.optim.warmup_style=my_maths:schedule",
    "trainer.logger=[console,my_tracker:Tracker]",
    f"{MODEL}.trust_remote_code=true",
    "critic.model.trust_remote_code=true",
    "ray_kwargs.ray_init.address=10.0.0.7:6379",
    "ray_kwargs.ray_init.runtime_env.py_executable=sh",
]


@pytest.fixture(scope="module")
def composed():
    return compose_config([], "quickstart")[0]


@pytest.fixture
def save(tmp_path, composed):
    """Writes the configuration of a run with these settings; returns its path."""

    def written(*settings):
        config = deepcopy(composed)
        for setting in settings:
            key, _, value = setting.partition("=")
            OmegaConf.update(config, key, yaml.safe_load(value), force_add=True)
        path = tmp_path / "config.yaml"
        path.write_text(OmegaConf.to_yaml(config))
        return path

    return written


def test_each_takes_the_users_own_word(save):
    path = save(*DOORS)
    config = load_saved_ppo(path)  # as it is: to compare with, and never to run
    keys = {door.partition("=")[0] for door in DOORS}
    check_doors(config, keys, path)
    for door in DOORS:
        key, _, value = door.partition("=")
        with pytest.raises(UserError, match="if you trust it, add") as told:
            check_doors(config, keys - {key}, path)
        shown = str(told.value).partition(" add ")[2]
        assert shown.strip("'").startswith(f"{key}=") and value.strip("[]").split(",")[-1] in shown


def test_the_sentence_shows_what_the_command_takes(save):
    doors = ["trainer.logger=[console,my_tracker:Tracker]", "env.env_name=my_env:PACKAGE"]
    path = save(*doors)
    with pytest.raises(UserError) as told:
        load_saved(path, ["trainer.val_only=true"])
    shown = """add 'trainer.logger=["console", "my_tracker:Tracker"]' env.env_name=my_env:PACKAGE"""
    assert str(told.value).endswith(shown)
    load_saved(path, ['trainer.logger=["console", "my_tracker:Tracker"]', doors[1]])


def test_every_setting_that_takes_an_import_path_is_a_door():
    config = compose_config([], "quickstart")[1]
    marked = {key for key, _, facts in settings(config) if facts.open or facts.door}
    listed = {door.partition("=")[0] for door in DOORS}
    assert {key for key in marked if not any(name.startswith(key) for name in listed)} == set()


@pytest.mark.parametrize("environment", ["custom_env", "frozen_lake", "blackjack"])
def test_the_presets_open_no_door(environment):
    config = compose_config([f"env={environment}"], "quickstart")[1]
    assert ":" in str(config.env)
    check_doors(config, (), Path("config.yaml"))


@pytest.mark.parametrize("command", [evaluate, export])
@pytest.mark.parametrize("env_name", ["strange_env:PACKAGE", "strange_env"])
def test_strangers_code_is_not_imported(save, tmp_path, monkeypatch, command, env_name):
    checkpoint = tmp_path / "global_step_1"
    checkpoint.mkdir()
    (checkpoint / "driver.pt").write_bytes(b"")
    write_manifest(checkpoint, step=1)
    (tmp_path / "strange_env.py").write_text("raise SystemExit('executed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    save(f"env.env_name={env_name}")
    arguments = [f"checkpoint={checkpoint}", f"output={tmp_path / 'model'}"]
    with pytest.raises(UserError):
        command(arguments[: 1 + (command is export)])
    assert "strange_env" not in sys.modules
