"""The critic's values and update, on one rank with a tiny model. R 4 rows, T 5."""

from functools import partial

import pytest
import torch
from tensordict import TensorDict

from verl.algorithms.aggregation import loss_normalizers
from verl.algorithms.entropy_control import StepContext
from verl.config.critic import CriticConfig
from verl.config.model import FSDPConfig, ModelConfig
from verl.config.optim import OptimConfig
from verl.utils.metrics import reduced
from verl.workers.critic.dp_critic import DataParallelPPOCritic
from verl.workers.model_loading import load_value_model
from verl.workers.sharded_model import ShardedModel
from verl.workers.update_context import UpdateContext

P, T = 4, 5
ACTIVE = [5, 3, 4, 1]


@pytest.fixture
def batch():
    torch.manual_seed(4)
    mask = torch.tensor([[1] * count + [0] * (T - count) for count in ACTIVE])
    return TensorDict(
        {
            "input_ids": torch.randint(3, 60, (4, P + T)),
            "attention_mask": torch.cat([torch.ones(4, P, dtype=torch.long), mask], dim=-1),
            "response_mask": mask,
            "values": torch.zeros(4, T),
            "returns": torch.randn(4, T) + 1.0,
        },
        batch_size=[4],
    )


def make(path, runtime, **options):
    load = partial(load_value_model, ModelConfig(path=path))
    optim = OptimConfig(lr=1e-2)
    engine = ShardedModel(load, FSDPConfig(), runtime, optim, total_steps=10)
    return engine, DataParallelPPOCritic(CriticConfig(**options), engine)


def update(critic, batch):
    """One optimiser step; the metrics as numbers."""
    normalizers = loss_normalizers(batch["response_mask"])
    context = UpdateContext(StepContext(step=0, total_steps=9), **normalizers)
    return reduced([critic.update_critic(batch, context)])


def test_first_values_are_zero_and_the_loss_is_half_the_squared_return(
    tiny_model_path, single_rank, batch
):
    _, critic = make(tiny_model_path, single_rank)
    values = critic.compute_values(batch)
    assert values.shape == (4, T) and not values.any()
    metrics = update(critic, batch)
    # vpreds = values = 0: no clip; loss = mean over active tokens of 0.5 * return^2
    mask = batch["response_mask"].bool()
    want = 0.5 * batch["returns"][mask].square().mean().item()
    assert metrics["critic/vf_loss"] == pytest.approx(want, rel=1e-5)
    assert metrics["critic/vf_clipfrac"] == 0.0
    assert metrics["critic/vpred_mean"] == 0.0


def test_the_normalised_sum_is_divided_by_a_constant(tiny_model_path, single_rank, batch):
    options = {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 20}
    _, critic = make(tiny_model_path, single_rank, **options)
    metrics = update(critic, batch)
    # values are 0: the sum of 0.5 * return^2 over 4 rows and 20, however wide the batch is (5)
    mask = batch["response_mask"].bool()
    want = 0.5 * batch["returns"][mask].square().sum().item() / 4 / 20
    assert metrics["critic/vf_loss"] == pytest.approx(want, rel=1e-5)


def test_values_move_towards_the_returns(tiny_model_path, single_rank, batch):
    _, critic = make(tiny_model_path, single_rank, cliprange_value=100.0)
    mask = batch["response_mask"].bool()

    def error():
        return (critic.compute_values(batch) - batch["returns"])[mask].square().mean().item()

    before = error()
    for _ in range(8):
        update(critic, batch)
    assert error() < 0.5 * before
    assert not critic.compute_values(batch)[~mask].any()


def test_micro_batches_change_nothing(tiny_model_path, single_rank, batch):
    def run(**options):
        engine, critic = make(tiny_model_path, single_rank, **options)
        metrics = [update(critic, batch) for _ in range(2)][-1]
        return engine.full_state_dict(), metrics

    want, want_metrics = run()
    for cut in (
        {"ppo_micro_batch_size_per_gpu": 1},
        {"use_dynamic_bsz": True, "ppo_max_token_len_per_gpu": 16},
    ):
        got, metrics = run(**cut)
        for name in want:
            torch.testing.assert_close(got[name], want[name], atol=1e-4, rtol=1e-4)
        assert metrics["critic/vf_loss"] == pytest.approx(want_metrics["critic/vf_loss"], rel=1e-4)


def test_a_non_finite_return_skips_the_step(tiny_model_path, single_rank, batch):
    engine, critic = make(tiny_model_path, single_rank)
    before = {name: tensor.clone() for name, tensor in engine.full_state_dict().items()}
    batch["returns"][0, 0] = float("nan")
    metrics = update(critic, batch)
    assert metrics["critic/skipped_steps"] == 1.0
    after = engine.full_state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
