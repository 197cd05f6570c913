"""The training engine on one rank: checkpoints, schedule, precision. (Two ranks: integration.)"""

from functools import partial

import pytest
import torch

from verl.config.model import FSDPConfig, ModelConfig
from verl.config.optim import OptimConfig
from verl.trainer.checkpoint import checkpoint_bytes
from verl.utils.errors import UserError
from verl.workers.forward import forward_inputs, policy_forward
from verl.workers.model_loading import load_causal_lm
from verl.workers.sharded_model import ShardedModel

OPTIM = OptimConfig(lr=1e-2, lr_warmup_steps=3)


def make_engine(path, runtime, optim=OPTIM, fsdp=None, **model):
    load = partial(load_causal_lm, ModelConfig(path=path, **model))
    return ShardedModel(load, fsdp or FSDPConfig(), runtime, optim, total_steps=10)


def step(engine, seed):
    """One update on random tokens; returns (loss, gradient norm, rate)."""
    ids = torch.randint(3, 60, (3, 8), generator=torch.Generator().manual_seed(seed))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["response_mask"] = torch.ones(3, 4, dtype=torch.long)
    inputs = forward_inputs(batch, packed=False)
    loss = -policy_forward(engine.model, inputs, 1.0).log_prob_N.mean()
    engine.backward(loss)
    return loss.item(), engine.optimizer_step().grad_norm, engine.step_lr()


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_loaded_checkpoint_goes_on_bit_by_bit(
    tiny_model_path, single_rank, tmp_path, lora_rank, steps_before
):
    engine = make_engine(tiny_model_path, single_rank, lora_rank=lora_rank)
    for seed in range(steps_before):
        step(engine, seed)
    engine.save_checkpoint(tmp_path / "checkpoint")
    drawn = torch.rand(3)
    want = [step(engine, seed) for seed in (10, 11, 12)]

    other = make_engine(tiny_model_path, single_rank, lora_rank=lora_rank)
    step(other, 99)  # whatever it did before is replaced
    other.load_checkpoint(tmp_path / "checkpoint")
    assert torch.equal(torch.rand(3), drawn)
    assert [step(other, seed) for seed in (10, 11, 12)] == want
    weights = engine.full_state_dict()
    for name, tensor in other.full_state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("model", [{"lora_rank": 0}, {"lora_rank": 8}])
def test_the_size_of_a_checkpoint_is_known_before(single_rank, tmp_path, model):
    engine = make_engine("small", single_rank, **model)
    step(engine, 0)
    engine.save_checkpoint(tmp_path / "checkpoint")
    config = ModelConfig(path="small", **model)
    estimate = checkpoint_bytes(load_causal_lm, config, FSDPConfig())
    written = sum(path.stat().st_size for path in (tmp_path / "checkpoint").glob("*.distcp"))
    assert estimate == pytest.approx(written, rel=0.15)  # beside the numbers, 2 kB a tensor


def test_a_resumed_run_follows_the_present_learning_rate(tiny_model_path, single_rank, tmp_path):
    engine = make_engine(tiny_model_path, single_rank)
    step(engine, 0)
    engine.save_checkpoint(tmp_path / "checkpoint")
    changed = OptimConfig(lr=3e-3, lr_warmup_steps=3)
    other = make_engine(tiny_model_path, single_rank, optim=changed)
    other.load_checkpoint(tmp_path / "checkpoint")
    # one training step is done: the warm-up goes on at 2/4 and 3/4 of the new rate
    (group,) = other.optimizer.param_groups
    assert group["lr"] == pytest.approx(1.5e-3)
    rates = [step(other, seed)[2] for seed in (1, 2, 3)]
    assert rates == pytest.approx([1.5e-3, 2.25e-3, 3e-3])


def test_a_checkpoint_of_another_model_is_refused_in_a_sentence(
    tiny_model_path, single_rank, tmp_path
):
    make_engine(tiny_model_path, single_rank).save_checkpoint(tmp_path / "actor")
    other = make_engine(tiny_model_path, single_rank, lora_rank=2)
    with pytest.raises(UserError, match=r"cannot resume from .*Missing key.*lora.*start afresh"):
        other.load_checkpoint(tmp_path / "actor")


def test_saving_changes_nothing(tiny_model_path, single_rank, tmp_path):
    engine = make_engine(tiny_model_path, single_rank)
    before = {name: tensor.clone() for name, tensor in engine.full_state_dict().items()}
    engine.save_checkpoint(tmp_path / "checkpoint")  # before any step: the optimiser is empty
    after = engine.full_state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert step(engine, 1) == step(make_engine(tiny_model_path, single_rank), 1)


def test_the_schedule_counts_training_steps(tiny_model_path, single_rank):
    engine = make_engine(tiny_model_path, single_rank)
    rates = [step(engine, seed)[2] for seed in range(5)]
    assert rates == pytest.approx([1e-2 / 4, 2e-2 / 4, 3e-2 / 4, 1e-2, 1e-2])


def test_a_tied_weight_is_gathered_once(tiny_model_path, single_rank):
    names = make_engine(tiny_model_path, single_rank).full_state_dict()
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_without_an_optimiser_the_model_is_frozen(tiny_model_path, single_rank):
    engine = make_engine(tiny_model_path, single_rank, optim=None)
    assert not hasattr(engine, "optimizer")
    assert not any(parameter.requires_grad for parameter in engine.model.parameters())


def test_mixed_precision_computes_in_bfloat16_on_float32_weights(tiny_model_path, single_rank):
    fsdp = FSDPConfig(mixed_precision="bfloat16")
    engine = make_engine(tiny_model_path, single_rank, fsdp=fsdp)
    assert engine.model(torch.tensor([[4, 5, 6]])).logits.dtype == torch.bfloat16
    loss, _, _ = step(engine, 1)
    exact, _, _ = step(make_engine(tiny_model_path, single_rank), 1)
    assert loss == pytest.approx(exact, rel=0.05)
    assert loss != exact
    assert {tensor.dtype for tensor in engine.full_state_dict().values()} == {torch.float32}
