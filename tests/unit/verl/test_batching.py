"""Mini-batches: nothing lost, nothing counted twice, padding without weight."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl import DataProto
from verl.trainer.ppo.batching import (
    gather,
    mini_batches,
    pad_rows,
    spread,
    worker_view,
)

PROMPT, RESPONSE = 2, 3


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
@settings(max_examples=50, deadline=None)
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
@settings(max_examples=50, deadline=None)
def test_every_row_is_in_one_mini_batch_an_epoch(lengths, size, ranks, epochs):
    cut = list(
        mini_batches(
            rollout(lengths),
            size,
            epochs=epochs,
            ranks=ranks,
            balance=True,
            rng=np.random.default_rng(0),
            with_weights=True,
        )
    )
    count = -(-len(lengths) // size)
    assert len(cut) == count * epochs
    rows = [
        row
        for mini_batch in cut
        for row, active in zip(
            mini_batch.batch["input_ids"][:, 0].tolist(),
            mini_batch.batch["response_mask"].any(-1).tolist(),
            strict=True,
        )
        if active
    ]
    assert sorted(rows) == sorted(list(range(len(lengths))) * epochs)
    for mini_batch in cut:
        mask = mini_batch.batch["response_mask"]
        assert mini_batch.meta_info["batch_num_tokens"] == int(mask.sum())
        assert mini_batch.meta_info["global_batch_size"] == int(mask.any(-1).sum())
        for weight in ("trajectory_weight", "token_weight"):
            assert float(mini_batch.batch[weight].sum()) == pytest.approx(1.0)
            assert float(mini_batch.batch[weight][~mask.bool()].abs().sum()) == 0.0


def test_a_rollout_without_signal_makes_no_mini_batch():
    nothing = rollout([1, 2]).select_idxs(np.array([], dtype=np.int64))
    cut = mini_batches(nothing, 2, epochs=1, ranks=2, balance=True, rng=None, with_weights=True)
    assert list(cut) == []


def test_weights_are_those_of_the_equations():
    (mini_batch,) = mini_batches(
        rollout([1, 3]), 2, epochs=1, ranks=1, balance=False, rng=None, with_weights=True
    )
    # 2 trajectories of one turn: a token weighs 1/2 * 1/tokens = 1/2 and 1/6; a token of 4: 1/4
    expected = [[1 / 2, 0, 0], [1 / 6, 1 / 6, 1 / 6]]
    torch.testing.assert_close(mini_batch.batch["trajectory_weight"], torch.tensor(expected))
    expected = [[1 / 4, 0, 0], [1 / 4, 1 / 4, 1 / 4]]
    torch.testing.assert_close(mini_batch.batch["token_weight"], torch.tensor(expected))


def test_the_same_generator_gives_the_same_mini_batches():
    def rows(seed):
        cut = mini_batches(
            rollout([1, 2, 3, 1, 2]),
            2,
            epochs=2,
            ranks=1,
            balance=False,
            rng=np.random.default_rng(seed),
            with_weights=False,
        )
        return [mini_batch.batch["input_ids"][:, 0].tolist() for mini_batch in cut]

    assert rows(7) == rows(7)
    assert rows(7) != rows(8)
