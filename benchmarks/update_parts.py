"""The mini-batch that the benchmarks of the update share."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDict

from verl.algorithms.aggregation import loss_normalizers, trajectory_token_weights
from verl.algorithms.entropy_control import StepContext
from verl.workers.update_context import UpdateContext


def mini_batch(
    rows: int, prompt: int, response: int, turn: int, vocab: int
) -> tuple[TensorDict, UpdateContext]:
    """Trajectories of one row: turns of `turn` positions, half of them sampled tokens."""
    generator = torch.Generator().manual_seed(0)
    position = torch.arange(response).expand(rows, -1)
    mask = ((position % turn) < turn // 2).long()
    turn_ids = torch.where(mask.bool(), position // turn, -1)
    weight = trajectory_token_weights(np.arange(rows), turn_ids, mask)
    columns = {
        "input_ids": torch.randint(0, vocab, (rows, prompt + response), generator=generator),
        "attention_mask": torch.ones(rows, prompt + response, dtype=torch.long),
        "response_mask": mask,
        "old_log_probs": torch.full((rows, response), -3.0),
        "advantages": torch.randn(rows, response, generator=generator),
        "turn_ids": turn_ids,
        "trajectory_weight": weight,
    }
    state = {"reference": 1.0, "lower": 0.5, "upper": 1.5, "beta": 1.5}
    context = UpdateContext(StepContext(1, 10, state), **loss_normalizers(mask))
    return TensorDict(columns, batch_size=[rows]), context
