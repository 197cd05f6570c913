"""`lockstep`: the published code's rollout against this one, on the same engine and episodes.

The baseline plays as the published code does: all episodes advance together, turn by turn, and
environments step when all responses are there; finished episodes go on generating until the last
one is over; after each turn an extra forward pass over every prompt and response computes the
entropy, which training computes once more. Prompts, seeds and so the episodes are the same.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from agent_system.adapters.rows import to_data_proto
from agent_system.adapters.setup import build_prompts
from agent_system.interfaces import AsyncEnv, Policy, PromptBuilder
from agent_system.multi_turn_rollout.conversation import PromptContext, make_context
from agent_system.multi_turn_rollout.episode import request_seed
from agent_system.types import Episode, Observation, SamplingParams, Trajectory, Turn
from rollout_parts.replay import Games, ReplayPool, open_games, sampling, sciworld_overrides
from rollout_parts.report import Cell, share, show
from rollout_parts.session import (
    EngineMeter,
    Session,
    add_engine_arguments,
    make_config,
    open_model,
    open_session,
)
from rollout_parts.trainer import LocalTrainer
from verl.config.root import PPOConfig
from verl.workers.chat_template import ChatTemplate
from verl.workers.model_loading import load_chat_template

# The 16 types whose first training task has the shortest solutions: 5 to 26 actions.
TYPES = (
    "find-non-living-thing", "lifespan-longest-lived", "lifespan-shortest-lived",
    "lifespan-longest-lived-then-shortest-lived", "find-animal", "find-living-thing", "find-plant",
    "power-component", "chemistry-mix-paint-secondary-color", "identify-life-stages-2",
    "chemistry-mix-paint-tertiary-color", "chemistry-mix", "measure-melting-point-known-substance",
    "test-conductivity", "test-conductivity-of-unknown-substances", "freeze",
)  # fmt: skip
PADDING = 0  # masked

EntropyPass = Callable[[Sequence[Trajectory]], None]


@dataclass
class Game:
    """One episode of the lock-step loop."""

    episode: Episode
    env: AsyncEnv
    task_text: str
    observation: Observation
    prompt_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    turns: list[Turn] = field(default_factory=list)
    over: bool = False


@dataclass
class LockStep:
    """The baseline. `entropy_pass` is called after each turn with a row of every episode."""

    pool: ReplayPool
    chat: ChatTemplate
    context: PromptContext
    prompts: PromptBuilder
    entropy_pass: EntropyPass
    forward_s: float = 0.0
    wasted_tokens: int = 0

    async def play(
        self, policy: Policy, episodes: Sequence[Episode], settings: SamplingParams, seed: int
    ) -> list[list[Turn]]:
        """The turns of each episode."""
        async with AsyncExitStack() as slots:
            games = await asyncio.gather(*(self._start(slots, e) for e in episodes))
            while not all(game.over for game in games):
                turns = await asyncio.gather(
                    *(self._generate(policy, game, settings, seed) for game in games)
                )
                self._entropy(games, turns)
                await asyncio.gather(*map(self._step, games, turns))
            for game in games:
                policy.release(game.episode.traj_uid)
            return [game.turns for game in games]

    async def _start(self, slots: AsyncExitStack, episode: Episode) -> Game:
        env = await slots.enter_async_context(self.pool.acquire())
        observation, info = await env.reset(episode.task)
        return Game(episode, env, info["task_text"], observation)

    async def _generate(
        self, policy: Policy, game: Game, settings: SamplingParams, seed: int
    ) -> Turn:
        """A finished episode generates from its last prompt."""
        if not game.over:
            prompt = self.context.prompt(game.task_text, game.turns, game.observation)
            assert prompt is not None, "the benchmark's prompts fit"
            game.prompt_ids = prompt.ids
        index = len(game.turns)
        generation = await policy.generate(
            game.prompt_ids.tolist(),
            replace(settings, seed=request_seed(seed, game.episode, index)),
            trajectory_id=game.episode.traj_uid,
        )
        if game.over:
            self.wasted_tokens += len(generation.token_ids)
        ids = np.asarray(generation.token_ids, np.int32)
        text = self.chat.decode(ids)
        action = self.prompts.parse(text, game.observation)
        log_probs = np.asarray(generation.log_probs, np.float32)
        return Turn(index, game.prompt_ids, ids, log_probs, text, action, "", 0.0)

    def _entropy(self, games: Sequence[Game], turns: Sequence[Turn]) -> None:
        started = time.perf_counter()
        info = {"lenient_success": False}
        self.entropy_pass(
            [
                Trajectory(game.episode, [turn], "truncated", False, 0.0, 0.0, info)
                for game, turn in zip(games, turns, strict=True)
            ]
        )
        self.forward_s += time.perf_counter() - started

    async def _step(self, game: Game, turn: Turn) -> None:
        if game.over:
            return
        result = await game.env.step(turn.action.text)
        turn.observation, game.observation = result.observation.text, result.observation
        game.turns.append(turn)
        game.over = result.terminated or result.truncated


@dataclass(frozen=True)
class Played:
    """One way's rollout. `idle_s`: the engine had no request."""

    seconds: float
    idle_s: float
    generated: float
    prefilled: float
    turns: list[list[Turn]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser, seqs=16, layers=0)
    parser.add_argument("--episodes", type=int, default=16, choices=range(2, len(TYPES) + 1),
                        metavar="N", help="spread over the lengths")  # fmt: skip
    parser.add_argument("--context", default="turn", choices=["turn", "trajectory"])
    parser.add_argument("--history", type=int, default=2, help="turns shown in the turn context")
    parser.add_argument("--response-tokens", type=int, default=16)


def run(options: argparse.Namespace) -> None:
    spread = np.linspace(0, len(TYPES) - 1, options.episodes).round().astype(int)
    types = [TYPES[i] for i in spread]
    overrides = sciworld_overrides(options.context, types, 26, options.response_tokens)
    overrides += [f"env.context.history_length={options.history}", "data.max_prompt_length=4096"]
    with open_model(options) as model:
        compare(make_config(options, model, overrides))


def compare(config: PPOConfig) -> None:
    """This project's rollout first, then the baseline's."""
    with open_session(config) as session, open_games(config) as games:
        session.run(games.warm_up())
        ours = play(session, lambda policy: play_ours(policy, games, config))
        baseline = make_baseline(games, config, LocalTrainer(config))
        theirs = play(
            session, lambda policy: baseline.play(policy, games.episodes, sampling(config), 0)
        )
    report(theirs, ours, baseline)


async def play_ours(policy: Policy, games: Games, config: PPOConfig) -> list[list[Turn]]:
    collector = games.collector(config)
    played = await collector.collect_all(policy, games.episodes, sampling(config), 0)
    return [trajectory.turns for trajectory in played]


def make_baseline(games: Games, config: PPOConfig, trainer: LocalTrainer) -> LockStep:
    chat, prompts = load_chat_template(config.actor_rollout_ref.model), build_prompts(config)
    context = make_context(config.env.context, chat, prompts, config.data.max_prompt_length)

    def entropy_pass(rows: Sequence[Trajectory]) -> None:
        trainer.log_probs(to_data_proto(rows, pad_token_id=PADDING, context_kind="turn"))

    return LockStep(games.pool, chat, context, prompts, entropy_pass)


def play(session: Session, rollout: Callable) -> Played:
    """Time `rollout(policy)` with empty caches."""
    session.forget()
    before, meter = session.engine.stats(), EngineMeter(session.engine)
    started = time.perf_counter()
    turns = session.run(rollout(meter))
    seconds = time.perf_counter() - started
    after = session.engine.stats()
    return Played(
        seconds,
        seconds - meter.busy_s,
        after["generated_tokens"] - before["generated_tokens"],
        after["prefilled_tokens"] - before["prefilled_tokens"],
        turns,
    )


def report(theirs: Played, ours: Played, baseline: LockStep) -> None:
    without = theirs.seconds - baseline.forward_s
    rows: list[list[Cell]] = [
        ["wall time, s", theirs.seconds, ours.seconds],
        ["of it the extra forward passes, s", baseline.forward_s, 0.0],
        ["engine without a request", share(theirs.idle_s, theirs.seconds),
         share(ours.idle_s, ours.seconds)],
        ["turns played", *(sum(map(len, played.turns)) for played in (theirs, ours))],
        ["tokens sampled", int(theirs.generated), int(ours.generated)],
        ["of them for finished episodes", baseline.wasted_tokens, 0],
        ["prompt tokens prefilled", int(theirs.prefilled), int(ours.prefilled)],
        ["**times as long**", f"**{theirs.seconds / ours.seconds:.2f}**", "1"],
        ["times as long, without the extra passes", f"{without / ours.seconds:.2f}", "1"],
    ]  # fmt: skip
    lengths = sorted(map(len, ours.turns))
    show(
        ["", "lock step", "this project"],
        rows,
        [
            f"{len(lengths)} episodes of {', '.join(map(str, lengths))} turns; "
            f"{equal_turns(theirs.turns, ours.turns)} of {sum(lengths)} turns have the same "
            "sampled tokens in both. Goal: at least 3 times as long."
        ],
    )


def equal_turns(first: Sequence[Sequence[Turn]], second: Sequence[Sequence[Turn]]) -> int:
    """Turns with equal prompt and response in both."""
    pairs = [pair for a, b in zip(first, second, strict=True) for pair in zip(a, b, strict=True)]
    return sum(
        np.array_equal(a.prompt_ids, b.prompt_ids)
        and np.array_equal(a.response_ids, b.response_ids)
        for a, b in pairs
    )
