"""The configuration of cloning: presets, and what is refused before anything starts."""

import re

import pytest

from verl.config.compose import compose_sft_config
from verl.config.sft import SFTConfig, last_epoch
from verl.trainer.main_sft import check_export_dir, load_data, main, parse
from verl.utils.errors import UserError
from verl.workers.model_loading import load_chat_template

NEEDED = ["model.path=m", "data.train_files=[a.jsonl]"]


def test_the_defaults_are_the_dataclasses():
    resolved, config = compose_sft_config(NEEDED)
    assert isinstance(config, SFTConfig)
    assert config.data.prompt_weight == 0.0 and config.data.truncation == "error"
    assert config.model.init == "pretrained"
    assert resolved["trainer"]["export_dir"] == "runs/sft/run/model"


def test_the_preset_of_the_small_policy_starts_from_random_weights():
    _, config = compose_sft_config(NEEDED, "sft_small_policy")
    assert config.model.init == "random"
    assert config.data.augment == "examples.small_policy.augment:rename"
    assert last_epoch(config.trainer) < config.trainer.total_epochs


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.trian_batch_size=3",
            "unknown key 'data.trian_batch_size'; did you mean 'data.train_batch_size'?",
        ),
        ("env=sciworld", "unknown key 'env'; docs/configuration.md lists the keys"),
        ("data.train_batch_size=many", "data.train_batch_size"),
        (
            "data.train_batch_size=0",
            "data.train_batch_size=0 makes no sense; it has to be at least 1",
        ),
        (
            "trainer.total_epochs=0",
            "trainer.total_epochs=0 makes no sense; it has to be at least 1",
        ),
        (
            "trainer.stop_after_epochs=0",
            "trainer.stop_after_epochs=0 makes no sense; it has to be at least 1",
        ),
        ("data.truncation=left", "data.truncation=left is unknown; available: error, right"),
        ("model.init=zeros", "model.init=zeros is unknown"),
        ("trainer.device=tpu", "trainer.device=tpu is unknown"),
        (
            "data.prompt_weight=-1",
            "data.prompt_weight=-1.0 makes no sense; it has to be at least 0",
        ),
        (
            "data.label_smoothing=1",
            "data.label_smoothing=1.0 makes no sense; it has to be at least 0 and below 1",
        ),
        ("data.max_length=1", "data.max_length=1 makes no sense; it has to be at least 2"),
        ("data.train_files=[]", "data.train_files is empty"),
        ("data.train_files=[", "cannot read the override 'data.train_files=['"),
    ],
)
def test_a_mistake_is_named_in_one_sentence(override, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        compose_sft_config([*NEEDED, override])
    assert "\n" not in str(error.value)


def test_adapters_on_random_weights_are_refused():
    with pytest.raises(UserError, match="adapters on random weights"):
        compose_sft_config([*NEEDED, "model.init=random", "model.lora_rank=8"])


def test_a_missing_mandatory_value_is_named():
    with pytest.raises(UserError, match=r"data\.train_files"):
        compose_sft_config(["model.path=m"])


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(UserError, match="available: sft_small_policy, sft_trainer"):
        compose_sft_config(NEEDED, "quickstart")


def test_a_missing_model_and_a_missing_augmentation_are_refused_before_ray_starts(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        main([f"model.path={tmp_path}/none", "data.train_files=[a.jsonl]"])
    _, config = compose_sft_config(
        ["model.path=small", "data.train_files=[a.jsonl]", "data.augment=no.such.module:f"]
    )
    with pytest.raises(UserError, match=r"cannot load 'no.such.module:f'"):
        load_data(config, load_chat_template(config.model))


def test_the_trained_model_takes_no_other_folders_place(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds no model.*name a folder that does not exist yet"):
        main([*NEEDED, f"trainer.export_dir={tmp_path}"])
    (tmp_path / "config.json").write_text("{}")  # a model that an earlier run exported
    check_export_dir(tmp_path)
    check_export_dir(tmp_path / "new")


def test_the_configuration_can_be_printed(capsys):
    main([*NEEDED, "--cfg", "job"])
    printed = capsys.readouterr().out
    assert "prompt_weight: 0.0" in printed and "total_epochs: 3" in printed
    assert parse(["-cn", "sft_small_policy", "a=1"]).overrides == ["a=1"]
