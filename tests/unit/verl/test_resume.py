"""A run that goes on with other settings: what is refused, what is said, what is kept."""

import logging

import pytest
import ray
import yaml

from verl.config.compose import compose_config, compose_sft_config, plain
from verl.trainer import main_ppo, main_sft, session
from verl.trainer.checkpoint import CheckpointStore, changes_on_resume, tell_changes
from verl.utils.errors import UserError

CLONING = ["model.path=small", "data.train_files=[a.jsonl]", "data.max_length=512"]


def a_run(folder, composed, config):
    """What a run leaves: its configuration and a checkpoint of step 1."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(composed)))
    (folder / "run.log").write_text("step 1\n")
    return CheckpointStore(config.trainer).save(1, {"step": 1, "tracker": {}}, lambda path: None)


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def trained(tmp_path):
    """Command line and folder of a run that has trained a step."""
    folder = tmp_path / "run"
    command = ["trainer.device=cpu", f"trainer.default_local_dir={folder}"]
    a_run(folder, *compose_config(command, "quickstart"))
    return command, folder


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("actor_rollout_ref.actor.optim.lr=0.125", "optim.lr=.* -> 0.125"),
        ("algorithm.adv_estimator=rloo", "algorithm.adv_estimator=grpo -> rloo"),
        ("actor_rollout_ref.actor.clip_ratio=0.3", "clip_ratio=0.2 -> 0.3"),
        ("env.rollout.n=16", "env.rollout.n=8 -> 16"),
        ("env.seed=7", "env.seed=0 -> 7"),
        ("env.options.gold_path=true", r"env.options.gold_path=\(not set\) -> True"),
    ],
)
def test_what_changes_the_learning_is_refused_before_anything_is_touched(trained, override, told):
    command, folder = trained
    before = content(folder)
    with pytest.raises(
        UserError, match=f"{told}.*experiment_name.*resume_changed=accept"
    ) as caught:
        main_ppo.main(["--config-name", "quickstart", *command, override])
    assert "\n" not in str(caught.value)
    assert content(folder) == before
    assert not ray.is_initialized()


def test_a_cloning_run_is_refused_alike(tmp_path):
    command = [*CLONING, f"trainer.default_local_dir={tmp_path / 'run'}"]
    a_run(tmp_path / "run", *compose_sft_config(command))
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"optim.lr=1e-05 -> 0.5.*resume_changed=accept"):
        main_sft.main([*command, "optim.lr=0.5"])
    assert content(tmp_path) == before


def changed(folder, *overrides):
    """What is found when the run in `folder` goes on with `overrides`."""
    start = [f"trainer.default_local_dir={folder}"]
    composed, before = compose_config(start, "quickstart")
    checkpoint = a_run(folder, composed, before)
    after = compose_config([*start, *overrides], "quickstart")[1]
    return changes_on_resume(after.trainer, checkpoint, before, after)


def test_accepted_and_harmless_changes_are_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    accept = "trainer.resume_changed=accept"
    tell_changes(changed(tmp_path / "run", "env.rollout.n=16", "trainer.save_freq=9", accept))
    learned, harmless = caplog.records[-2:]
    assert learned.levelname == "WARNING" and "env.rollout.n=" in learned.getMessage()
    assert harmless.levelname == "INFO" and "trainer.save_freq=" in harmless.getMessage()
    assert "save_freq" not in learned.getMessage()


def test_harmless_changes_need_no_acceptance(tmp_path):
    (change,) = changed(tmp_path / "run", "trainer.test_freq=77")
    assert change.harmless


def test_another_name_may_go_on_from_the_checkpoint_with_other_settings(tmp_path):
    other = f"trainer.default_local_dir={tmp_path / 'other'}"
    keys = [change.key for change in changed(tmp_path / "run", "env.rollout.n=16", other)]
    assert "env.rollout.n" in keys


def test_every_configuration_of_a_run_is_kept(tmp_path):
    for seed in (1, 1, 2, 3):
        session.record_run(tmp_path, {"trainer": {"seed": seed}}, {"device": f"cpu{seed}"})
    kept = {path.name: yaml.safe_load(path.read_text()) for path in tmp_path.glob("config*.yaml")}
    seeds = {name: config["trainer"]["seed"] for name, config in kept.items()}
    assert seeds == {"config.1.yaml": 1, "config.2.yaml": 2, "config.yaml": 3}
    assert len(list(tmp_path.glob("environment*.json"))) == 3
