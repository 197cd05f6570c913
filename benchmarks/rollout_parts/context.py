"""`context`: one growing conversation against a fresh prompt a turn, on the same episodes.

`trajectory` trains one row an episode and prefills only what is new; `turn` trains a row for every
turn, each with its own prompt. The actions are those of a script, so the episodes are the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from agent_system.adapters.rows import to_data_proto
from agent_system.types import Trajectory
from rollout_parts.replay import Games, open_games, sampling, sciworld_overrides
from rollout_parts.report import Cell, show
from rollout_parts.session import (
    Session,
    add_engine_arguments,
    make_config,
    open_model,
    open_session,
)
from rollout_parts.trainer import LocalTrainer
from verl.config.root import PPOConfig
from verl.protocol import DataProto
from verl.workers.model_loading import load_tokenizer

# Types whose solutions take 20 actions and more.
TYPES = ("boil", "melt", "chemistry-mix", "test-conductivity", "freeze", "identify-life-stages-1")
KINDS = ("turn", "trajectory")
TOKENS_AT_ONCE = 4096  # of a training micro-batch, and of a prompt and its response


@dataclass(frozen=True)
class Cost:
    """What one context took: tokens, rows and seconds of the same episodes."""

    turns: int
    prompt_tokens: int
    prefilled: float
    generated: float
    rows: int
    trained_tokens: int
    rollout_s: float
    log_prob_s: float
    update_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser, seqs=8, layers=10)
    parser.add_argument("--episodes", type=int, default=2, choices=range(1, len(TYPES) + 1))
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--history", type=int, default=5, help="turns shown in the turn context")
    parser.add_argument("--response-tokens", type=int, default=16)


def run(options: argparse.Namespace) -> None:
    types = TYPES[: options.episodes]
    overrides = sciworld_overrides("turn", types, options.turns, options.response_tokens)
    overrides += [
        f"env.context.history_length={options.history}",
        f"data.max_prompt_length={TOKENS_AT_ONCE - options.response_tokens}",
        f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={TOKENS_AT_ONCE}",
        f"actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu={TOKENS_AT_ONCE}",
        "actor_rollout_ref.actor.use_kl_loss=false",  # one model is enough to compare
    ]
    with open_model(options) as model:
        config = make_config(options, model, overrides)
        with open_session(config) as session, open_games(config) as games:
            session.run(games.warm_up())
            costs = [measure(session, games, with_context(config, kind)) for kind in KINDS]
    report(*costs)


def with_context(config: PPOConfig, kind: str) -> PPOConfig:
    return replace(config, env=replace(config.env, context=replace(config.env.context, kind=kind)))


def measure(session: Session, games: Games, config: PPOConfig) -> Cost:
    """One rollout, one pass for the old log-probs, one update."""
    session.forget()
    before = session.engine.stats()
    started = time.perf_counter()
    trajectories = session.run(
        games.collector(config).collect_all(session.engine, games.episodes, sampling(config), 0)
    )
    rollout_s = time.perf_counter() - started
    after = session.engine.stats()
    batch = make_batch(trajectories, config)
    trainer = LocalTrainer(config)
    started = time.perf_counter()
    batch = trainer.log_probs(batch)
    log_prob_s = time.perf_counter() - started
    started = time.perf_counter()
    trainer.update(batch)
    return Cost(
        turns=sum(trajectory.num_turns for trajectory in trajectories),
        prompt_tokens=sum(len(turn.prompt_ids) for t in trajectories for turn in t.turns),
        prefilled=after["prefilled_tokens"] - before["prefilled_tokens"],
        generated=after["generated_tokens"] - before["generated_tokens"],
        rows=len(batch),
        trained_tokens=int(batch.batch["attention_mask"].sum()),
        rollout_s=rollout_s,
        log_prob_s=log_prob_s,
        update_s=time.perf_counter() - started,
    )


def make_batch(trajectories: Sequence[Trajectory], config: PPOConfig) -> DataProto:
    """Rows with an advantage of 1 for every sampled token: only the time of the update counts."""
    tokenizer = load_tokenizer(config.actor_rollout_ref.model)
    batch = to_data_proto(
        trajectories,
        pad_token_id=tokenizer.pad_token_id,
        context_kind=config.env.context.kind,
    )
    batch.batch["advantages"] = batch.batch["response_mask"].to(torch.float32)
    return batch


def report(turn: Cost, trajectory: Cost) -> None:
    columns = (
        ("prompt tokens", "prompt_tokens"),
        ("of them prefilled", "prefilled"),
        ("tokens sampled", "generated"),
        ("training rows", "rows"),
        ("tokens trained", "trained_tokens"),
        ("rollout, s", "rollout_s"),
        ("old log-probs, s", "log_prob_s"),
        ("update, s", "update_s"),
    )
    rows: list[list[Cell]] = []
    for title, name in columns:
        a, b = getattr(turn, name), getattr(trajectory, name)
        rows.append([title, a, b, f"{a / b:.2f}"])
    fewer = turn.trained_tokens / trajectory.trained_tokens
    show(
        ["", "`turn`", "`trajectory`", "ratio"],
        rows,
        [
            f"{trajectory.turns} turns. Goal: at least 5 times fewer tokens trained; here "
            f"{fewer:.2f}."
        ],
    )
