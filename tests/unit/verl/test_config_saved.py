"""A run's own configuration, read back for evaluation and export."""

import pytest
from omegaconf import OmegaConf

from verl.config.compose import compose_config, compose_sft_config, plain
from verl.config.saved import Change, changes_between, load_saved, load_saved_ppo, load_saved_sft
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


def changes(*overrides):
    before, after = (
        compose_config([], "quickstart")[1],
        compose_config([*overrides], "quickstart")[1],
    )
    return changes_between(before, after)


def test_a_configuration_does_not_differ_from_itself_written_and_read(saved):
    path, config = saved
    assert changes_between(load_saved(path, [])[1], config) == []


def test_changes_are_told_apart_by_whether_they_change_what_is_learned():
    before = compose_config([], "quickstart")[1]
    lr, n = before.actor_rollout_ref.actor.optim.lr, before.env.rollout.n
    assert changes(
        "actor_rollout_ref.actor.optim.lr=0.5", "env.rollout.n=3", "trainer.save_freq=99"
    ) == [
        Change("actor_rollout_ref.actor.optim.lr", lr, 0.5, False),
        Change("trainer.save_freq", before.trainer.save_freq, 99, True),
        Change("env.rollout.n", n, 3, False),
    ]


def test_a_harmless_key_makes_all_below_it_harmless():
    found = changes("env.val.more.name=L0_test", "env.val.held_out.max_tasks=5")
    assert {change.key for change in found} >= {"env.val.more.name", "env.val.held_out.max_tasks"}
    assert all(change.harmless for change in found)
    (train,) = changes("env.train.max_tasks=5")  # of the same dataclass
    assert not train.harmless


def test_entries_of_free_form_keys_are_compared_one_by_one():
    (gone_or_new,) = changes("env.options.gold_path=true")
    assert str(gone_or_new) == "env.options.gold_path=(not set) -> True"
    assert not gone_or_new.harmless  # an environment's options are not known here


def test_a_cloning_run_is_read_back_too(tmp_path):
    composed, config = compose_sft_config(["model.path=m", "data.train_files=[a.jsonl]"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(composed))
    assert load_saved_sft(tmp_path / "config.yaml") == config
    changed = compose_sft_config(["model.path=m", "data.train_files=[b.jsonl]"])[1]
    (files,) = changes_between(config, changed)
    assert str(files) == "data.train_files=['a.jsonl'] -> ['b.jsonl']" and not files.harmless


def with_key(value):
    """A run on an environment that needs a key, as composed and as its file has it."""
    composed, config = compose_config([f"+env.options.api_key={value}"], "quickstart")
    return OmegaConf.create(plain(composed)), config


def test_a_secret_is_asked_for_because_no_file_keeps_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(with_key("hunter2")[0]))
    with pytest.raises(UserError, match=r"keeps no secrets; add env\.options\.api_key=<value>"):
        load_saved(path, [])
    assert load_saved(path, ["env.options.api_key=hunter2"])[1] == with_key("hunter2")[1]


def test_a_secret_is_no_change_of_a_resumed_run_and_is_not_told(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(with_key("hunter2")[0]))
    assert changes_between(load_saved_ppo(path), with_key("hunter3")[1]) == []
