import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.algorithms.aggregation import (
    LOSS_AGG_MODES,
    agg_loss,
    dense_ids,
    loss_normalizers,
    trajectory_token_weights,
)

LOSS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", 18 / 5),  # (1+2+4+5+6) / 5
        ("seq-mean-token-sum", 9.0),  # ((1+2) + (4+5+6)) / 2 rows; the third row is padding
        ("seq-mean-token-mean", 3.25),  # (3/2 + 15/3) / 2
        ("seq-mean-token-sum-norm", 3.0),  # 9 / T, T = 3
    ],
)
def test_modes_by_hand(mode, expected):
    assert agg_loss(LOSS, MASK, mode).item() == pytest.approx(expected)


def test_loss_scale_factor_replaces_the_response_length():
    # 9 / 10
    loss = agg_loss(LOSS, MASK, "seq-mean-token-sum-norm", loss_scale_factor=10)
    assert loss.item() == pytest.approx(0.9)


def test_dp_size_scales_the_share_of_a_rank():
    # two ranks, each averaging gradients: rank 0 holds row 0, (1+2)/5*2; rank 1 row 1, 15/5*2
    shares = [
        agg_loss(LOSS[i : i + 1], MASK[i : i + 1], "token-mean", dp_size=2, batch_num_tokens=5)
        for i in (0, 1)
    ]
    assert [s.item() for s in shares] == pytest.approx([1.2, 6.0])
    assert sum(shares).item() / 2 == pytest.approx(18 / 5)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_padding_alone_costs_nothing_and_masked_garbage_is_ignored(mode):
    assert agg_loss(LOSS, torch.zeros_like(MASK), mode).item() == 0.0
    dirty = torch.where(MASK.bool(), LOSS, float("inf"))
    assert agg_loss(dirty, MASK, mode) == agg_loss(LOSS, MASK, mode)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"unknown loss_agg_mode 'mean'; available: token-mean"):
        agg_loss(LOSS, MASK, "mean")
    with pytest.raises(ValueError, match="batch_num_tokens is required when dp_size is 2"):
        agg_loss(LOSS, MASK, "token-mean", dp_size=2)
    with pytest.raises(ValueError, match="global_batch_size is required when dp_size is 4"):
        agg_loss(LOSS, MASK, "seq-mean-token-sum", dp_size=4)


def test_loss_normalizers_skip_padding_rows():
    assert loss_normalizers(MASK) == {"batch_num_tokens": 5, "global_batch_size": 2}


@st.composite
def partitioned_batches(draw):
    rows, tokens = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    loss = torch.randn(rows, tokens, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, tokens, generator=generator) < draw(st.sampled_from([0.2, 0.5, 1.0]))
    part_of_row = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    parts = [[i for i in range(rows) if part_of_row[i] == p] for p in set(part_of_row)]
    return loss, mask, parts


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@given(partitioned_batches())
@settings(max_examples=40)
def test_any_partition_adds_up_to_the_whole(mode, case):
    loss, mask, parts = case
    normalizers = loss_normalizers(mask)
    if normalizers["batch_num_tokens"] == 0:
        return
    whole = agg_loss(loss, mask, mode)
    shares = sum(agg_loss(loss[rows], mask[rows], mode, **normalizers) for rows in parts)
    assert shares.item() == pytest.approx(whole.item(), abs=1e-9)


def test_partition_gives_the_gradient_of_the_whole():
    def gradient(parts):
        weight = torch.ones(3, requires_grad=True)
        normalizers = loss_normalizers(MASK)
        for rows in parts:
            agg_loss(LOSS[rows] * weight, MASK[rows], "token-mean", **normalizers).backward()
        return weight.grad

    assert torch.allclose(gradient([[0], [1, 2]]), gradient([[0, 1, 2]]))


def test_dense_ids():
    assert dense_ids(np.array(["b", "a", "b"], dtype=object)).tolist() == [1, 0, 1]
    assert dense_ids(torch.tensor([7, 3, 7])).tolist() == [1, 0, 1]
    assert dense_ids([5, 5]).tolist() == [0, 0]


def test_trajectory_weights_one_row_a_trajectory():
    # A: turn 0 has 2 tokens, turn 1 has 1; B: turn 0 has 3 tokens. 2 trajectories.
    # A turn 0: 1/(2*2*2) = 1/8 each; A turn 1: 1/(2*2*1) = 1/4; B: 1/(2*1*3) = 1/6 each
    turns = torch.tensor([[0, 0, -1, 1], [0, 0, 0, -1]])
    weights = trajectory_token_weights(np.array(["A", "B"]), turns, turns >= 0)
    expected = torch.tensor([[1 / 8, 1 / 8, 0, 1 / 4], [1 / 6, 1 / 6, 1 / 6, 0]])
    assert weights.dtype == torch.float32
    assert torch.allclose(weights, expected)
    assert weights.sum().item() == pytest.approx(1.0)


def test_trajectory_weights_one_row_a_turn_with_padding():
    # the same trajectories as rows of turns, in any order, and a padding row of a third id
    turns = torch.tensor([[1, -1, -1], [0, 0, 0], [0, 0, -1], [-1, -1, -1]])
    ids = np.array(["A", "B", "A", "padding"], dtype=object)
    weights = trajectory_token_weights(ids, turns, turns >= 0)
    expected = torch.tensor([[1 / 4, 0, 0], [1 / 6, 1 / 6, 1 / 6], [1 / 8, 1 / 8, 0], [0, 0, 0]])
    assert torch.allclose(weights, expected)


def test_turns_count_only_when_they_have_active_tokens():
    # turn ids may start anywhere and have gaps: turns 3 and 7, 1/(1*2*1) each
    turns = torch.tensor([[3, 7, 9]])
    weights = trajectory_token_weights(np.array([0]), turns, torch.tensor([[1, 1, 0]]))
    assert torch.allclose(weights, torch.tensor([[0.5, 0.5, 0.0]]))


def test_trajectory_weights_bad_input_and_empty_batch():
    with pytest.raises(ValueError, match="has turn -1"):
        trajectory_token_weights(np.array([0]), torch.tensor([[-1]]), torch.tensor([[1]]))
    empty = trajectory_token_weights(np.array([0]), torch.tensor([[-1]]), torch.tensor([[0]]))
    assert empty.tolist() == [[0.0]]


@given(
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40)
def test_both_layouts_weigh_every_token_alike(tokens_of_turns, random):
    """`tokens_of_turns[j][t]`: the number of tokens of turn t of trajectory j."""
    width = 32
    joint = torch.full((len(tokens_of_turns), width), -1)
    rows = []
    for j, turns in enumerate(tokens_of_turns):
        column = 0
        for t, tokens in enumerate(turns):
            joint[j, column : column + tokens] = t
            column += tokens + 1  # one observation token in between
            rows.append((j, t, tokens))
    random.shuffle(rows)
    split = torch.full((len(rows), width), -1)
    for i, (_, t, tokens) in enumerate(rows):
        split[i, :tokens] = t

    joint_weights = trajectory_token_weights(np.arange(len(joint)), joint, joint >= 0)
    split_weights = trajectory_token_weights(np.array([j for j, _, _ in rows]), split, split >= 0)
    assert joint_weights.sum().item() == pytest.approx(1.0, abs=1e-5)
    for i, (j, t, tokens) in enumerate(rows):
        expected = 1 / (len(tokens_of_turns) * len(tokens_of_turns[j]) * tokens)
        assert split_weights[i, :tokens].tolist() == pytest.approx([expected] * tokens)
        assert joint_weights[j][joint[j] == t].tolist() == pytest.approx([expected] * tokens)
