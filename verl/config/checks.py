"""What is checked once, before anything starts: every refusal names the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from verl.algorithms.advantages import find_estimator
from verl.algorithms.estimators import INPUTS, compares_episodes, needed_inputs
from verl.algorithms.policy_losses import find_policy_loss, own_reduction
from verl.config.algorithm import AlgorithmConfig
from verl.config.entropy_control import check_entropy_control
from verl.config.fields import check_fields
from verl.config.optim import check_optim
from verl.config.root import PPOConfig
from verl.utils.errors import UserError
from verl.utils.tracking import tracker_class

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"

# Cutting by tokens -> the tokens of a forward pass.
TOKEN_LIMITS = {
    f"{ACTOR}.use_dynamic_bsz": f"{ACTOR}.ppo_max_token_len_per_gpu",
    "critic.use_dynamic_bsz": "critic.ppo_max_token_len_per_gpu",
    f"{ROLLOUT}.log_prob_use_dynamic_bsz": f"{ROLLOUT}.log_prob_max_token_len_per_gpu",
    "actor_rollout_ref.ref.log_prob_use_dynamic_bsz": (
        "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu"
    ),
}


def check_values(config: PPOConfig) -> None:
    """Refuse what can run on no machine: names, ranges, and keys that disagree.

    Raises:
        UserError: the first problem found.
    """
    check_fields(config)
    for key in (f"{ACTOR}.optim", "critic.optim"):
        check_optim(key, attrgetter(key)(config))
    for problem in _disagreements(config):
        raise UserError(problem)
    check_entropy_control(config)


def _disagreements(config: PPOConfig) -> Iterator[str]:
    yield from _batch_problems(config)
    yield from _length_problems(config)
    yield from _algorithm_problems(config)
    yield from _run_problems(config)


def _batch_problems(config: PPOConfig) -> Iterator[str]:
    """In the trajectory context an episode is one row, so the number of rows is known."""
    tasks, group = config.data.train_batch_size, config.env.rollout.n
    for key in (ACTOR, "critic") if config.algorithm.needs_critic else (ACTOR,):
        rows = attrgetter(key)(config).ppo_mini_batch_size
        if config.env.context.kind == "trajectory" and rows > tasks * group:
            yield (
                f"{key}.ppo_mini_batch_size={rows} is more than the {tasks * group} rows of a step "
                f"(data.train_batch_size={tasks} x env.rollout.n={group}); lower it to "
                f"{tasks * group} or raise one of the two"
            )


def _length_problems(config: PPOConfig) -> Iterator[str]:
    """A row is never cut, so the longest one has to fit wherever there is a limit of tokens."""
    longest = config.data.max_prompt_length + config.data.max_response_length
    limit = config.actor_rollout_ref.rollout.max_model_len
    if limit is not None and limit < longest:
        yield (
            f"{ROLLOUT}.max_model_len={limit} is shorter than data.max_prompt_length + "
            f"data.max_response_length = {longest}; raise it to {longest} or leave it unset"
        )
    for switch, key in TOKEN_LIMITS.items():
        tokens = attrgetter(key)(config)
        if attrgetter(switch)(config) and tokens < longest:
            yield (
                f"{switch}=true, but {key}={tokens} is less than the longest row, "
                f"data.max_prompt_length + data.max_response_length = {longest}; raise it to "
                f"{longest} or more"
            )


def _algorithm_problems(config: PPOConfig) -> Iterator[str]:
    name, actor = config.algorithm.adv_estimator, config.actor_rollout_ref.actor
    estimate = find_estimator(name)
    if missing := needed_inputs(estimate) - set(INPUTS):
        yield (
            f"algorithm.adv_estimator={name} needs {', '.join(sorted(missing))}, which rollouts do "
            "not produce; use grpo, rloo or gae"
        )
    if compares_episodes(estimate) and config.env.rollout.n < 2:
        yield (
            f"algorithm.adv_estimator={name} compares the episodes of one task, but env.rollout.n="
            f"{config.env.rollout.n}; set env.rollout.n to at least 2 or use algo=ppo"
        )
    mode, asked = actor.policy_loss.loss_mode, actor.loss_agg_mode
    reduction = own_reduction(find_policy_loss(mode))
    if reduction is not None and asked not in (None, reduction):
        yield (
            f"{ACTOR}.loss_agg_mode={asked} has no effect with policy_loss.loss_mode={mode}, which "
            f"is defined with {reduction}; leave it unset"
        )
    yield from _correction_problems(config.algorithm)


def _correction_problems(algorithm: AlgorithmConfig) -> Iterator[str]:
    """A token on which engine and trainer agree has ratio 1, and has to keep its weight."""
    highest, lowest = algorithm.rollout_correction_max, algorithm.rollout_correction_min
    mode = algorithm.rollout_correction
    if mode != "none" and highest < 1:
        yield (
            f"algorithm.rollout_correction_max={highest} would cut tokens on which engine and "
            "trainer agree (their ratio is 1); use at least 1"
        )
    if mode == "token_mask" and lowest > 1:
        yield (
            f"algorithm.rollout_correction_min={lowest} would mask tokens on which engine and "
            "trainer agree (their ratio is 1); use at most 1"
        )


def _run_problems(config: PPOConfig) -> Iterator[str]:
    run = config.trainer
    for name in run.logger:
        tracker_class(name)
    steps = run.total_training_steps or run.total_epochs
    if run.critic_warmup and not config.algorithm.needs_critic:
        yield (
            f"trainer.critic_warmup={run.critic_warmup} needs a critic, which only "
            "algorithm.adv_estimator=gae has; set it to 0 or use algo=ppo"
        )
    if run.critic_warmup >= steps:
        yield (
            f"trainer.critic_warmup={run.critic_warmup} leaves the actor no step out of {steps}; "
            "lower it or raise trainer.total_epochs"
        )
    if run.resume_mode == "resume_path" and run.resume_from_path is None:
        yield "trainer.resume_mode=resume_path needs trainer.resume_from_path=<checkpoint folder>"
    for key in ("test_freq", "save_freq"):
        if getattr(run, key) == 0:
            yield f"trainer.{key}=0 makes no sense; use -1 for never or a number of steps"
    if run.nnodes > 1 and config.ray_kwargs.ray_init.address is None:
        yield (
            f"trainer.nnodes={run.nnodes} needs a Ray cluster of so many machines; start Ray on "
            "each (ray start) and add ray_kwargs.ray_init.address=auto, or set trainer.nnodes=1"
        )
    if not run.validation.modes:
        yield (
            "trainer.validation.modes=[] leaves nothing to measure; name sampled, greedy or both, "
            "or turn trainer.val_before_train and trainer.val_after_train off"
        )
    validates = run.val_before_train or run.val_after_train or run.val_only or run.test_freq > 0
    if validates and not config.env.val:
        yield (
            "there is no validation set in env.val; add env.val.<name>.name=<task list> or turn "
            "trainer.val_before_train and trainer.val_after_train off"
        )
