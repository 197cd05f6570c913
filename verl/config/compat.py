"""Names of the published code and of verl that are called differently here, or are refused.

`FLAGS` is the command line of `examples/general_running_server.sh`, `LEGACY_KEYS` the Hydra keys.
Both say in one place what an old name becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from verl.utils.errors import UserError

Values = Mapping[str, Any]  # flag name -> value
Settings = dict[str, Any]  # Hydra key -> value

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
VALIDATION_SETS = {"alfworld": ("seen", "unseen"), "sciworld": ("l0", "l1")}


@dataclass(frozen=True)
class Flag:
    """One flag. `to_settings(value, all_values)` gives the Hydra keys that it decides."""

    default: Any  # None: not set
    help: str
    to_settings: Callable[[Any, Values], Settings]
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None
    needs: str | None = None  # a flag that has to be True, or this one would do nothing


def true_or_false(text: str) -> bool:
    """`True`, `False` and their lower-case forms."""
    if text.lower() not in ("true", "false"):
        raise ValueError(f"'{text}' is neither True nor False")
    return text.lower() == "true"


def _sets(*keys: str) -> Callable[[Any, Values], Settings]:
    return lambda value, _: dict.fromkeys(keys, value)


def _train_batch(value: int, values: Values) -> Settings:
    """PPO plays as many episodes as GRPO, each with a task of its own."""
    episodes_a_task = values["group_size"] if values["rl_algorithm"] == "ppo" else 1
    return {"data.train_batch_size": value * episodes_a_task}


def _group(value: int, values: Values) -> Settings:
    return {"env.rollout.n": value} if values["rl_algorithm"] == "grpo" else {}


def _validation_size(value: int, values: Values) -> Settings:
    names = VALIDATION_SETS[values["environment"]]
    return {f"env.val.{name}.max_tasks": value for name in names}


def _entropy_coeff(value: float, values: Values) -> Settings:
    """EPO's lambda, or the weight of a plain entropy bonus."""
    return {"epo.entropy_coeff" if values["entropy_smooth"] else f"{ACTOR}.entropy_coeff": value}


def _alpha(_: float, values: Values) -> Settings:
    penalty = values["entropy_smooth_out_range_penalty"]
    return {"epo.alpha": penalty * values["entropy_smooth_coeff"]}


def _mask_mode(value: str, _: Values) -> Settings:
    if value == "seq":
        raise UserError(
            "entropy_smooth_mask_mode=seq is not offered: a penalty that is one constant for "
            "a whole response has no gradient; use token"
        )
    if value != "token":
        raise UserError(f"unknown entropy_smooth_mask_mode '{value}'; use token")
    return {"epo.penalty": "relu"}


def _schedule(value: bool, _: Values) -> Settings:
    return {"epo.schedule": "paper" if value else "constant"}


def _window(value: int, _: Values) -> Settings:
    return {"epo.reference": "sliding_window", "epo.window": value}


def _log_entropy(value: bool, values: Values) -> Settings:
    return {"trainer.log_entropy_above": values["entropy_threshold"] if value else None}


def _no_setting(_: Any, __: Values) -> Settings:
    return {}


EPO = "entropy_smooth"
FLAGS: dict[str, Flag] = {
    "environment": Flag(
        "alfworld", "environment preset", _sets("env"), choices=("alfworld", "sciworld")
    ),
    "rl_algorithm": Flag(
        "grpo", "grpo, or ppo with a critic", _sets("algo"), choices=("grpo", "ppo")
    ),
    "train_data_size": Flag(
        16, "tasks a step (ppo: times group_size, one episode each)", _train_batch, int
    ),
    "group_size": Flag(8, "episodes of a task", _group, int),
    "val_data_size": Flag(
        128, "tasks of each validation set, always the same", _validation_size, int
    ),
    "val_one_time_size": Flag(
        128, "validation episodes played at the same time", _sets("data.val_batch_size"), int
    ),
    "seed": Flag(0, "seed of the run and of its tasks", _sets("trainer.seed", "env.seed"), int),
    "total_epochs": Flag(150, "training steps", _sets("trainer.total_epochs"), int),
    "n_gpus": Flag(8, "training workers a node", _sets("trainer.n_gpus_per_node"), int),
    "engine": Flag(
        "auto", "rollout engine: vllm, hf, or auto (vllm where installed)", _sets(f"{ROLLOUT}.name")
    ),
    "model_path": Flag(
        None, "model folder, hub name, or small / smollm2", _sets("actor_rollout_ref.model.path")
    ),
    "model_load_method": Flag(
        "local",
        "local: the path is a folder; huggingface: a hub name; auto: either",
        _sets("actor_rollout_ref.model.load_method"),
        choices=("local", "huggingface", "auto"),
    ),
    "lr": Flag(
        1e-6,
        "learning rate, also the critic's",
        _sets(f"{ACTOR}.optim.lr", "critic.optim.lr"),
        float,
    ),
    "lr_warmup_steps": Flag(
        -1, "warm-up steps; -1: use the ratio", _sets(f"{ACTOR}.optim.lr_warmup_steps"), int
    ),
    "lr_warmup_steps_ratio": Flag(
        0.0, "warm-up as a share of the run", _sets(f"{ACTOR}.optim.lr_warmup_steps_ratio"), float
    ),
    "min_lr_ratio": Flag(
        0.0, "the cosine ends at lr times this", _sets(f"{ACTOR}.optim.min_lr_ratio"), float
    ),
    "num_cycles": Flag(0.5, "half waves of the cosine", _sets(f"{ACTOR}.optim.num_cycles"), float),
    "warmup_style": Flag(
        "constant",
        "what follows the warm-up",
        _sets(f"{ACTOR}.optim.warmup_style"),
        choices=("constant", "cosine"),
    ),
    "weight_decay": Flag(0.01, "AdamW's", _sets(f"{ACTOR}.optim.weight_decay"), float),
    "ppo_mini_batch_size": Flag(
        256,
        "rows an optimiser step, also the critic's",
        _sets(f"{ACTOR}.ppo_mini_batch_size", "critic.ppo_mini_batch_size"),
        int,
    ),
    "ppo_micro_batch_size_per_gpu": Flag(
        32,
        "rows a forward and backward pass, also the critic's",
        _sets(f"{ACTOR}.ppo_micro_batch_size_per_gpu", "critic.ppo_micro_batch_size_per_gpu"),
        int,
    ),
    "log_prob_micro_batch_size_per_gpu": Flag(
        32,
        "rows a forward pass without gradients",
        _sets(
            f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
        ),
        int,
    ),
    "entropy_coeff": Flag(
        0.001, "EPO's lambda; without EPO an entropy bonus", _entropy_coeff, float
    ),
    "entropy_smooth": Flag(False, "EPO on or off", _sets("epo.enable"), true_or_false),
    "entropy_smooth_mask_mode": Flag("token", "what is penalised: token", _mask_mode, needs=EPO),
    "entropy_smooth_min_ratio": Flag(
        0.5, "corridor's floor, kappa_l", _sets("epo.kappa_l"), float, needs=EPO
    ),
    "entropy_smooth_max_ratio": Flag(
        1.5, "corridor's ceiling, kappa_r", _sets("epo.kappa_r"), float, needs=EPO
    ),
    "entropy_smooth_out_range_penalty": Flag(
        0.1, "weight outside the corridor, alpha", _alpha, float, needs=EPO
    ),
    "entropy_smooth_coeff": Flag(1.0, "multiplies alpha", _alpha, float, needs=EPO),
    "enable_smooth_weights": Flag(
        False,
        "True: beta follows the paper's schedule; False: beta = 1",
        _schedule,
        true_or_false,
        needs=EPO,
    ),
    "adaptive_start_epoch": Flag(
        0, "first step with the penalty", _sets("epo.start_step"), int, needs=EPO
    ),
    "window_size": Flag(
        None, "reference over the last N steps; default: all past steps", _window, int, needs=EPO
    ),
    "entropy_distribution_output_file": Flag(
        None,
        "JSON lines of entropies by step and turn",
        _sets("epo.entropy_distribution_output_file"),
        needs=EPO,
    ),
    "enable_entropy_reward_logging": Flag(
        False, "log the share of tokens above entropy_threshold", _log_entropy, true_or_false
    ),
    "entropy_threshold": Flag(
        1.2, "nats", _no_setting, float, needs="enable_entropy_reward_logging"
    ),
}
FLAG_ALIASES = {"smooth_weights": "enable_smooth_weights"}


def settings_from_flags(given: Values) -> Settings:
    """Hydra keys and values of a command line; `given` holds the flags that were written there.

    Raises:
        UserError: a flag would have no effect, or asks for what is not offered.
    """
    values = {name: flag.default for name, flag in FLAGS.items()} | dict(given)
    settings: Settings = {}
    for name, flag in FLAGS.items():
        idle = flag.needs is not None and not values[flag.needs]
        if idle and name in given:
            raise UserError(
                f"--{name} has no effect without --{flag.needs} True; add it or drop --{name}"
            )
        if not idle and values[name] is not None:
            settings |= flag.to_settings(values[name], values)
    return settings


Translation = Callable[[str], Settings]


def _renamed(key: str) -> Translation:
    return lambda value: {key: value}


def _refused(reason: str) -> Translation:
    def refuse(_: str) -> Settings:
        raise UserError(reason)

    return refuse


_NO_FILES = _refused("there are no data files: tasks come from env.train and env.val; remove it")
_NO_PARQUET = _refused("prompts come from the environment, not from data files; remove it")
_FSDP2 = _refused("workers always use FSDP2, with fsdp_config.*; remove it")
_PER_GPU = _refused("sizes of micro-batches are given per worker; use the key with _per_gpu")
_ENV_REWARD = _refused("the environment gives the reward; see env.reward")

# `<parent>.*` stands for every key below a parent.
LEGACY_KEYS: dict[str, Translation] = {
    f"{ACTOR}.entropy_smooth": _renamed("epo.enable"),
    f"{ACTOR}.entropy_smooth_mask_mode": lambda value: _mask_mode(value.strip("'\""), {}),
    f"{ACTOR}.entropy_smooth_min_ratio": _renamed("epo.kappa_l"),
    f"{ACTOR}.entropy_smooth_max_ratio": _renamed("epo.kappa_r"),
    f"{ACTOR}.entropy_smooth_out_range_penalty": _renamed("epo.alpha"),
    f"{ACTOR}.entropy_smooth_coeff": _refused("multiply epo.alpha by it instead"),
    f"{ACTOR}.enable_smooth_weights": lambda value: _schedule(true_or_false(value), {}),
    f"{ACTOR}.entropy_distribution_output_file": _renamed("epo.entropy_distribution_output_file"),
    f"{ACTOR}.max_steps": _renamed("env.max_steps"),
    f"{ACTOR}.max_step": _renamed("env.max_steps"),
    f"{ACTOR}.strategy": _FSDP2,
    "critic.strategy": _FSDP2,
    f"{ACTOR}.ulysses_sequence_parallel_size": _refused(
        "sequence parallelism is not offered; remove it"
    ),
    f"{ACTOR}.use_torch_compile": _refused("models are not compiled; remove it"),
    f"{ACTOR}.grad_clip": _renamed(f"{ACTOR}.optim.grad_clip"),
    "critic.grad_clip": _renamed("critic.optim.grad_clip"),
    f"{ACTOR}.ppo_micro_batch_size": _PER_GPU,
    "critic.ppo_micro_batch_size": _PER_GPU,
    f"{ROLLOUT}.log_prob_micro_batch_size": _PER_GPU,
    "actor_rollout_ref.ref.log_prob_micro_batch_size": _PER_GPU,
    "actor_rollout_ref.hybrid_engine": _refused("rollout workers are always separate; remove it"),
    f"{ROLLOUT}.n": _renamed("env.rollout.n"),
    f"{ROLLOUT}.prompt_length": _renamed("data.max_prompt_length"),
    f"{ROLLOUT}.response_length": _renamed("data.max_response_length"),
    f"{ROLLOUT}.load_format": _refused("engines get the trainer's weights; remove it"),
    "algorithm.entropy_plugin": _refused(
        "a control brings its own options now; see algorithm.entropy_control.name"
    ),
    "algorithm.gigpo.*": _refused("GiGPO is not offered; use adv_estimator grpo, rloo or gae"),
    "data.train_files": _NO_FILES,
    "data.val_files": _NO_FILES,
    "data.filter_overlong_prompts": _NO_PARQUET,
    "data.truncation": _refused(
        "over-long prompts lose their oldest turns, and are counted; remove it"
    ),
    "data.return_raw_chat": _NO_PARQUET,
    "data.image_key": _refused("environments are text only; remove it"),
    "reward_model.*": _ENV_REWARD,
    "custom_reward_function.*": _ENV_REWARD,
    "env.history_length": _renamed("env.context.history_length"),
    "env.adaptive_start_epoch": _renamed("epo.start_step"),
    "env.entropy_threshold": _renamed("trainer.log_entropy_above"),
    "trainer.window_size": lambda value: _window(int(value), {}),
    "trainer.val_one_time_size": _renamed("data.val_batch_size"),
    "trainer.rl_algorithm": _renamed("algo"),
    "trainer.max_critic_ckpt_to_keep": _refused(
        "actor and critic share a checkpoint; use trainer.max_actor_ckpt_to_keep"
    ),
    "trainer.default_hdfs_dir": _refused("checkpoints go to trainer.default_local_dir; remove it"),
    "ray_init.num_cpus": _renamed("ray_kwargs.ray_init.num_cpus"),
    "ray_init.address": _renamed("ray_kwargs.ray_init.address"),
}
# verl chooses an environment by this name alone; here a preset brings its tasks along.
ENV_PRESETS = {"alfworld/AlfredTWEnv": "alfworld", "sciworld/SciWorldEnv": "sciworld"}


def translate_overrides(overrides: list[str]) -> list[str]:
    """Hydra overrides with every legacy key replaced by what it is called here.

    Raises:
        UserError: a legacy key that means nothing here, with the reason.
    """
    has_preset = any(override.startswith("env=") for override in overrides)
    translated = []
    for override in overrides:
        name, equals, value = override.partition("=")
        key = name.lstrip("+")
        preset = ENV_PRESETS.get(value.strip("'\"")) if key == "env.env_name" else None
        translation = _find_legacy(key)
        if preset and not has_preset:
            translated.append(f"env={preset}")
        elif translation is None or not equals or key.startswith("~"):
            translated.append(override)
        else:
            translated += _apply(translation, key, value)
    return translated


def _find_legacy(key: str) -> Translation | None:
    names = key.split(".")
    parents = [".".join(names[:i]) + ".*" for i in range(1, len(names))]
    return next((LEGACY_KEYS[name] for name in (key, *parents) if name in LEGACY_KEYS), None)


def _apply(translation: Translation, key: str, value: str) -> list[str]:
    try:
        return [f"{new_key}={new_value}" for new_key, new_value in translation(value).items()]
    except (UserError, ValueError) as error:
        raise UserError(f"{key}={value}: {error}") from error
