"""The launcher's command line: parsing, naming, refusals. Flags one by one: test_compat.py."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from verl.config.compat import FLAGS
from verl.trainer.launcher import flag_parser, main, overrides_from
from verl.utils.errors import UserError

MODEL = ["--model_path", "m", "--environment", "sciworld"]


def name_of(*arguments):
    overrides, _ = overrides_from([*MODEL, *arguments])
    return next(o for o in overrides if o.startswith("trainer.experiment_name="))


def test_help_lists_every_flag():
    text = flag_parser().format_help()
    assert all(f"--{name}" in text for name in [*FLAGS, "smooth_weights", "dry_run"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sed", "1"], "unknown flag '--sed'; did you mean --seed"),
        (["--entropy_smoth=True"], "did you mean --entropy_smooth"),
        (["--qqqq"], "unknown flag '--qqqq'; see --help"),
        (["trainer.seed=1"], "unexpected argument 'trainer.seed=1'; Hydra overrides go after --"),
        (["--seed", "abc"], "argument --seed: invalid int value: 'abc'"),
        (["--seed"], "argument --seed: expected one argument"),
        (["--entropy_smooth", "maybe"], "argument --entropy_smooth.*'maybe'"),
        (["--environment", "webshop"], "argument --environment: invalid choice: 'webshop'"),
        (["--rl_algorithm", "dpo"], "argument --rl_algorithm: invalid choice: 'dpo'"),
        (["--model_load_method", "ftp"], "argument --model_load_method: invalid choice"),
        (["--see", "1"], "unknown flag '--see'"),  # no abbreviations
    ],
)
def test_mistakes_name_the_remedy(arguments, message):
    with pytest.raises(UserError, match=message):
        overrides_from([*MODEL, *arguments])


def test_model_is_required():
    with pytest.raises(UserError, match="--model_path is not given"):
        overrides_from(["--environment", "sciworld"])


def test_model_may_come_as_an_override():
    overrides, _ = overrides_from(["--", "actor_rollout_ref.model.path=m"])
    assert overrides[-1] == "actor_rollout_ref.model.path=m"


def test_same_settings_share_a_folder_and_others_do_not():
    assert name_of("--seed", "1") == name_of("--seed", "1")
    assert name_of("--seed", "1") != name_of("--seed", "2")
    assert name_of() != name_of("--", "algorithm.lam=0.9")
    assert "ppo_epo_lr3e-06_seed1_" in name_of(
        *("--rl_algorithm", "ppo", "--entropy_smooth", "True", "--lr", "3e-6", "--seed", "1")
    )


def test_overrides_after_the_dashes_win(capsys):
    main([*MODEL, "--seed", "1", "--dry_run", "--", "trainer.seed=9", "env.val.l0.max_tasks=5"])
    config = OmegaConf.create(capsys.readouterr().out)
    assert config.trainer.seed == 9
    assert config.env.val.l0.max_tasks == 5


def test_dry_run_refuses_what_could_never_run():
    with pytest.raises(UserError, match=r"unknown key 'trainer\.sed'"):
        main([*MODEL, "--dry_run", "--", "trainer.sed=3"])
    with pytest.raises(UserError, match="grpo compares"):
        main([*MODEL, "--group_size", "1", "--dry_run"])


def test_dry_run_needs_neither_engine_nor_devices(capsys):
    main([*MODEL, "--engine", "vllm", "--n_gpus", "64", "--dry_run"])
    assert OmegaConf.create(capsys.readouterr().out).trainer.n_gpus_per_node == 64
