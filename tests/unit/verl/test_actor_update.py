"""The actor's loss, its gradients and its step, on one rank with a tiny model. R 6 rows, T 5."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from tensordict import TensorDict

from verl.algorithms.aggregation import loss_normalizers
from verl.algorithms.entropy_control import StepContext
from verl.algorithms.kl import full_kl
from verl.config.actor import ActorConfig
from verl.config.model import FSDPConfig, MicroBatchConfig, ModelConfig
from verl.config.optim import OptimConfig
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
from verl.utils.errors import UserError
from verl.utils.metrics import reduced
from verl.workers.actor.dp_actor import DataParallelPPOActor
from verl.workers.actor.reference import ReferencePolicy
from verl.workers.forward import forward_inputs, policy_forward
from verl.workers.model_loading import load_causal_lm
from verl.workers.sharded_model import ShardedModel
from verl.workers.update_context import UpdateContext

P, T = 4, 5
ACTIVE = [5, 3, 4, 1, 5, 2]
TEMPERATURE = 0.8


def make_engine(path, runtime, optim=None, **model):
    load = partial(load_causal_lm, ModelConfig(path=path, **model))
    return ShardedModel(load, FSDPConfig(), runtime, optim or OptimConfig(lr=1e-2), total_steps=10)


def make_batch(extra_padding_rows=0):
    generator = torch.Generator().manual_seed(3)
    rows = len(ACTIVE) + extra_padding_rows
    mask = torch.zeros(rows, T, dtype=torch.long)
    for row, count in enumerate(ACTIVE):
        mask[row, :count] = 1
    return TensorDict(
        {
            "input_ids": torch.randint(3, 60, (rows, P + T), generator=generator),
            "attention_mask": torch.cat([torch.ones(rows, P, dtype=torch.long), mask], dim=-1),
            "response_mask": mask,
            "old_log_probs": -4 + torch.randn(rows, T, generator=generator),
            "ref_log_prob": -4 + torch.randn(rows, T, generator=generator),
            "advantages": torch.randn(rows, T, generator=generator),
            "weight": mask / mask.sum(),
        },
        batch_size=[rows],
    )


def context_of(batch):
    step = StepContext(step=2, total_steps=9)
    return UpdateContext(step, **loss_normalizers(batch["response_mask"]))


def make_actor(config, engine, **options):
    return DataParallelPPOActor(config, engine, temperature=TEMPERATURE, **options)


def update(actor, batch, context=None):
    """One optimiser step; the metrics as numbers."""
    return reduced([actor.update_policy(batch, context or context_of(batch))])


def gradients_of(actor, engine, batch):
    """The gradients that a step would use; the step itself is left out."""
    caught = {}

    def catch():
        for name, parameter in engine.model.named_parameters():
            if parameter.grad is not None:
                caught[name] = parameter.grad.full_tensor().clone()
        return original()

    original, engine.optimizer_step = engine.optimizer_step, catch
    metrics = update(actor, batch)
    return caught, metrics


class Entropy:
    """A regulariser: 0.5 * weighted mean of the entropy."""

    required_columns = ("weight",)
    seen = None

    def __call__(self, entropy, mask, columns, context):
        self.seen = context
        term = 0.5 * (columns["weight"] * entropy).sum()
        return term, {"entropy/term": term.detach()}


FULL = dict(use_kl_loss=True, entropy_coeff=0.05, loss_agg_mode="seq-mean-token-mean")


@pytest.mark.parametrize(
    "cut",
    [
        {"ppo_micro_batch_size_per_gpu": 1},
        {"ppo_micro_batch_size_per_gpu": 4},
        {"use_dynamic_bsz": True, "ppo_max_token_len_per_gpu": 20},
    ],
    ids=["rows 1", "rows 4", "tokens 20"],
)
@pytest.mark.parametrize("plugin", [False, True], ids=["bonus", "regulariser"])
def test_micro_batches_change_neither_gradients_nor_metrics(
    tiny_model_path, single_rank, cut, plugin
):
    def run(**options):
        engine = make_engine(tiny_model_path, single_rank)
        regularizer = Entropy() if plugin else None
        actor = make_actor(ActorConfig(**FULL, **options), engine, regularizer=regularizer)
        return gradients_of(actor, engine, make_batch())

    want, want_metrics = run()
    got, metrics = run(**cut)
    assert want.keys() == got.keys() and len(want) > 10
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-5, rtol=1e-4)
    for name, value in want_metrics.items():
        if not name.startswith("perf/"):
            assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("packed", [False, True])
def test_packing_changes_no_gradient(tiny_model_path, single_rank, packed):
    engine = make_engine(tiny_model_path, single_rank)
    actor = make_actor(ActorConfig(), engine, packed=packed)
    got, _ = gradients_of(actor, engine, make_batch())
    plain = load_causal_lm(ModelConfig(path=tiny_model_path), torch.float32)
    batch = make_batch()
    log_prob = policy_forward(plain, forward_inputs(batch, packed=False), TEMPERATURE).log_prob_N
    pg_loss(batch, log_prob).backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, atol=1e-5, rtol=1e-4)


def pg_loss(batch, log_prob):
    loss, _ = compute_policy_loss_vanilla(
        batch["old_log_probs"],
        log_prob,
        batch["advantages"],
        batch["response_mask"],
        config=ActorConfig(),
        **loss_normalizers(batch["response_mask"]),
    )
    return loss


def test_without_a_plugin_the_step_is_bit_identical_to_plain_ppo(tiny_model_path, single_rank):
    engine = make_engine(tiny_model_path, single_rank)
    batch = make_batch()
    actor = make_actor(ActorConfig(), engine)
    metrics = update(actor, batch)

    plain = make_engine(tiny_model_path, single_rank)
    plain.model.train()
    longest_first = batch[torch.tensor(ACTIVE).argsort(descending=True, stable=True)]
    inputs = forward_inputs(longest_first, packed=False)
    loss = pg_loss(longest_first, policy_forward(plain.model, inputs, TEMPERATURE).log_prob_N)
    plain.backward(loss)
    plain.optimizer_step()

    assert metrics["actor/loss"] == metrics["actor/pg_loss"] == loss.item()
    want = plain.full_state_dict()
    for name, tensor in engine.full_state_dict().items():
        assert torch.equal(tensor, want[name]), name


def test_rollout_weights_weigh_the_policy_loss_alone(tiny_model_path, single_rank):
    weight = torch.rand(len(ACTIVE), T, generator=torch.Generator().manual_seed(5)) * 2
    weight[0] = 0.0  # a masked row

    def update(batch):
        engine = make_engine(tiny_model_path, single_rank)
        actor = make_actor(ActorConfig(**FULL), engine, regularizer=Entropy())
        return gradients_of(actor, engine, batch)

    plain, plain_metrics = update(make_batch())
    weighted = make_batch()
    weighted["rollout_is_weights"] = weight
    got, metrics = update(weighted)
    scaled = make_batch()
    scaled["advantages"] *= weight
    want, want_metrics = update(scaled)
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-6, rtol=1e-5)
    assert any(not torch.allclose(got[name], plain[name], rtol=1e-3) for name in got)
    assert metrics["actor/pg_loss"] == pytest.approx(want_metrics["actor/pg_loss"], rel=1e-5)
    for name in ("actor/kl_loss", "entropy/term", "actor/ppo_kl", "actor/pg_clipfrac"):
        assert metrics[name] == plain_metrics[name], name


@pytest.mark.parametrize("loss_mode", ["vanilla", "gspo", "geo_mean"])
def test_rollout_weights_of_one_change_nothing(tiny_model_path, single_rank, loss_mode):
    def update(batch):
        engine = make_engine(tiny_model_path, single_rank)
        config = ActorConfig()
        config.policy_loss.loss_mode = loss_mode
        return gradients_of(make_actor(config, engine), engine, batch)

    want, want_metrics = update(make_batch())
    weighted = make_batch()
    weighted["rollout_is_weights"] = torch.ones(len(ACTIVE), T)
    got, metrics = update(weighted)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert metrics["actor/loss"] == want_metrics["actor/loss"]


def test_the_regulariser_replaces_the_entropy_bonus(tiny_model_path, single_rank):
    batch = make_batch()
    engine = make_engine(tiny_model_path, single_rank)
    regularizer = Entropy()
    config = ActorConfig(entropy_coeff=0.3)  # must not be applied as well
    actor = make_actor(config, engine, regularizer=regularizer)
    metrics = update(actor, batch)
    # token-mean: `weight` is 1 / tokens, so the term is 0.5 * actor/entropy
    assert metrics["entropy/term"] == pytest.approx(0.5 * metrics["actor/entropy"], rel=1e-5)
    total = metrics["actor/pg_loss"] + metrics["entropy/term"]
    assert metrics["actor/loss"] == pytest.approx(total, abs=1e-6)
    assert regularizer.seen == StepContext(step=2, total_steps=9)


def test_loss_is_the_sum_of_its_terms(tiny_model_path, single_rank):
    batch = make_batch()
    config = ActorConfig(use_kl_loss=True, kl_loss_coef=0.2, kl_loss_type="k2", entropy_coeff=0.1)
    engine = make_engine(tiny_model_path, single_rank)
    metrics = update(make_actor(config, engine), batch)
    total = (
        metrics["actor/pg_loss"] + 0.2 * metrics["actor/kl_loss"] - 0.1 * metrics["actor/entropy"]
    )
    assert metrics["actor/loss"] == pytest.approx(total, abs=1e-6)

    model = load_causal_lm(ModelConfig(path=tiny_model_path), torch.float32)
    with torch.no_grad():
        result = policy_forward(model, forward_inputs(batch, packed=False), TEMPERATURE)
    mask = batch["response_mask"].bool()
    kl = 0.5 * (result.log_prob_N - batch["ref_log_prob"])[mask].square().mean()
    assert metrics["actor/kl_loss"] == pytest.approx(kl.item(), rel=1e-4)
    entropy = result.entropy_N[mask].mean().item()
    assert metrics["actor/entropy"] == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_full_kl_reads_the_reference_distribution(tiny_model_path, single_rank, lora_rank):
    batch = make_batch()
    config = ActorConfig(use_kl_loss=True, kl_loss_type="full", kl_loss_coef=1.0)
    engine = make_engine(tiny_model_path, single_rank, lora_rank=lora_rank)
    frozen = engine
    if lora_rank == 0:
        load = partial(load_causal_lm, ModelConfig(path=tiny_model_path))
        frozen = ShardedModel(load, FSDPConfig(), single_rank)
    reference = ReferencePolicy(frozen, is_actor=lora_rank > 0)
    actor = make_actor(config, engine, reference=reference)

    first = update(actor, batch)
    assert first["actor/kl_loss"] == pytest.approx(0.0, abs=1e-6)
    moved = policy_logits(engine, batch)
    second = update(actor, batch)
    start = load_causal_lm(ModelConfig(path=tiny_model_path), torch.float32)
    with torch.no_grad():
        inputs = forward_inputs(batch, packed=False)
        ids = inputs.model_inputs["input_ids"]
        want = full_kl(moved / TEMPERATURE, flat_logits(start, ids, inputs) / TEMPERATURE)
    assert second["actor/kl_loss"] == pytest.approx(want.mean().item(), rel=1e-3)
    assert second["actor/kl_loss"] > 1e-4


def flat_logits(model, ids, inputs):
    return model(ids).logits.flatten(0, 1)[inputs.position_N]


def policy_logits(engine, batch):
    inputs = forward_inputs(batch, packed=False)
    with torch.no_grad():
        return flat_logits(engine.model, inputs.model_inputs["input_ids"], inputs)


def test_padding_rows_add_nothing(tiny_model_path, single_rank):
    def run(batch):
        engine = make_engine(tiny_model_path, single_rank)
        return gradients_of(make_actor(ActorConfig(**FULL), engine), engine, batch)

    want, want_metrics = run(make_batch())
    padded = make_batch()
    padded = torch.cat([padded, padded[:3].clone()])
    padded["response_mask"][-3:] = 0
    got, metrics = run(padded)
    for name in want:
        assert torch.equal(got[name], want[name])
    assert metrics["actor/loss"] == want_metrics["actor/loss"]


def test_a_batch_of_padding_alone_leaves_the_weights(tiny_model_path, single_rank):
    engine = make_engine(tiny_model_path, single_rank, OptimConfig(lr=1e-2, weight_decay=0.0))
    before = engine.full_state_dict()
    batch = make_batch()
    batch["response_mask"][:] = 0
    context = replace(context_of(batch), batch_num_tokens=1, global_batch_size=1)
    metrics = update(make_actor(ActorConfig(), engine), batch, context)
    assert metrics["actor/grad_norm"] == 0.0
    after = engine.full_state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_skips_the_step(tiny_model_path, single_rank, bad):
    engine = make_engine(tiny_model_path, single_rank)
    before = {name: tensor.clone() for name, tensor in engine.full_state_dict().items()}
    actor = make_actor(ActorConfig(), engine)
    batch = make_batch()
    batch["advantages"][0, 0] = bad
    assert update(actor, batch)["actor/skipped_steps"] == 1.0
    after = engine.full_state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not engine.optimizer.state  # no moment has seen it

    good = make_batch()  # and the gradients of the bad batch are gone
    assert update(actor, good)["actor/skipped_steps"] == 0.0
    other = make_engine(tiny_model_path, single_rank)
    update(make_actor(ActorConfig(), other), good)
    want = other.full_state_dict()
    for name, tensor in engine.full_state_dict().items():
        assert torch.equal(tensor, want[name])


def test_gradients_are_clipped_to_the_norm(tiny_model_path, single_rank):
    engine = make_engine(tiny_model_path, single_rank, OptimConfig(lr=1e-2, grad_clip=0.01))
    seen = []
    engine.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: seen.append(
            torch.nn.utils.get_total_norm([p.grad for p in engine.model.parameters()])
        )
    )
    batch = make_batch()
    metrics = update(make_actor(ActorConfig(), engine), batch)
    assert metrics["actor/grad_norm"] > 0.01
    assert float(seen[0].full_tensor()) == pytest.approx(0.01, rel=1e-3)


def test_log_probs_come_back_in_row_order(tiny_model_path, single_rank):
    engine = make_engine(tiny_model_path, single_rank)
    actor = make_actor(ActorConfig(), engine)
    batch = make_batch()
    batch["response_mask"][2] = 0  # a padding row in the middle
    got = actor.compute_log_prob(batch, MicroBatchConfig(2))
    plain = load_causal_lm(ModelConfig(path=tiny_model_path), torch.float32)
    with torch.no_grad():
        want = policy_forward(plain, forward_inputs(batch, packed=False), TEMPERATURE)
    torch.testing.assert_close(got["log_probs"], want.log_prob_N, atol=1e-5, rtol=0)
    torch.testing.assert_close(got["entropys"], want.entropy_N, atol=1e-5, rtol=0)
    assert not got["log_probs"].requires_grad


def test_unknown_loss_and_missing_reference_are_refused(tiny_model_path, single_rank):
    engine = make_engine(tiny_model_path, single_rank)
    config = ActorConfig()
    config.policy_loss.loss_mode = "ppo2"
    with pytest.raises(UserError, match=r"loss_mode=ppo2 is unknown; available: .*vanilla"):
        make_actor(config, engine)
    with pytest.raises(UserError, match="kl_loss_type=full needs the reference"):
        make_actor(ActorConfig(use_kl_loss=True, kl_loss_type="full"), engine)
