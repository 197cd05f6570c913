"""Mini-batches: nothing lost, nothing counted twice, padding without weight."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl import DataProto
from verl.algorithms.entropy_control import StepContext
from verl.trainer.ppo.batching import (
    MiniBatches,
    gather,
    optimise,
    pad_rows,
    spread,
    worker_view,
)
from verl.utils.metrics import Mean, Sum
from verl.workers.update_context import UpdateContext

PROMPT, RESPONSE = 2, 3
STEP = StepContext(step=0, total_steps=9)


def rollout(lengths: list[int]) -> DataProto:
    """One row a trajectory with `lengths[i]` active tokens; the row's number is its first token."""
    rows = len(lengths)
    lengths_B = torch.tensor(lengths)
    mask = (torch.arange(RESPONSE) < lengths_B[:, None]).long()
    numbers = torch.arange(rows)
    return DataProto.from_single_dict(
        {
            "input_ids": numbers[:, None].repeat(1, PROMPT + RESPONSE),
            "response_mask": mask,
            "turn_ids": torch.where(mask.bool(), 0, -1),
            "token_level_scores": mask.float(),
            "attention_mask": torch.cat([torch.ones(rows, PROMPT, dtype=torch.long), mask], dim=1),
            "uid": np.array([f"u{i // 2}" for i in range(rows)], dtype=object),
            "traj_uid": np.array([f"t{i}" for i in range(rows)], dtype=object),
        }
    )


lengths_strategy = st.lists(st.integers(1, RESPONSE), min_size=1, max_size=12)


def test_padding_rows_are_empty_and_named():
    padded = pad_rows(rollout([3, 1, 2]), divisor=4)
    assert len(padded) == 4
    assert padded.batch["response_mask"][3].tolist() == [0, 0, 0]
    assert padded.batch["attention_mask"][3].tolist() == [0, 1, 0, 0, 0]
    assert padded.batch["turn_ids"][3].tolist() == [-1, -1, -1]
    assert padded.non_tensor_batch["traj_uid"].tolist() == ["t0", "t1", "t2", "padding"]


def test_workers_get_the_rollout_weights_and_nothing_they_do_not_read():
    batch = rollout([3, 1])
    read = {"input_ids", "attention_mask", "response_mask", "turn_ids"}
    assert set(worker_view(batch).batch.keys()) == read
    batch.batch["rollout_is_weights"] = torch.full((2, RESPONSE), 0.5)
    assert "rollout_is_weights" in set(worker_view(batch).batch.keys())


def test_padding_leaves_the_given_batch_alone():
    batch = rollout([3, 1, 2])
    pad_rows(batch, divisor=2)
    assert batch.batch["response_mask"][0].tolist() == [1, 1, 1]
    assert len(batch) == 3


def test_a_divisible_batch_is_returned_as_it_is():
    batch = rollout([1, 2])
    assert pad_rows(batch, divisor=2) is batch


@given(lengths=lengths_strategy, ranks=st.integers(1, 4), balance=st.booleans())
@settings(max_examples=50)
def test_gather_undoes_spread(lengths, ranks, balance):
    batch = rollout(lengths)
    shared, order = spread(batch, ranks, balance)
    assert len(shared) % ranks == 0
    back = gather(shared, order, len(batch))
    assert back.batch["input_ids"][:, 0].tolist() == list(range(len(batch)))


def test_ranks_get_about_equal_tokens():
    shared, _ = spread(rollout([3, 3, 1, 1]), ranks=2, balance=True)
    # 5 + 5 + 3 + 3 tokens with prompts: each rank one long and one short row, 8 tokens
    first, second = shared.batch["attention_mask"].sum(-1).view(2, 2).sum(-1).tolist()
    assert (first, second) == (8, 8)


@given(
    lengths=lengths_strategy,
    size=st.integers(1, 5),
    ranks=st.integers(1, 3),
    epochs=st.integers(1, 2),
)
@settings(max_examples=50)
def test_every_row_is_in_one_mini_batch_an_epoch(lengths, size, ranks, epochs):
    how = MiniBatches(size, epochs, ranks, balance=True, seed=0, weighted=True)
    cut = list(how.cut(rollout(lengths), STEP))
    count = -(-len(lengths) // size)
    assert len(cut) == count * epochs
    rows = [
        row
        for mini_batch in cut
        for row, active in zip(
            mini_batch.rows.batch["input_ids"][:, 0].tolist(),
            mini_batch.rows.batch["response_mask"].any(-1).tolist(),
            strict=True,
        )
        if active
    ]
    assert sorted(rows) == sorted(list(range(len(lengths))) * epochs)
    for mini_batch in cut:
        mask = mini_batch.rows.batch["response_mask"]
        assert mini_batch.context == UpdateContext(STEP, int(mask.sum()), int(mask.any(-1).sum()))
        for weight in ("trajectory_weight", "token_weight"):
            assert float(mini_batch.rows.batch[weight].sum()) == pytest.approx(1.0)
            assert float(mini_batch.rows.batch[weight][~mask.bool()].abs().sum()) == 0.0


def test_a_rollout_without_signal_makes_no_mini_batch():
    nothing = rollout([1, 2]).select_idxs(np.array([], dtype=np.int64))
    how = MiniBatches(2, epochs=1, ranks=2, balance=True, seed=0, weighted=True)
    assert list(how.cut(nothing, STEP)) == []


def test_weights_are_those_of_the_equations():
    how = MiniBatches(2, epochs=1, ranks=1, balance=False, seed=None, weighted=True)
    ((rows, _),) = how.cut(rollout([1, 3]), STEP)
    # 2 trajectories of one turn: a token weighs 1/2 * 1/tokens = 1/2 and 1/6; a token of 4: 1/4
    expected = [[1 / 2, 0, 0], [1 / 6, 1 / 6, 1 / 6]]
    torch.testing.assert_close(rows.batch["trajectory_weight"], torch.tensor(expected))
    expected = [[1 / 4, 0, 0], [1 / 4, 1 / 4, 1 / 4]]
    torch.testing.assert_close(rows.batch["token_weight"], torch.tensor(expected))


def test_the_order_of_the_rows_is_drawn_from_the_seed_and_the_step():
    def rows(seed, step):
        how = MiniBatches(2, epochs=2, ranks=1, balance=False, seed=seed, weighted=False)
        cut = how.cut(rollout([1, 2, 3, 1, 2]), StepContext(step, 9))
        return [mini_batch.rows.batch["input_ids"][:, 0].tolist() for mini_batch in cut]

    assert rows(7, 0) == rows(7, 0)
    assert rows(7, 0) != rows(8, 0)
    assert rows(7, 0) != rows(7, 1)
    assert rows(None, 0)[:3] == [[0, 1], [2, 3], [4]]


def test_an_update_is_called_once_a_mini_batch_and_all_ranks_report_the_same():
    def update(rows, context):
        tokens = context.batch_num_tokens
        return [{"tokens": Mean(tokens), "skipped": Sum(1.0)}] * 2

    how = MiniBatches(1, epochs=1, ranks=2, balance=False, seed=None, weighted=False)
    metrics = optimise(update, how.cut(rollout([1, 3]), STEP))
    assert metrics == {"tokens": 2.0, "skipped": 2.0}  # (1 + 3) / 2, and two mini-batches
