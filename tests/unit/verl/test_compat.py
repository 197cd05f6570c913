"""Launch flags and legacy keys: each has its effect, or is refused with the reason."""

from __future__ import annotations

from functools import cache

import pytest
from omegaconf import OmegaConf

from verl.config.compat import (
    FLAG_ALIASES,
    FLAGS,
    LEGACY_KEYS,
    VALIDATION_SETS,
    settings_from_flags,
    translate_overrides,
)
from verl.config.compose import compose_config, ppo_keys
from verl.trainer.launcher import overrides_from
from verl.utils.errors import UserError

A = "actor_rollout_ref.actor"
R = "actor_rollout_ref.rollout"
GRPO = ("--environment", "sciworld", "--model_path", "m")
PPO = (*GRPO, "--rl_algorithm", "ppo")
EPO = (*GRPO, "--entropy_smooth", "True")

# flag: (what the command line has already, the changed value, exactly the keys that change with it)
EFFECTS = {
    "environment": (
        GRPO,
        "alfworld",
        {
            "env.env_name": "alfworld/AlfredTWEnv",
            "env.max_steps": 50,
            "env.train.name": "train",
            "env.val.seen.name": "valid_seen",
            "env.val.unseen.name": "valid_unseen",
            "trainer.project_name": "epo_alfworld",
        },
    ),
    "rl_algorithm": (
        GRPO,
        "ppo",
        {"algorithm.adv_estimator": "gae", "env.rollout.n": 1, "data.train_batch_size": 128},
    ),
    "train_data_size": (GRPO, "4", {"data.train_batch_size": 4}),
    "group_size": (GRPO, "4", {"env.rollout.n": 4}),
    "val_data_size": (GRPO, "16", {"env.val.l0.max_tasks": 16, "env.val.l1.max_tasks": 16}),
    "val_one_time_size": (GRPO, "32", {"data.val_batch_size": 32}),
    "seed": (GRPO, "3", {"trainer.seed": 3, "env.seed": 3}),
    "total_epochs": (GRPO, "7", {"trainer.total_epochs": 7}),
    "n_gpus": (GRPO, "2", {"trainer.n_gpus_per_node": 2}),
    "engine": (GRPO, "vllm", {f"{R}.name": "vllm"}),
    "model_path": (
        GRPO,
        "/a b/it's, one=2",
        {
            "actor_rollout_ref.model.path": "/a b/it's, one=2",
            "critic.model.path": "/a b/it's, one=2",
        },
    ),
    "model_load_method": (
        GRPO,
        "huggingface",
        {
            "actor_rollout_ref.model.load_method": "huggingface",
            "critic.model.load_method": "huggingface",
        },
    ),
    "lr": (GRPO, "3e-6", {f"{A}.optim.lr": 3e-6, "critic.optim.lr": 3e-6}),
    "lr_warmup_steps": (GRPO, "5", {f"{A}.optim.lr_warmup_steps": 5}),
    "lr_warmup_steps_ratio": (GRPO, "0.1", {f"{A}.optim.lr_warmup_steps_ratio": 0.1}),
    "min_lr_ratio": (GRPO, "0.2", {f"{A}.optim.min_lr_ratio": 0.2}),
    "num_cycles": (GRPO, "1.5", {f"{A}.optim.num_cycles": 1.5}),
    "warmup_style": (GRPO, "cosine", {f"{A}.optim.warmup_style": "cosine"}),
    "weight_decay": (GRPO, "0.1", {f"{A}.optim.weight_decay": 0.1}),
    "ppo_mini_batch_size": (
        GRPO,
        "64",
        {f"{A}.ppo_mini_batch_size": 64, "critic.ppo_mini_batch_size": 64},
    ),
    "ppo_micro_batch_size_per_gpu": (
        GRPO,
        "8",
        {f"{A}.ppo_micro_batch_size_per_gpu": 8, "critic.ppo_micro_batch_size_per_gpu": 8},
    ),
    "log_prob_micro_batch_size_per_gpu": (
        GRPO,
        "8",
        {
            f"{R}.log_prob_micro_batch_size_per_gpu": 8,
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 8,
        },
    ),
    "entropy_coeff": (GRPO, "0.01", {f"{A}.entropy_coeff": 0.01}),
    # EPO's term replaces the plain bonus; what else differs is default flag against default key
    "entropy_smooth": (
        GRPO,
        "True",
        {
            "epo.enable": True,
            f"{A}.entropy_coeff": 0.0,
            "epo.kappa_l": 0.5,
            "epo.kappa_r": 1.5,
            "epo.alpha": 0.1,
            "epo.schedule": "constant",
        },
    ),
    "entropy_smooth_min_ratio": (EPO, "0", {"epo.kappa_l": 0.0}),
    "entropy_smooth_max_ratio": (EPO, "2.0", {"epo.kappa_r": 2.0}),
    "entropy_smooth_out_range_penalty": (EPO, "0.05", {"epo.alpha": 0.05}),
    # alpha = 0.1 (the default penalty) * 0.5
    "entropy_smooth_coeff": (EPO, "0.5", {"epo.alpha": 0.05}),
    "enable_smooth_weights": (EPO, "True", {"epo.schedule": "paper"}),
    "adaptive_start_epoch": (EPO, "10", {"epo.start_step": 10}),
    "window_size": (EPO, "3", {"epo.reference": "sliding_window", "epo.window": 3}),
    "entropy_distribution_output_file": (
        EPO,
        "out/e.json",
        {"epo.entropy_distribution_output_file": "out/e.json"},
    ),
    "enable_entropy_reward_logging": (GRPO, "True", {"trainer.log_entropy_above": 1.2}),
    "entropy_threshold": (
        (*GRPO, "--enable_entropy_reward_logging", "True"),
        "0.7",
        {"trainer.log_entropy_above": 0.7},
    ),
}
# Only one value is offered; the others are refused with the reason.
REFUSED_VALUES = {"entropy_smooth_mask_mode": (EPO, "seq", "no gradient")}


@cache
def composed(arguments: tuple[str, ...]) -> dict[str, object]:
    """All keys of the configuration, except the names that carry a digest of the others."""
    overrides, _ = overrides_from(list(arguments))
    config, _ = compose_config(overrides, "launch")
    flat: dict[str, object] = {}

    def collect(node: object, prefix: str) -> None:
        if isinstance(node, dict) and node:
            for name, value in node.items():
                collect(value, f"{prefix}.{name}" if prefix else name)
        else:
            flat[prefix] = node

    collect(OmegaConf.to_container(config), "")
    named_by_digest = ("experiment_name", "default_local_dir", "rollout_data_dir")
    return {key: value for key, value in flat.items() if not key.endswith(named_by_digest)}


def test_every_flag_is_tested():
    assert set(EFFECTS) | set(REFUSED_VALUES) == set(FLAGS)


@pytest.mark.parametrize("flag", EFFECTS)
def test_flag_changes_exactly_its_keys(flag):
    before, value, expected = EFFECTS[flag]
    old = composed(before)
    new = composed((*before, f"--{flag}", value))
    changed = {key: new[key] for key in new if key not in old or new[key] != old[key]}
    for name in ("max_tasks", "seed", "tasks"):  # of the other environment's validation sets
        changed = {
            key: v for key, v in changed.items() if key in expected or not key.endswith(f".{name}")
        }
    assert changed == expected


@pytest.mark.parametrize("flag", REFUSED_VALUES)
def test_refused_value_says_why(flag):
    before, value, reason = REFUSED_VALUES[flag]
    with pytest.raises(UserError, match=reason):
        composed((*before, f"--{flag}", value))


@pytest.mark.parametrize("alias", FLAG_ALIASES)
def test_alias_is_the_same_flag(alias):
    flag = FLAG_ALIASES[alias]
    assert composed((*EPO, f"--{alias}", "True")) == composed((*EPO, f"--{flag}", "True"))


def test_ppo_plays_group_size_tasks_of_one_episode_each():
    # 16 tasks * group of 8 = 128 episodes in both algorithms; with a group of 4: 16 * 4 = 64
    assert composed(PPO)["data.train_batch_size"] == 128
    assert composed((*PPO, "--group_size", "4"))["data.train_batch_size"] == 64
    assert composed((*PPO, "--group_size", "4"))["env.rollout.n"] == 1


def test_entropy_coeff_is_epos_lambda_when_epo_is_on():
    config = composed((*EPO, "--entropy_coeff", "0.01"))
    assert config["epo.entropy_coeff"] == 0.01
    assert config[f"{A}.entropy_coeff"] == 0.0


@pytest.mark.parametrize("flag", [name for name, flag in FLAGS.items() if flag.needs])
def test_flag_without_effect_is_refused(flag):
    default = FLAGS[flag].default
    with pytest.raises(UserError, match=f"--{flag} has no effect without --{FLAGS[flag].needs}"):
        settings_from_flags({flag: 1 if default is None else default})


def test_validation_sets_are_those_of_the_presets():
    for environment, names in VALIDATION_SETS.items():
        _, config = compose_config([f"env={environment}", "actor_rollout_ref.model.path=m"])
        assert tuple(config.env.val) == names


def legacy(*overrides):
    return compose_config(["actor_rollout_ref.model.path=m", *overrides])[1]


def test_published_keys_reach_their_new_fields():
    config = legacy(
        f"{A}.entropy_smooth=True",
        f"+{A}.entropy_smooth_mask_mode=token",
        f"+{A}.entropy_smooth_min_ratio=0.5",
        f"++{A}.entropy_smooth_max_ratio=1.5",
        f"{A}.entropy_smooth_out_range_penalty=0.2",
        f"{A}.enable_smooth_weights=False",
        f"{A}.entropy_distribution_output_file=e.json",
        "trainer.window_size=4",
        "env.adaptive_start_epoch=6",
    )
    epo = config.epo
    assert (epo.enable, epo.penalty, epo.kappa_l, epo.kappa_r) == (True, "relu", 0.5, 1.5)
    assert (epo.alpha, epo.schedule, epo.reference, epo.window) == (
        0.2,
        "constant",
        "sliding_window",
        4,
    )
    assert (epo.start_step, epo.entropy_distribution_output_file) == (6, "e.json")


def test_verl_keys_reach_their_new_fields():
    config = legacy(
        f"{R}.n=4",
        f"{A}.grad_clip=0.5",
        f"{A}.max_steps=12",
        "env.history_length=2",
        "env.entropy_threshold=0.9",
        "trainer.val_one_time_size=7",
        "trainer.rl_algorithm=ppo",
        "ray_init.num_cpus=3",
    )
    # the last word on the group size is the explicit one
    assert config.env.rollout.n == 4
    assert config.actor_rollout_ref.actor.optim.grad_clip == 0.5
    assert (config.env.max_steps, config.env.context.history_length) == (12, 2)
    assert config.trainer.log_entropy_above == 0.9
    assert config.data.val_batch_size == 7
    assert config.algorithm.adv_estimator == "gae"
    assert config.ray_kwargs.ray_init.num_cpus == 3


def test_environment_name_of_verl_agent_brings_its_preset():
    config = legacy("env.env_name=alfworld/AlfredTWEnv")
    assert (config.env.env_name, config.env.train.name) == ("alfworld/AlfredTWEnv", "train")


def test_environment_name_leaves_a_chosen_preset_alone():
    config = legacy("env=sciworld", "env.env_name=sciworld/SciWorldEnv", "env.max_steps=3")
    assert (config.env.env_name, config.env.max_steps) == ("sciworld/SciWorldEnv", 3)


@pytest.mark.parametrize("key", LEGACY_KEYS)
def test_legacy_key_is_renamed_to_a_key_that_exists_or_refused(key):
    written = key.replace(".*", ".something")
    try:
        translated = translate_overrides([f"{written}=1"])
    except UserError as error:
        # names the key and gives a reason beyond it
        assert str(error).startswith(f"{written}=1: ") and len(str(error)) > len(written) + 15
        return
    assert translated != [f"{written}=1"]
    new_keys = {override.partition("=")[0] for override in translated}
    assert new_keys == {"algo"} or new_keys <= set(all_keys())


@cache
def all_keys():
    return tuple(ppo_keys().walk())


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("data.train_files=/data/train.parquet", "env.train"),
        (f"{R}.load_format=dummy", "trainer's weights"),
        ("reward_model.enable=True", "environment gives the reward"),
        ("algorithm.gigpo.step_advantage_w=1.0", "GiGPO"),
        (f"{A}.entropy_smooth_mask_mode=seq", "no gradient"),
        (f"{A}.entropy_smooth_coeff=2", "multiply epo.alpha"),
    ],
)
def test_key_without_meaning_is_refused_with_the_reason(override, reason):
    with pytest.raises(UserError, match=reason) as caught:
        translate_overrides([override])
    assert override in str(caught.value)
