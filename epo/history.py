"""What the policy's entropy has been, step by step, and the reference that follows from it.

Every mean is kept as a sum and a count over what was really there: no padding, no finished episode,
no turn that nobody played. Shapes: B rows, T tokens, N trajectories, S turns. Entropies in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from epo.corridor import Level

AGGREGATIONS = ("trajectory", "token_mean")
REFERENCES = ("past_mean", "sliding_window", "ema", "per_turn")


class RolloutEntropies(Protocol):
    """One rollout's entropies as the trainer measured them; padding rows absent or masked."""

    @property
    def entropy_BT(self) -> Tensor: ...
    @property
    def mask_BT(self) -> Tensor: ...
    @property
    def turn_BT(self) -> Tensor: ...
    @property
    def traj_ids_B(self) -> Any: ...  # an array or sequence of hashable ids


@dataclass(frozen=True)
class StepEntropy:
    """The entropy of one rollout step: of all of it, and of each turn t (index into the tuples)."""

    step: int
    total: float
    count: int  # trajectories, or tokens with aggregation token_mean
    turn_totals: tuple[float, ...]
    turn_counts: tuple[int, ...]

    @property
    def mean(self) -> float:
        return self.total / self.count

    def turn_means(self) -> dict[int, float]:
        """Only the turns that somebody played."""
        pairs = enumerate(zip(self.turn_totals, self.turn_counts, strict=True))
        return {turn: total / count for turn, (total, count) in pairs if count}


def measure(observation: RolloutEntropies, step: int, aggregation: str) -> StepEntropy | None:
    """Hbar of one step; None when no token is active.

    `trajectory`: mean over trajectories of the mean over their turns of the mean over each turn's
    tokens; `token_mean`: every token counts the same. A trajectory may be spread over rows.

    Raises:
        ValueError: an active token has no turn, or its entropy is not finite.
    """
    row, column = observation.mask_BT.bool().nonzero(as_tuple=True)
    if row.numel() == 0:
        return None
    # Double precision: these sums are compared over hundreds of steps.
    entropy = observation.entropy_BT[row, column].double()
    turn = observation.turn_BT[row, column].long()
    _check_tokens(entropy, turn, step)

    trajectory_B = _dense_ids(observation.traj_ids_B, row.device)
    n_turns = int(turn.max()) + 1
    cell = trajectory_B[row] * n_turns + turn
    n_cells = (int(trajectory_B.max()) + 1) * n_turns
    tokens_NS = torch.bincount(cell, minlength=n_cells).view(-1, n_turns)
    entropy_NS = torch.bincount(cell, weights=entropy, minlength=n_cells).view(-1, n_turns)
    if aggregation == "token_mean":
        return _step_entropy(step, entropy_NS.sum(), tokens_NS.sum(), entropy_NS, tokens_NS)

    played_NS = (tokens_NS > 0).long()
    turns_N = played_NS.sum(dim=1)
    mean_NS = entropy_NS / tokens_NS.clamp(min=1)
    mean_N = mean_NS.sum(dim=1) / turns_N.clamp(min=1)
    return _step_entropy(step, mean_N.sum(), (turns_N > 0).sum(), mean_NS, played_NS)


def _step_entropy(
    step: int, total: Tensor, count: Tensor, totals_NS: Tensor, counts_NS: Tensor
) -> StepEntropy:
    return StepEntropy(
        step=step,
        total=float(total),
        count=int(count),
        turn_totals=tuple(totals_NS.sum(dim=0).tolist()),
        turn_counts=tuple(counts_NS.sum(dim=0).tolist()),
    )


def _check_tokens(entropy: Tensor, turn: Tensor, step: int) -> None:
    if int(turn.min()) < 0:
        raise ValueError(
            "an active token has turn -1; give every token under the mask the turn it belongs to"
        )
    if not bool(torch.isfinite(entropy).all()):
        raise ValueError(
            f"step {step} has an entropy that is not finite: the policy has diverged; "
            "resume from an earlier checkpoint with a lower learning rate"
        )


def _dense_ids(ids_B: Sequence[Any], device: torch.device) -> Tensor:
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in ids_B], device=device)


class EntropyHistory:
    """The entropies of all steps so far, oldest first. Its state is JSON and restores exactly."""

    def __init__(self) -> None:
        self._steps: list[StepEntropy] = []

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def steps(self) -> tuple[StepEntropy, ...]:
        return tuple(self._steps)

    def record(self, entry: StepEntropy) -> None:
        """Raises ValueError when the step, or a later one, is already there."""
        last = self._steps[-1].step if self._steps else -1
        if entry.step <= last:
            raise ValueError(
                f"step {entry.step} comes after step {last} in the entropy history; "
                "record each step once, in order, and resume with the checkpoint's history"
            )
        self._steps.append(entry)

    def before(self, step: int) -> list[StepEntropy]:
        """The steps m < `step`: a step is never compared with itself."""
        return [entry for entry in self._steps if entry.step < step]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": [asdict(entry) for entry in self._steps]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`, also after a trip through JSON (tuples become lists)."""
        self._steps = []
        for entry in state["steps"]:
            turns = {key: tuple(entry[key]) for key in ("turn_totals", "turn_counts")}
            self.record(StepEntropy(entry["step"], entry["total"], entry["count"], **turns))


def reference_entropy(
    past: Sequence[StepEntropy], kind: str, window: int, ema_decay: float
) -> Level | None:
    """What the entropy of a step is compared with; None without a past.

    - `past_mean`: (1/k) * sum_{m<k} Hbar_m, the paper's.
    - `sliding_window`: the same over the last `window` steps.
    - `ema`: R <- ema_decay * R + (1 - ema_decay) * Hbar_m, starting at the first step's Hbar.
    - `per_turn`: for each turn the mean over all past (step, trajectory) that played it; one that
      nobody played has the past mean, and so has the last entry, which stands for all later turns.
    """
    if not past:
        return None
    means = [entry.mean for entry in past]
    if kind == "sliding_window":
        return _mean(means[-window:])
    if kind == "ema":
        reference = means[0]
        for mean in means[1:]:
            reference = ema_decay * reference + (1.0 - ema_decay) * mean
        return reference
    if kind == "per_turn":
        return _per_turn(past, fallback=_mean(means))
    return _mean(means)


def _per_turn(past: Sequence[StepEntropy], fallback: float) -> tuple[float, ...]:
    n_turns = max(len(entry.turn_totals) for entry in past)
    totals, counts = [0.0] * n_turns, [0] * n_turns
    for entry in past:
        for turn, (total, count) in enumerate(
            zip(entry.turn_totals, entry.turn_counts, strict=True)
        ):
            totals[turn] += total
            counts[turn] += count
    means = (t / n if n else fallback for t, n in zip(totals, counts, strict=True))
    return (*means, fallback)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
