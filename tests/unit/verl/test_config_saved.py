"""A run's own configuration, read back for evaluation and export."""

import pytest
from omegaconf import OmegaConf

from verl.config.compose import compose_config
from verl.config.saved import load_saved
from verl.utils.errors import UserError


@pytest.fixture
def saved(tmp_path):
    composed, config = compose_config(["trainer.seed=7"], "quickstart")
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(composed))
    return path, config


def test_without_overrides_it_is_what_was_run(saved):
    path, config = saved
    assert load_saved(path, [])[1] == config


def test_overrides_win_and_may_name_new_task_sets(saved):
    path, _ = saved
    config = load_saved(path, ["trainer.val_only=true", "env.val.dev.name=L0_test"])[1]
    assert config.trainer.val_only is True
    assert sorted(config.env.val) == ["dev", "held_out"]


def test_a_run_of_an_earlier_version_is_read_without_the_keys_that_are_gone(saved, caplog):
    path, config = saved
    older = OmegaConf.load(path)
    older.algorithm.entropy_plugin = "epo.plugin:build"
    older.trainer.validation.window = {"size": 3}
    path.write_text(OmegaConf.to_yaml(older))
    assert load_saved(path, [])[1] == config
    first, second = (record.getMessage() for record in caplog.records)
    assert "unknown key 'algorithm.entropy_plugin'" in first and "goes without it" in first
    assert "unknown key 'trainer.validation.window'" in second


@pytest.mark.parametrize("override", ["trainer.val_onl=true", "trainer.seed=many"])
def test_what_does_not_fit_is_refused(saved, override):
    with pytest.raises(UserError, match=r"docs/configuration\.md"):
        load_saved(saved[0], [override])


def test_a_checkpoint_without_its_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="keep a checkpoint in the folder of the run"):
        load_saved(tmp_path / "config.yaml", [])
