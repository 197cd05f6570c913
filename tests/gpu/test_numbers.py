"""Trainer and hf engine on this machine's device, a GPU where there is one, against float64.

No Ray and no environment: what a machine with nothing but PyTorch and transformers can check.
Rows R of P prompt tokens and up to T response tokens.
"""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
import torch
import torch.distributed as dist
from tensordict import TensorDict

from agent_system.types import SamplingParams
from verl.algorithms.aggregation import loss_normalizers
from verl.algorithms.entropy_control import StepContext
from verl.config.actor import ActorConfig, ActorRolloutRefConfig, RolloutConfig
from verl.config.model import FSDPConfig, MicroBatchConfig, ModelConfig
from verl.config.optim import OptimConfig
from verl.config.plan import EnginePlan, resolve_device
from verl.workers.actor.dp_actor import DataParallelPPOActor
from verl.workers.forward import forward_inputs, policy_forward
from verl.workers.model_loading import load_causal_lm
from verl.workers.rollout.engines import build_engine
from verl.workers.runtime import WorkerRuntime
from verl.workers.sharded_model import ShardedModel
from verl.workers.token_statistics import token_statistics
from verl.workers.update_context import UpdateContext
from verl.workers.weight_sync import WeightUpdate, pack_weights
from verl.workers.weight_sync.source import MergedWeights

DEVICE = resolve_device("auto")
ACTIVE = [40, 3, 25, 1, 17]
R, P, T = len(ACTIVE), 30, 40
TEMPERATURE = 0.8
on_a_gpu = pytest.mark.gpu
pytestmark = pytest.mark.slow
# largest distance in nats from float64: rounding of 8 bits in bfloat16 and of 24 in float32
TOLERANCE = {"float32": 2e-4, "bfloat16": 0.3}
MEAN_TOLERANCE = {"float32": 2e-5, "bfloat16": 0.06}
PRECISIONS = pytest.mark.parametrize("precision", TOLERANCE)


@pytest.fixture
def runtime():
    yield WorkerRuntime(DEVICE, seed=0, cpu_threads=torch.get_num_threads())
    if dist.is_initialized():
        dist.destroy_process_group()


def sharded_policy(path, runtime, fsdp=None, **model):
    load = partial(load_causal_lm, ModelConfig(path=path, **model))
    return ShardedModel(
        load, fsdp or FSDPConfig(mixed_precision="float32"), runtime, OptimConfig(lr=1e-3), 10
    )


def actor_of(sharded):
    return DataParallelPPOActor(ActorConfig(), sharded, temperature=TEMPERATURE)


@pytest.fixture(scope="module")
def batch():
    """Ragged rows of random words."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1] * count + [0] * (T - count) for count in ACTIVE])
    columns = {
        "input_ids": torch.randint(3, 512, (R, P + T), generator=generator),
        "attention_mask": torch.cat([torch.ones(R, P, dtype=torch.long), mask], dim=-1),
        "response_mask": mask,
        "old_log_probs": -6 + torch.randn(R, T, generator=generator),
        "advantages": torch.randn(R, T, generator=generator),
    }
    return TensorDict(columns, batch_size=[R])


@pytest.fixture(scope="module")
def reference(policy_path):
    """The policy in float64 on the CPU."""
    return load_causal_lm(ModelConfig(path=policy_path), torch.float64)


def context_of(batch):
    return UpdateContext(StepContext(0, 10), **loss_normalizers(batch["response_mask"]))


def measured(sharded, batch):
    return actor_of(sharded).compute_log_prob(batch, MicroBatchConfig(micro_batch_size_per_gpu=2))


def assert_near(got, want, precision):
    """Over the active tokens."""
    distance = (got.double() - want.double()).abs()
    assert distance.isfinite().all()
    assert distance.max() < TOLERANCE[precision]
    assert distance.mean() < MEAN_TOLERANCE[precision]


@PRECISIONS
def test_log_probs_and_entropies(policy_path, runtime, batch, reference, precision):
    got = measured(
        sharded_policy(policy_path, runtime, FSDPConfig(mixed_precision=precision)), batch
    )
    with torch.no_grad():
        want = policy_forward(reference, forward_inputs(batch, packed=False), TEMPERATURE)
    active = batch["response_mask"].bool()
    assert_near(got["log_probs"][active], want.log_prob_N[active], precision)
    assert_near(got["entropys"][active], want.entropy_N[active], precision)


@PRECISIONS
def test_gradients(policy_path, runtime, batch, reference, precision):
    sharded = sharded_policy(policy_path, runtime, FSDPConfig(mixed_precision=precision))
    sharded.model.train()
    inputs = forward_inputs(batch.to(sharded.device), packed=False)
    weight = batch["advantages"] / batch["response_mask"].sum()

    def loss_of(model, inputs):
        statistics = policy_forward(model, inputs, TEMPERATURE)
        both = statistics.log_prob_N + 0.1 * statistics.entropy_N
        return (both * weight.to(both.device)).sum()

    sharded.backward(loss_of(sharded.model, inputs))
    reference.zero_grad()
    loss_of(reference, forward_inputs(batch, packed=False)).backward()
    relative = {"float32": 1e-3, "bfloat16": 0.1}[precision]
    want = {name: p.grad for name, p in reference.named_parameters()}
    for name, parameter in sharded.model.named_parameters():
        assert parameter.grad is not None, name
        got = parameter.grad.full_tensor().cpu().double()
        assert (got - want[name]).norm() < relative * want[name].norm(), name


@PRECISIONS
def test_engine(policy_path, runtime, reference, precision):
    """Sampled tokens and their log-probs, at first and with trained weights."""
    dtype = getattr(torch, precision)
    config = ActorRolloutRefConfig(
        model=ModelConfig(path=policy_path), rollout=RolloutConfig(name="hf")
    )
    engine = build_engine(config, EnginePlan("hf", DEVICE, dtype, P + T))
    engine.start()
    try:
        engine_scores_as(engine, reference, precision)
        changed = load_causal_lm(ModelConfig(path=policy_path), torch.float64)
        with torch.no_grad():
            for index, parameter in enumerate(changed.parameters()):
                parameter.mul_(1.0 + 0.05 * (index % 3)).copy_(parameter.to(dtype))
        weights = {name: p.detach().to(dtype) for name, p in changed.named_parameters()}
        engine.load_weights(WeightUpdate(1, pack_weights(weights), None, None))
        engine_scores_as(engine, changed, precision)
    finally:
        engine.close()


def engine_scores_as(engine, model, precision):
    async def sample():
        prompts = [list(range(10 + row, 10 + row + 5 * (row + 1))) for row in range(R)]
        settings = [
            SamplingParams(max_tokens=T, temperature=TEMPERATURE, seed=row) for row in range(R)
        ]
        calls = [
            engine.generate(prompt, s, trajectory_id=str(row))
            for row, (prompt, s) in enumerate(zip(prompts, settings, strict=True))
        ]
        return list(zip(prompts, await asyncio.gather(*calls), strict=True))

    for prompt, generation in asyncio.run(sample()):
        row = torch.tensor([[*prompt, *generation.token_ids]])
        mask = torch.ones(1, len(generation.token_ids), dtype=torch.long)
        columns = {"input_ids": row, "attention_mask": torch.ones_like(row), "response_mask": mask}
        with torch.no_grad():
            want = policy_forward(model, forward_inputs(columns, packed=False), TEMPERATURE)
        assert_near(torch.tensor(generation.log_probs), want.log_prob_N[0], precision)


def trained(sharded, batch, steps=2):
    actor = actor_of(sharded)
    for _ in range(steps):
        metrics = actor.update_policy(batch, context_of(batch))
        assert metrics["actor/skipped_steps"].value == 0
    return {name: tensor.cpu() for name, tensor in sharded.full_state_dict().items()}


@on_a_gpu
@pytest.mark.parametrize("offload", ["param_offload", "optimizer_offload"])
def test_offload_changes_no_number(policy_path, runtime, batch, offload):
    want = trained(sharded_policy(policy_path, runtime), batch)
    fsdp = FSDPConfig(mixed_precision="float32", **{offload: True})
    got = trained(sharded_policy(policy_path, runtime, fsdp), batch)
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, atol=2e-6, rtol=1e-5)


def test_gradient_checkpointing_changes_no_number(policy_path, runtime, batch):
    want = trained(sharded_policy(policy_path, runtime), batch)
    saving = sharded_policy(policy_path, runtime, enable_gradient_checkpointing=True)
    for name, tensor in trained(saving, batch).items():
        torch.testing.assert_close(tensor, want[name], atol=2e-6, rtol=1e-5)


def test_a_checkpoint_goes_on_as_if_never_interrupted(policy_path, runtime, batch, tmp_path):
    first = sharded_policy(policy_path, runtime)
    trained(first, batch)
    first.save_checkpoint(tmp_path)
    want = trained(first, batch)
    second = sharded_policy(policy_path, runtime)
    second.load_checkpoint(tmp_path)
    for name, tensor in trained(second, batch).items():
        torch.testing.assert_close(tensor, want[name], atol=2e-6, rtol=1e-5)


def test_trained_adapters_equal_the_merged_model(policy_path, runtime, batch):
    model = ModelConfig(path=policy_path, lora_rank=8)
    adapted = sharded_policy(policy_path, runtime, lora_rank=8)
    before = measured(adapted, batch)["log_probs"]
    trained(adapted, batch, steps=4)
    after = measured(adapted, batch)["log_probs"]
    assert (after - before).abs().max() > 0.01
    merged = load_causal_lm(ModelConfig(path=policy_path), torch.float64)
    merged.load_state_dict(
        {name: tensor.double() for name, tensor in MergedWeights(adapted, model)().items()},
        strict=False,
    )
    with torch.no_grad():
        want = policy_forward(merged, forward_inputs(batch, packed=False), TEMPERATURE)
    active = batch["response_mask"].bool()
    assert_near(after[active], want.log_prob_N[active], "float32")


def test_statistics_of_a_large_vocabulary():
    """bfloat16 logits over 152,000 words; values and gradients."""
    tokens, words = 64, 151_936
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(tokens, words, generator=generator)).bfloat16()
    target = torch.randint(words, (tokens,), generator=generator)
    ours = logits.to(DEVICE).requires_grad_()
    got = token_statistics(ours, target.to(DEVICE), TEMPERATURE)
    (got.log_prob_N + 0.1 * got.entropy_N).sum().backward()

    exact = logits.double().detach().requires_grad_()
    log_p = (exact / TEMPERATURE).log_softmax(dim=-1)
    log_prob, entropy = log_p[torch.arange(tokens), target], -(log_p.exp() * log_p).sum(dim=-1)
    (log_prob + 0.1 * entropy).sum().backward()
    torch.testing.assert_close(got.log_prob_N.cpu().double(), log_prob, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.entropy_N.cpu().double(), entropy, atol=1e-4, rtol=0)
    assert ours.grad is not None and exact.grad is not None
    distance = (ours.grad.cpu().double() - exact.grad).norm()
    assert distance < 4e-3 * exact.grad.norm()  # it is returned in bfloat16
