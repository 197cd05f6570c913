"""Numbers for the tracker: what a batch holds, how long it took, and how sure a rate is.

Shapes: B rows, T response tokens. A row with an all-zero response mask is padding and not counted.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from verl.algorithms.aggregation import dense_ids
from verl.protocol import DataProto

# Columns with one value an episode, repeated in each of its rows -> the metric they become.
EPISODE_COLUMNS = {
    "episode_rewards": "episode/reward",
    "episode_lengths": "episode/length",
}
# Phases whose cost grows with prompt and response tokens; `gen` grows with response tokens alone.
WHOLE_SEQUENCE_PHASES = ("ref", "values", "adv", "update_critic", "update_actor")


def compute_data_metrics(batch: DataProto, use_critic: bool = True) -> dict[str, float]:
    """Statistics of one training batch.

    Scores and rewards count each trajectory once when the batch has `traj_uid`: the rows of a
    trajectory, each with the rewards of its own turns, are added up.

    Args:
        batch: (B, T) columns `token_level_scores`, `token_level_rewards`, `advantages`, `returns`,
            `responses`, with a critic `values`; (B, P + T) `attention_mask`; optionally
            `response_mask` and the columns of `EPISODE_COLUMNS`.

    Returns:
        critic/{score,rewards,advantages,returns,values}/{mean,max,min}, critic/vf_explained_var,
        {response,prompt}_length/{mean,max,min,clip_ratio}, episode/*/{mean,max,min}.

    Raises:
        ValueError: no row has an active token.
    """
    columns = batch.batch
    info = _compute_response_info(batch)
    mask_BT = info["response_mask"].bool()
    active_B = mask_BT.any(dim=-1)
    if not active_B.any():
        raise ValueError(
            "the batch has no response token, so nothing can be measured; were all episodes lost?"
        )
    trajectory_B = _trajectories(batch, active_B)

    def per_trajectory(column: str) -> Tensor:
        return _trajectory_sum(columns[column].sum(-1)[active_B], trajectory_B)

    metrics = {
        **_statistics("critic/score", per_trajectory("token_level_scores")),
        **_statistics("critic/rewards", per_trajectory("token_level_rewards")),
        **_statistics("critic/advantages", columns["advantages"][mask_BT]),
        **_statistics("critic/returns", columns["returns"][mask_BT]),
    }
    if use_critic:
        metrics |= _value_metrics(columns["values"][mask_BT], columns["returns"][mask_BT])
    widths = {
        "response": mask_BT.shape[-1],
        "prompt": columns["attention_mask"].shape[-1] - mask_BT.shape[-1],
    }
    for part, width in widths.items():
        length_B = info[f"{part}_length"][active_B]
        metrics |= _statistics(f"{part}_length", length_B)
        metrics[f"{part}_length/clip_ratio"] = (length_B == width).float().mean().item()
    return metrics | _episode_metrics(batch, active_B.cpu(), trajectory_B.cpu())


def _compute_response_info(batch: DataProto) -> dict[str, Tensor]:
    """`response_mask` (B, T), and the lengths (B,) of prompt and response by the attention mask."""
    attention_mask = batch.batch["attention_mask"]
    response_width = batch.batch["response_mask"].shape[-1]
    response_attention = attention_mask[:, -response_width:]
    has_mask = "response_mask" in batch.batch.keys()  # noqa: SIM118 - a TensorDict refuses `in`
    return {
        "response_mask": batch.batch["response_mask"] if has_mask else response_attention,
        "prompt_length": attention_mask[:, :-response_width].sum(-1).float(),
        "response_length": response_attention.sum(-1).float(),
    }


def _trajectories(batch: DataProto, active_B: Tensor) -> Tensor:
    """A number for the trajectory of each active row; without `traj_uid` each row is one."""
    if "traj_uid" in batch.non_tensor_batch:
        return dense_ids(batch.non_tensor_batch["traj_uid"][active_B.cpu().numpy()]).to(
            active_B.device
        )
    return torch.arange(int(active_B.sum()), device=active_B.device)


def _trajectory_sum(value_B: Tensor, trajectory_B: Tensor) -> Tensor:
    trajectories = int(trajectory_B.max()) + 1
    total_N = torch.zeros(trajectories, dtype=torch.float64, device=value_B.device)
    return total_N.index_add_(0, trajectory_B, value_B.double())


def _episode_metrics(batch: DataProto, active_B: Tensor, trajectory_B: Tensor) -> dict[str, float]:
    """Every row of an episode holds the same value, so any of its rows will do."""
    metrics: dict[str, float] = {}
    for column, name in EPISODE_COLUMNS.items():
        if column in batch.non_tensor_batch:
            value_B = np.asarray(batch.non_tensor_batch[column], dtype=np.float64)
            value_N = torch.empty(int(trajectory_B.max()) + 1, dtype=torch.float64)
            value_N[trajectory_B] = torch.from_numpy(value_B)[active_B]
            metrics |= _statistics(name, value_N)
    return metrics


def _statistics(name: str, values: Tensor) -> dict[str, float]:
    values = values.double()
    return {
        f"{name}/mean": values.mean().item(),
        f"{name}/max": values.max().item(),
        f"{name}/min": values.min().item(),
    }


def _value_metrics(values: Tensor, returns: Tensor) -> dict[str, float]:
    """Explained variance: 1 for a perfect critic, 0 for a constant, negative for a harmful one."""
    unexplained = (returns - values).var(correction=0)
    explained = 1.0 - unexplained / (returns.var(correction=0) + 1e-5)
    return {**_statistics("critic/values", values), "critic/vf_explained_var": explained.item()}


def compute_timing_metrics(batch: DataProto, timing_raw: dict[str, float]) -> dict[str, float]:
    """`timing_s/<phase>` of every phase, `timing_per_token_ms/<phase>` where tokens drive the cost.

    Args:
        timing_raw: seconds of each phase. `gen` is divided by response tokens, the phases of
            `WHOLE_SEQUENCE_PHASES` by prompt and response tokens; without tokens the cost is 0.
    """
    info = _compute_response_info(batch)
    response_tokens = info["response_length"].sum().item()
    all_tokens = response_tokens + info["prompt_length"].sum().item()
    tokens = {"gen": response_tokens, **dict.fromkeys(WHOLE_SEQUENCE_PHASES, all_tokens)}
    metrics = {f"timing_s/{phase}": seconds for phase, seconds in timing_raw.items()}
    for phase in tokens.keys() & timing_raw.keys():
        per_token = timing_raw[phase] * 1000.0 / tokens[phase] if tokens[phase] else 0.0
        metrics[f"timing_per_token_ms/{phase}"] = per_token
    return metrics


def compute_throughout_metrics(
    batch: DataProto, timing_raw: dict[str, float], n_gpus: int
) -> dict[str, float]:
    """Tokens of the batch (`meta_info["global_token_num"]`), seconds of the step, tokens/s/GPU."""
    total = sum(batch.meta_info["global_token_num"])
    seconds = timing_raw["step"]
    return {
        "perf/total_num_tokens": total,
        "perf/time_per_step": seconds,
        "perf/throughput": total / (seconds * n_gpus),
    }


class Interval(NamedTuple):
    """A 95% confidence interval (for the default z)."""

    low: float
    high: float


def wilson_interval(successes: int, n: int, z: float = 1.96) -> Interval:
    """Wilson score interval of a success rate (E. B. Wilson, JASA 22, 1927).

        centre = (p + z^2/2n) / (1 + z^2/n)
        half   = z * sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)

    Unlike the normal interval it stays in [0, 1] and does not shrink to a point at 0 or n
    successes. (0, 1) when n is 0: nothing is known.

    Raises:
        ValueError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes} must be between 0 and n={n}")
    if n == 0:
        return Interval(0.0, 1.0)
    rate = successes / n
    scale = 1.0 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z * math.sqrt(rate * (1.0 - rate) / n + z * z / (4 * n * n)) / scale
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(values: Sequence[float], z: float = 1.96) -> Interval:
    """Normal interval of a mean: mean +- z * s / sqrt(n), s with Bessel's correction.

    Raises:
        ValueError: fewer than two values, which say nothing about their spread.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        raise ValueError(f"an interval needs at least 2 values, got {array.size}")
    half = z * array.std(ddof=1) / math.sqrt(array.size)
    return Interval(float(array.mean() - half), float(array.mean() + half))


def bootstrap_metric(
    data: Sequence[Any],
    subset_size: int,
    reduce_fns: Sequence[Callable[[Any], float]],
    n_bootstrap: int = 1000,
    seed: int = 42,
) -> list[tuple[float, float]]:
    """(mean, std) of each reduction over `n_bootstrap` draws of `subset_size`, with replacement.

    Raises:
        ValueError: `data` is empty.
    """
    if len(data) == 0:
        raise ValueError("cannot bootstrap from no data; pass at least one value")
    samples = np.random.default_rng(seed).integers(len(data), size=(n_bootstrap, subset_size))
    subsets = [[data[i] for i in sample] for sample in samples]
    reduced = [[reduce_fn(subset) for subset in subsets] for reduce_fn in reduce_fns]
    return [(float(np.mean(values)), float(np.std(values))) for values in reduced]


def calc_maj_val(data: Sequence[dict[str, Any]], vote_key: str, val_key: str) -> float:
    """The first value among the entries with the most frequent vote (ties: the earlier vote)."""
    winner = Counter(entry[vote_key] for entry in data).most_common(1)[0][0]
    return next(entry[val_key] for entry in data if entry[vote_key] == winner)


def process_validation_metrics(
    data_sources: Sequence[str],
    sample_inputs: Sequence[str],
    infos_dict: dict[str, list[Any]],
    seed: int = 42,
) -> dict[str, dict[str, dict[str, float]]]:
    """Repeated attempts at prompts -> {data source: {variable: {metric: mean over prompts}}}.

    Args:
        data_sources, sample_inputs: source and prompt (or its uid) of each sample.
        infos_dict: variable -> one value a sample; text variables are left out. With a variable
            `pred` there is a majority vote.

    Returns:
        The metrics ``mean@N`` and, for N > 1 attempts, ``std@N`` and bootstrapped
        ``{best,worst,maj}@n/{mean,std}`` for n = 2, 4, 8, ... N.
    """
    samples_of = defaultdict(list)
    for i, key in enumerate(zip(data_sources, sample_inputs, strict=True)):
        samples_of[key].append(i)

    collected: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for (source, _), samples in samples_of.items():
        attempts = {name: [values[i] for i in samples] for name, values in infos_dict.items()}
        for name, values in attempts.items():
            if isinstance(values[0], str):
                continue
            for metric, value in _attempt_metrics(values, attempts.get("pred"), seed).items():
                collected[source][name][metric].append(value)
    return {
        source: {
            name: {metric: float(np.mean(values)) for metric, values in by_metric.items()}
            for name, by_metric in by_name.items()
        }
        for source, by_name in collected.items()
    }


def _attempt_metrics(values: list[float], votes: list[Any] | None, seed: int) -> dict[str, float]:
    """Metrics of all attempts at one prompt."""
    total = len(values)
    metrics = {f"mean@{total}": float(np.mean(values))}
    if total == 1:
        return metrics
    metrics[f"std@{total}"] = float(np.std(values))
    for n in _doubling_sizes(total):
        best, worst = bootstrap_metric(values, n, [max, min], seed=seed)
        results = {"best": best, "worst": worst}
        if votes is not None:
            ballots = [
                {"val": value, "pred": vote} for value, vote in zip(values, votes, strict=True)
            ]
            majority = partial(calc_maj_val, vote_key="pred", val_key="val")
            (results["maj"],) = bootstrap_metric(ballots, n, [majority], seed=seed)
        for name, (mean, std) in results.items():
            metrics |= {f"{name}@{n}/mean": mean, f"{name}@{n}/std": std}
    return metrics


def _doubling_sizes(total: int) -> list[int]:
    """2, 4, 8, ... below `total`, then `total`."""
    return [2**k for k in range(1, total.bit_length()) if 2**k < total] + [total]
