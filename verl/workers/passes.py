"""Going over a rank's rows in micro-batches: once to measure, or once to learn.

Shapes: R rows of the rank, T response positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor

from verl.config.model import MicroBatchConfig
from verl.protocol.columns import LAYOUT_COLUMNS
from verl.utils.metrics import Max, Mean, Metric, Sum
from verl.workers.forward import ForwardInputs, forward_inputs
from verl.workers.micro_batch import micro_batch_rows
from verl.workers.sharded_model import ShardedModel


class LossOutput(NamedTuple):
    """A micro-batch's share of the loss and of each metric: the shares of all ranks add up."""

    loss: Tensor
    metrics: Mapping[str, Tensor | float]


class MicroBatch(NamedTuple):
    """`rows`: indices. `columns`: theirs, on the device. `inputs`: laid out for the model."""

    rows: Tensor
    columns: TensorDict
    inputs: ForwardInputs


def measure(
    sharded: ShardedModel,
    batch: TensorDict,
    config: MicroBatchConfig,
    packed: bool,
    forward: Callable[[ForwardInputs], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """`forward` of all rows without gradient: named (R, T) tensors on the CPU, 0 off the mask."""
    sharded.model.eval()
    results: dict[str, Tensor] = {}
    with torch.no_grad():
        for micro in micro_batches(sharded, batch.select(*LAYOUT_COLUMNS), config, packed):
            for name, value_BT in forward(micro.inputs).items():
                empty_RT = torch.zeros(batch["response_mask"].shape, dtype=value_BT.dtype)
                results.setdefault(name, empty_RT)[micro.rows] = value_BT.cpu()
    return results


# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    (
        "<model>/grad_norm",
        "1",
        "mean",
        "norm of the gradient over all ranks before clipping; model: actor, critic, sft",
    ),
    (
        "<model>/skipped_steps",
        "steps",
        "sum",
        "optimiser steps dropped because that norm was not finite",
    ),
    ("perf/max_memory_allocated_gb", "GiB", "max", "peak of a trainer on a GPU"),
    ("perf/cpu_rss_gb", "GiB", "mean", "resident memory of a trainer on a CPU"),
)


def learn(
    sharded: ShardedModel,
    batch: TensorDict,
    config: MicroBatchConfig,
    packed: bool,
    loss_of: Callable[[MicroBatch], LossOutput],
    prefix: str,
) -> dict[str, Metric]:
    """One optimiser step on a mini-batch. Returns its metrics, equal on all ranks (but memory).

    `prefix` (actor, critic) names `grad_norm` and `skipped_steps`.
    """
    sharded.model.train()
    totals: dict[str, float] = defaultdict(float)
    for micro in micro_batches(sharded, batch, config, packed):
        output = loss_of(micro)
        sharded.backward(output.loss)
        for name, value in output.metrics.items():
            totals[name] += float(value)
    step = sharded.optimizer_step()
    losses = sum_over_ranks(totals, sharded) | {f"{prefix}/grad_norm": step.grad_norm}
    return {
        **{name: Mean(value) for name, value in losses.items()},
        f"{prefix}/skipped_steps": Sum(float(step.skipped)),
        **memory_metrics(sharded.device),
    }


def micro_batches(
    sharded: ShardedModel, batch: TensorDict, config: MicroBatchConfig, packed: bool
) -> Iterator[MicroBatch]:
    """Equally many on every rank; rows without an active token are left out."""
    for rows in micro_batch_rows(
        batch["attention_mask"].sum(dim=-1),
        batch["response_mask"].any(dim=-1),
        config,
        packed=packed,
        group=sharded.group,
    ):
        columns = batch[rows].to(sharded.device)
        yield MicroBatch(rows, columns, forward_inputs(columns, packed=packed))


def sum_over_ranks(totals: Mapping[str, float], sharded: ShardedModel) -> dict[str, float]:
    """Each number added up over all ranks, which must have the same names."""
    names = sorted(totals)
    values = torch.tensor([totals[name] for name in names], dtype=torch.float64)
    if sharded.world_size > 1:
        values = values.to(sharded.device)
        dist.all_reduce(values, group=sharded.group)
    return dict(zip(names, values.tolist(), strict=True))


def memory_metrics(device: torch.device) -> dict[str, Metric]:
    """This process's memory in GiB: the peak on a GPU, what is resident on a CPU."""
    if device.type == "cuda":
        return {"perf/max_memory_allocated_gb": Max(torch.cuda.max_memory_allocated() / 2**30)}
    return {"perf/cpu_rss_gb": Mean(psutil.Process().memory_info().rss / 2**30)}
