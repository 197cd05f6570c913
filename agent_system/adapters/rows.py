"""Trajectories -> training rows.

Shapes: R rows, P prompt width (left-padded), T response width (right-padded).

A row is one turn (context `turn`) or one segment of a trajectory (context `trajectory`): all of it
unless the conversation outgrew the prompt budget and was opened anew without its oldest turns.
Either way a row is the prompt of its last turn plus that turn's response; what lies between the
sampled responses (observations) has mask 0, what lies before the row's first one is prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from agent_system.multi_turn_rollout.conversation import segments
from agent_system.multi_turn_rollout.summary import episode_metrics, trajectory_record
from agent_system.types import Trajectory, Turn
from verl.protocol import DataProto

__all__ = ["episode_metrics", "to_data_proto", "trajectory_record"]


@dataclass(frozen=True)
class _Row:
    """Turns that are trained on together, and all their tokens: the prompt and what follows."""

    trajectory: Trajectory
    turns: Sequence[Turn]
    tokens: np.ndarray

    @property
    def prompt_length(self) -> int:
        return len(self.turns[0].prompt_ids)

    def span(self, turn: Turn) -> slice:
        """Where the sampled tokens of `turn` lie in the row's response."""
        start = len(turn.prompt_ids) - self.prompt_length
        return slice(start, start + len(turn.response_ids))


def to_data_proto(
    trajectories: Iterable[Trajectory], *, pad_token_id: int, context_kind: str
) -> DataProto:
    """The training batch of one rollout: the columns that `rows` makes in `verl.protocol.columns`.

    Trajectories without turns give no row; the rows of one trajectory share its `traj_uid` and are
    in order.

    Raises:
        ValueError: no rows; or a turn that dropped no history has a prompt that does not continue
            the row's (the engine saw other tokens than training would).
    """
    rows = [
        _make_row(trajectory, turns)
        for trajectory in trajectories
        for turns in _cut(trajectory.turns, context_kind)
    ]
    if not rows:
        raise ValueError(
            "no trajectory has a turn to train on; look at the reasons in the episode/* metrics"
        )
    return DataProto.from_dict(
        tensors={
            name: torch.from_numpy(array) for name, array in _arrays(rows, pad_token_id).items()
        },
        non_tensors=_row_columns(rows),
    )


def _cut(turns: Sequence[Turn], context_kind: str) -> list[Sequence[Turn]]:
    return [[turn] for turn in turns] if context_kind == "turn" else segments(turns)


def _make_row(trajectory: Trajectory, turns: Sequence[Turn]) -> _Row:
    for turn, following in pairwise(turns):
        seen = np.concatenate([turn.prompt_ids, turn.response_ids])
        if not np.array_equal(seen, following.prompt_ids[: len(seen)]):
            raise ValueError(
                f"the prompt of turn {following.index} of trajectory "
                f"'{trajectory.episode.traj_uid}' does not continue the turn before, so the engine "
                "saw another prompt than training would; only a turn with dropped_turns > 0 may "
                "open the conversation anew (prompts rebuilt every turn: env.context.kind=turn)"
            )
    tokens = np.concatenate([turns[-1].prompt_ids, turns[-1].response_ids])
    return _Row(trajectory, turns, tokens)


def _arrays(rows: Sequence[_Row], pad_token_id: int) -> dict[str, np.ndarray]:
    count = len(rows)
    width_P = max(row.prompt_length for row in rows)
    width_T = max(len(row.tokens) - row.prompt_length for row in rows)
    input_ids = np.full((count, width_P + width_T), pad_token_id, np.int64)
    attention_mask = np.zeros_like(input_ids)
    response_mask = np.zeros((count, width_T), np.int64)
    turn_ids = np.full((count, width_T), -1, np.int64)
    log_probs = np.zeros((count, width_T), np.float32)
    scores, invalid = np.zeros_like(log_probs), np.zeros_like(log_probs)
    for i, row in enumerate(rows):
        start = width_P - row.prompt_length
        here = slice(start, start + len(row.tokens))
        input_ids[i, here] = row.tokens
        attention_mask[i, here] = 1
        for turn in row.turns:
            span = row.span(turn)
            response_mask[i, span] = 1
            turn_ids[i, span] = turn.index
            log_probs[i, span] = turn.log_probs
            scores[i, span.stop - 1] = turn.reward
            invalid[i, span.stop - 1] = not turn.action.is_format_valid
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "response_mask": response_mask,
        "turn_ids": turn_ids,
        "rollout_log_probs": log_probs,
        "token_level_scores": scores,
        "invalid_action_mask": invalid,
    }


def _row_columns(rows: Sequence[_Row]) -> dict[str, np.ndarray]:
    episodes = [row.trajectory.episode for row in rows]
    oldest = [min(turn.weight_version for turn in row.turns) for row in rows]
    return {
        "uid": np.array([episode.uid for episode in episodes], dtype=object),
        "traj_uid": np.array([episode.traj_uid for episode in episodes], dtype=object),
        "turn": np.array([row.turns[0].index for row in rows], dtype=np.int64),
        "weight_version": np.array(oldest, dtype=np.int64),
    }
