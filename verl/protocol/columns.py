"""The columns of a training batch: what each holds, who makes it and who reads it.

R rows, P prompt width (left-padded), T response width (right-padded). Whoever needs a list of
columns derives it from this table, and a test compares it with the batches of a training step.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch

Producer = Literal[
    "rows", "actor", "reference", "critic", "rewards", "correction", "advantages", "mini-batches"
]
# `forward` lays rows out for the model; `control` is an entropy control, which may ask for them.
Reader = Literal["forward", "actor", "critic", "control", "driver"]


class Column(NamedTuple):
    """One row of the table."""

    name: str
    shape: str
    dtype: torch.dtype | np.dtype
    producer: Producer
    readers: tuple[Reader, ...]
    padding: int | str | None = None  # what padding rows hold; None: whatever row they repeat
    optional: bool = False  # there only with a reference, a critic, a rollout correction, ...


IDS, INDEX = np.dtype(object), np.dtype(np.int64)
INT, FLOAT = torch.int64, torch.float32
# fmt: off
COLUMNS = (
    # What was sampled: the mask is 1 on sampled tokens, the turn -1 on all others.
    Column("input_ids", "R P+T", INT, "rows", ("forward",)),
    Column("attention_mask", "R P+T", INT, "rows", ("forward", "driver")),
    Column("response_mask", "R T", INT, "rows", ("forward", "actor", "critic", "driver"), 0),
    Column("turn_ids", "R T", INT, "rows", ("control", "driver"), -1),
    Column("rollout_log_probs", "R T", FLOAT, "rows", ("driver",)),
    # At a turn's last sampled token: its reward, and 1 where its format was invalid.
    Column("token_level_scores", "R T", FLOAT, "rows", ("driver",)),
    Column("invalid_action_mask", "R T", FLOAT, "rows", ("driver",)),
    # Of the row: its group, its trajectory, its first turn, the oldest weights that sampled it.
    Column("uid", "R", IDS, "rows", ("driver",)),
    Column("traj_uid", "R", IDS, "rows", ("driver",), "padding"),
    Column("turn", "R", INDEX, "rows", ("driver",)),
    Column("weight_version", "R", INDEX, "rows", ("driver",)),
    # By the weights before the update: nats, and the critic's values.
    Column("old_log_probs", "R T", FLOAT, "actor", ("actor", "driver")),
    Column("entropys", "R T", FLOAT, "actor", ("driver",)),
    Column("ref_log_prob", "R T", FLOAT, "reference", ("actor", "driver"), optional=True),
    Column("values", "R T", FLOAT, "critic", ("critic", "driver"), optional=True),
    # Scores less penalties, and what follows from them.
    Column("token_level_rewards", "R T", FLOAT, "rewards", ("driver",)),
    Column("rollout_is_weights", "R T", FLOAT, "correction", ("actor",), optional=True),
    Column("advantages", "R T", FLOAT, "advantages", ("actor", "driver")),
    Column("returns", "R T", FLOAT, "advantages", ("critic", "driver")),
    # The weight of each token in a mean over its mini-batch; see `trainer.ppo.batching`.
    Column("trajectory_weight", "R T", FLOAT, "mini-batches", ("control",), 0, optional=True),
    Column("token_weight", "R T", FLOAT, "mini-batches", ("control",), 0, optional=True),
)
# fmt: on


def read_by(*readers: Reader) -> tuple[str, ...]:
    """The columns that any of `readers` reads."""
    return tuple(column.name for column in COLUMNS if set(readers) & set(column.readers))


LAYOUT_COLUMNS = read_by("forward")
POLICY_COLUMNS = read_by("forward", "actor")
VALUE_COLUMNS = read_by("forward", "critic")
# The rest of a batch stays on the driver.
WORKER_COLUMNS = read_by("forward", "actor", "critic", "control")
