"""One episode, from reset to its end."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agent_system.interfaces import AsyncEnv, Chat, Generation, Policy, PromptBuilder
from agent_system.multi_turn_rollout.conversation import TOKEN_DTYPE, Prompt, PromptContext
from agent_system.multi_turn_rollout.progress import ProgressWatch
from agent_system.rewards import EpisodeRewardManager
from agent_system.types import (
    Episode,
    Observation,
    ParsedAction,
    SamplingParams,
    StepResult,
    TerminationReason,
    Trajectory,
    Turn,
)

logger = logging.getLogger(__name__)


def request_seed(seed: int, episode: Episode, turn: int) -> int:
    """The sampling seed of one turn, 63 bits.

    It depends on what is asked, never on when or where it runs: the same for one slot or many, one
    rollout worker or many. Members of a group differ by their `traj_uid`.
    """
    name = f"{seed}|{episode.task.key}|{episode.traj_uid}|{turn}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class _Run:
    """An episode being played."""

    episode: Episode
    policy: Policy
    sampling: SamplingParams
    seed: int
    watch: ProgressWatch
    turns: list[Turn] = field(default_factory=list)
    timing_s: dict[str, float] = field(default_factory=dict)

    async def generate(self, prompt: Prompt) -> Generation:
        """The next response, sampled with a seed of its own.

        Raises TimeoutError when the policy does not answer in time.
        """
        seed = request_seed(self.seed, self.episode, len(self.turns))
        sampling = replace(self.sampling, seed=seed)
        with self.watch.waiting_for("generate", self.timing_s):
            generation = await self.policy.generate(
                prompt.ids.tolist(), sampling, trajectory_id=self.episode.traj_uid
            )
        tokens, log_probs = len(generation.token_ids), len(generation.log_probs)
        if tokens == 0 or tokens != log_probs:
            raise RuntimeError(
                f"the engine returned {tokens} tokens and {log_probs} log-probs for "
                f"{self.episode.traj_uid}; every sampled token needs one, and a response a token"
            )
        return generation

    def finish(
        self, reason: TerminationReason, info: Mapping[str, Any], cleaned: int, timed_out: bool
    ) -> Trajectory:
        """`info`: what the environment said last. `cleaned`: observations that were."""
        success = bool(info["success"])
        return Trajectory(
            episode=self.episode,
            turns=self.turns,
            reason=reason,
            success=success,
            score=float(info["score"]),
            episode_reward=sum(turn.reward for turn in self.turns),
            info={
                "lenient_success": bool(info.get("lenient_success", success)),
                "cleaned": cleaned,
                "timed_out": timed_out,
            },
            timing_s=self.timing_s,
        )


@dataclass(frozen=True)
class EpisodePlayer:
    """Plays episodes of one environment under one set of rules. Holds no state of an episode."""

    chat: Chat
    context: PromptContext
    prompts: PromptBuilder
    rewards: EpisodeRewardManager
    max_steps: int

    async def play(
        self,
        episode: Episode,
        env: AsyncEnv,
        policy: Policy,
        sampling: SamplingParams,
        seed: int,
        watch: ProgressWatch,
    ) -> Trajectory:
        """Play `episode` in `env` until it ends. `seed` is that of the whole rollout.

        Raises:
            EnvWorkerError: the environment died or hung; nothing of the episode is to be used.
        """
        sampling = replace(sampling, in_reasoning=self.chat.opens_reasoning)
        run = _Run(episode, policy, sampling, seed, watch)
        try:
            with watch.waiting_for("reset", run.timing_s):
                observation, info = await env.reset(episode.task)
            task_text = info["task_text"]
            reason, last_info, timed_out = None, info, False
            cleaned = int(observation.cleaned)
            while reason is None:
                prompt = self.context.prompt(task_text, run.turns, observation)
                if prompt is None:
                    reason = "overlong"
                    break
                try:
                    generation = await run.generate(prompt)
                except TimeoutError as error:
                    logger.warning("episode %s is cut short: %s", episode.traj_uid, error)
                    reason, timed_out = "truncated", True
                    break
                result = await self._act(run, env, prompt, observation, generation)
                observation, last_info = result.observation, result.info
                cleaned += observation.cleaned
                reason = self._end(result, len(run.turns))
        finally:
            policy.release(episode.traj_uid)
        return run.finish(reason, last_info, cleaned, timed_out)

    async def _act(
        self,
        run: _Run,
        env: AsyncEnv,
        prompt: Prompt,
        observation: Observation,
        generation: Generation,
    ) -> StepResult:
        """Do what the policy says, and append the turn to `run`."""
        response_ids = np.asarray(generation.token_ids, TOKEN_DTYPE)
        response = self.chat.decode(response_ids)
        action = self._parse(response, observation)
        with run.watch.waiting_for("env", run.timing_s):
            result = await env.step(action.text)
        run.turns.append(
            Turn(
                index=len(run.turns),
                prompt_ids=prompt.ids,
                response_ids=response_ids,
                log_probs=np.asarray(generation.log_probs, np.float32),
                response_text=response,
                action=action,
                observation=result.observation.text,
                reward=self.rewards.turn_reward(result),
                finish_reason=generation.finish_reason,
                weight_version=generation.weight_version,
                dropped_turns=prompt.dropped_turns,
                opens_row=prompt.opens_row,
            )
        )
        return result

    def _parse(self, response: str, observation: Observation) -> ParsedAction:
        """A command that spells a marker of the chat template is none."""
        action = self.prompts.parse(response, observation)
        if not self.chat.has_markers(action.text):
            return action
        is_admissible = None if action.is_admissible is None else False
        return ParsedAction("", is_format_valid=False, is_admissible=is_admissible)

    def _end(self, result: StepResult, turns_played: int) -> TerminationReason | None:
        """Why the episode is over after this turn, or None."""
        if result.info["success"]:
            return "success"
        if result.terminated:
            return "failure"
        if result.truncated or turns_played == self.max_steps:
            return "truncated"
        return None
