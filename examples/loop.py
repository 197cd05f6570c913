"""The whole algorithm in one process, without Ray: GRPO with EPO, to be read from top to bottom.

    python examples/loop.py --steps 20 --seed 0

A small policy gets better at Simon says (simon.py), in two minutes on two CPU cores. Every part is
the trainer's own; `verl.trainer` adds many processes, micro-batches, checkpoints and choices.

Shapes: B rows (here one an episode), T response tokens, observations in between included.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from simon import PACKAGE
from torch.optim import AdamW
from transformers import PreTrainedModel

from agent_system.adapters.rows import to_data_proto
from agent_system.config import ActionFormatConfig, EnvConfig, PoolConfig, TaskSetConfig
from agent_system.environments.pool import EnvPool
from agent_system.environments.tasks import TaskSampler
from agent_system.multi_turn_rollout import TrajectoryCollector
from agent_system.types import Episode, SamplingParams, Task, Trajectory
from epo import EPOConfig, EPORegularizer, build
from verl.algorithms.advantages import grpo_advantage
from verl.algorithms.aggregation import agg_loss, trajectory_token_weights
from verl.algorithms.entropy_control import RolloutEntropies, StepContext
from verl.algorithms.policy_losses import ClipRange, ppo_clip_loss
from verl.config.model import ModelConfig
from verl.protocol import DataProto
from verl.trainer.ppo.statistics import success_interval
from verl.utils.logging import setup_logging
from verl.workers.chat_template import ChatTemplate
from verl.workers.forward import forward_inputs, policy_forward
from verl.workers.model_loading import load_causal_lm, load_tokenizer
from verl.workers.rollout.base import RolloutEngine
from verl.workers.rollout.hf_rollout import HFRollout
from verl.workers.rollout.row_cache import ROW_ATTENTION
from verl.workers.weight_sync import WeightUpdate, pack_weights

logger = logging.getLogger("loop")

MODEL = ModelConfig(path=str(Path(__file__).parent / "textworld_express" / "model"))
TASKS, GROUP_SIZE = 12, 8  # of one step: games, and episodes of each
MINI_BATCHES = 4  # optimiser steps on one rollout
LEARNING_RATE = 5e-4
TEMPERATURE = 1.5  # the policy is sure of itself at 1, and would try little
PROMPT_TOKENS, RESPONSE_TOKENS = 128, 8  # at most, of a turn
ENV = EnvConfig(
    max_steps=5,
    action_format=ActionFormatConfig(kind="plain"),  # a response is a command and nothing else
    pool=PoolConfig(slots_per_worker=16),
)
EPO = EPOConfig(enable=True, kappa_l=0.5, kappa_r=1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    setup_logging()
    learn(arguments.steps, arguments.seed)


def learn(steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    tokenizer, model = load_tokenizer(MODEL), load_causal_lm(MODEL, torch.float32)
    optimizer = AdamW(model.parameters(), lr=LEARNING_RATE)
    epo = build(EPO)
    simon = PACKAGE.bind({})
    tasks = TaskSampler(simon.tasks(TaskSetConfig("train")), seed)
    held_out = simon.tasks(TaskSetConfig("test:16"))

    # The engine samples from a copy of its own, as it does where it is another process.
    copy = load_causal_lm(replace(MODEL, attn_implementation=ROW_ATTENTION), torch.float32)
    room = PROMPT_TOKENS + RESPONSE_TOKENS
    engine = HFRollout(copy, tokenizer, max_num_seqs=ENV.pool.slots_per_worker, max_model_len=room)
    pool = EnvPool(simon, ENV.pool)
    prompts = simon.prompts(ENV.action_format)
    collector = TrajectoryCollector(pool, prompts, ChatTemplate(tokenizer), ENV, PROMPT_TOKENS)

    with closing(pool), closing(engine):
        engine.start()
        before = play(collector, engine, held_out, "before", seed)
        for step in range(steps):
            rollout = play(collector, engine, tasks.next(TASKS), f"step {step}", seed)
            batch = to_data_proto(
                rollout, pad_token_id=tokenizer.pad_token_id, context_kind="trajectory"
            )
            score(model, batch)
            add_advantages(batch)
            # EPO's corridor lies around the entropies of the steps before this one.
            context = StepContext(step, steps, epo.hook.context_state(step, steps))
            loss = update(model, optimizer, epo.regularizer, batch, context)
            metrics = epo.hook.after_step(step, entropies(batch))
            engine.load_weights(WeightUpdate(step + 1, pack_weights(model.state_dict())))
            logger.info(
                "step %d: success %.2f, entropy %.3f, loss %.4f",
                *(step, success_rate(rollout), metrics["epo/entropy_step"], loss),
            )
        after = play(collector, engine, held_out, "after", seed)
    logger.info("held-out success: %s -> %s", with_interval(before), with_interval(after))


def play(
    collector: TrajectoryCollector, engine: RolloutEngine, tasks: list[Task], name: str, seed: int
) -> list[Trajectory]:
    """A group of episodes of every task, all at once and each at its own pace."""
    episodes = [
        Episode(task, uid=f"{name}/{index}", traj_uid=f"{name}/{index}/{member}")
        for index, task in enumerate(tasks)
        for member in range(GROUP_SIZE)
    ]
    sampling = SamplingParams(TEMPERATURE, max_tokens=RESPONSE_TOKENS)
    return asyncio.run(collector.collect_all(engine, episodes, sampling, seed))


@torch.no_grad()
def score(model: PreTrainedModel, batch: DataProto) -> None:
    """Adds `old_log_probs` and `entropys` (B, T), of one forward with the weights that played."""
    statistics = policy_forward(model, forward_inputs(batch.batch, packed=False), TEMPERATURE)
    batch.batch["old_log_probs"], batch.batch["entropys"] = statistics


def add_advantages(batch: DataProto) -> None:
    """Adds `advantages` (B, T): what an episode earned, compared with the others of its group."""
    reward_B = batch.batch["token_level_scores"].sum(dim=-1)
    advantage_B = grpo_advantage(
        reward_B, batch.non_tensor_batch["uid"], batch.non_tensor_batch["traj_uid"]
    )
    batch.batch["advantages"] = advantage_B[:, None] * batch.batch["response_mask"]


def update(
    model: PreTrainedModel,
    optimizer: AdamW,
    regularizer: EPORegularizer,
    batch: DataProto,
    context: StepContext,
) -> float:
    """An optimiser step on each mini-batch. Returns the mean of their losses."""
    losses = []
    for rows in torch.randperm(len(batch)).chunk(MINI_BATCHES):
        loss = loss_of(model, regularizer, batch.select_idxs(rows), context)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def loss_of(
    model: PreTrainedModel, regularizer: EPORegularizer, batch: DataProto, context: StepContext
) -> torch.Tensor:
    """PPO's clipped surrogate - lambda * (L_H - beta * L_smooth)."""
    columns, mask_BT = batch.batch, batch.batch["response_mask"]
    inputs = forward_inputs(columns, packed=False)
    log_prob_BT, entropy_BT = policy_forward(model, inputs, TEMPERATURE)
    surrogate = ppo_clip_loss(
        columns["old_log_probs"], log_prob_BT, columns["advantages"], clip=ClipRange(0.2, 0.2)
    )
    turn_BT = columns["turn_ids"]
    weight_BT = trajectory_token_weights(batch.non_tensor_batch["traj_uid"], turn_BT, mask_BT)
    about_tokens = {"trajectory_weight": weight_BT, "turn_ids": turn_BT}
    epo_term, _ = regularizer(entropy_BT, mask_BT, about_tokens, context)
    return agg_loss(surrogate.loss_BT, mask_BT, "token-mean") + epo_term


def entropies(batch: DataProto) -> RolloutEntropies:
    """What EPO keeps of a rollout: the entropies by the weights that played."""
    columns = batch.batch
    return RolloutEntropies(
        columns["entropys"],
        columns["response_mask"],
        columns["turn_ids"],
        batch.non_tensor_batch["traj_uid"],
    )


def success_rate(trajectories: list[Trajectory]) -> float:
    return sum(trajectory.success for trajectory in trajectories) / len(trajectories)


def with_interval(trajectories: list[Trajectory]) -> str:
    """The rate and its 95% interval, in which the episodes of one game count as far as they
    differ."""
    interval = success_interval((t.episode.uid, t.success) for t in trajectories)
    return f"{success_rate(trajectories):.2f} [{interval.low:.2f}, {interval.high:.2f}]"


if __name__ == "__main__":
    main()
