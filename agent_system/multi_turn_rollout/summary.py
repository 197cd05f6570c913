"""What a rollout was like, in numbers and as a readable record."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from agent_system.types import Trajectory, Turn

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    ("episode/success_rate", "share", "mean", "episodes solved"),
    ("episode/success_rate/<task>", "share", "mean", "the same of one type of task"),
    ("episode/lenient_success_rate", "share", "mean", "as the published code counts it"),
    ("episode/score", "points", "mean", "final score of an episode, 0 to 100"),
    ("episode/reward/mean", "reward", "mean", "sum of the rewards of an episode"),
    ("episode/length/<mean|max|min>", "turns", "-", "of an episode"),
    ("episode/valid_action_ratio", "share", "mean", "turns whose response followed the format"),
    (
        "episode/admissible_ratio",
        "share",
        "mean",
        "turns whose action the environment accepts, where it can tell",
    ),
    ("episode/cut_responses", "share", "mean", "responses cut at the limit of tokens"),
    ("episode/response_tokens", "tokens", "mean", "of a response"),
    (
        "episode/truncated",
        "episodes",
        "sum",
        "ended by a limit of turns or of the engine's seconds",
    ),
    ("episode/overlong", "episodes", "sum", "ended because the next prompt would be too long"),
    ("episode/timed_out", "episodes", "sum", "of these, by the engine's `request_timeout_s`"),
    ("episode/env_error", "episodes", "sum", "lost to a broken environment, counted nowhere else"),
    ("episode/dropped_turns", "turns", "sum", "of the history that a prompt had no room for"),
    (
        "episode/cleaned",
        "observations",
        "sum",
        "with characters that no text may hold, or longer than `env.pool.max_text_chars`",
    ),
    (
        "timing_s/episode/<phase>",
        "s",
        "mean",
        "of an episode that waits: reset, env (a step), generate",
    ),
)


def valid_share(turns: Sequence[Turn]) -> float:
    """Share of turns whose response followed the format; nan without turns."""
    return _mean([turn.action.is_format_valid for turn in turns])


def admissible_share(turns: Sequence[Turn]) -> float:
    """Share of admissible actions among the turns where the environment can tell; nan if none."""
    known = [turn.action.is_admissible for turn in turns if turn.action.is_admissible is not None]
    return _mean(known)


def cut_share(turns: Sequence[Turn]) -> float:
    """Share of responses that were cut at the limit of tokens; nan without turns."""
    return _mean([turn.finish_reason == "length" for turn in turns])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def episode_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """`episode/*` of one rollout, each episode counting once.

    Episodes lost to a broken environment are counted (`episode/env_error`) and left out of
    everything else. `timing_s/episode/*` are mean seconds an episode. A figure that nothing was
    measured for is absent.
    """
    reasons = Counter(trajectory.reason for trajectory in trajectories)
    metrics = {
        f"episode/{reason}": float(reasons[reason])
        for reason in ("truncated", "overlong", "env_error")
    }
    played = [trajectory for trajectory in trajectories if trajectory.reason != "env_error"]
    if not played:
        return metrics
    lengths = [trajectory.num_turns for trajectory in played]
    turns = [turn for trajectory in played for turn in trajectory.turns]
    metrics |= {
        "episode/success_rate": _mean([t.success for t in played]),
        "episode/lenient_success_rate": _mean([t.info["lenient_success"] for t in played]),
        "episode/score": _mean([t.score for t in played]),
        "episode/reward/mean": _mean([t.episode_reward for t in played]),
        "episode/length/mean": _mean(lengths),
        "episode/length/min": float(min(lengths)),
        "episode/length/max": float(max(lengths)),
        "episode/valid_action_ratio": valid_share(turns),
        "episode/admissible_ratio": admissible_share(turns),
        "episode/cut_responses": cut_share(turns),
        "episode/timed_out": float(sum(t.info.get("timed_out", False) for t in played)),
        "episode/cleaned": float(sum(t.info.get("cleaned", 0) for t in played)),
        "episode/dropped_turns": float(sum(turn.dropped_turns for turn in turns)),
        "episode/response_tokens": _mean([len(turn.response_ids) for turn in turns]),
    }
    metrics |= _success_by_task(played) | _mean_timings(played)
    return {name: value for name, value in metrics.items() if not np.isnan(value)}


def _success_by_task(played: Sequence[Trajectory]) -> dict[str, float]:
    by_name: dict[str, list[bool]] = defaultdict(list)
    for trajectory in played:
        by_name[trajectory.episode.task.name].append(trajectory.success)
    return {f"episode/success_rate/{name}": _mean(by_name[name]) for name in sorted(by_name)}


def _mean_timings(played: Sequence[Trajectory]) -> dict[str, float]:
    phases = sorted({phase for trajectory in played for phase in trajectory.timing_s})
    return {
        f"timing_s/episode/{phase}": _mean([t.timing_s.get(phase, 0.0) for t in played])
        for phase in phases
    }


def trajectory_record(trajectory: Trajectory, tokenizer: Any | None = None) -> dict[str, Any]:
    """A JSON-able account of one episode; with a tokenizer also the first prompt as text."""
    episode, turns = trajectory.episode, trajectory.turns
    record = {
        "task": episode.task.name,
        "task_key": episode.task.key,
        "uid": episode.uid,
        "traj_uid": episode.traj_uid,
        "reason": trajectory.reason,
        "timed_out": trajectory.info.get("timed_out", False),
        "success": bool(trajectory.success),
        "score": float(trajectory.score),
        "episode_reward": float(trajectory.episode_reward),
        "prompt_tokens": len(turns[0].prompt_ids) if turns else 0,
        "response_tokens": sum(len(turn.response_ids) for turn in turns),
        "timing_s": {phase: float(seconds) for phase, seconds in trajectory.timing_s.items()},
        "turns": [_turn_record(turn) for turn in turns],
    }
    if tokenizer is not None and turns:
        record["prompt"] = tokenizer.decode(turns[0].prompt_ids.tolist())
    return record


def _turn_record(turn: Turn) -> dict[str, Any]:
    return {
        "turn": turn.index,
        "response": turn.response_text,
        "action": turn.action.text,
        "valid": turn.action.is_format_valid,
        "admissible": turn.action.is_admissible,
        "observation": turn.observation,
        "reward": float(turn.reward),
        "prompt_tokens": len(turn.prompt_ids),
        "response_tokens": len(turn.response_ids),
        "finish_reason": turn.finish_reason,
        "weight_version": turn.weight_version,
        "dropped_turns": turn.dropped_turns,
    }
