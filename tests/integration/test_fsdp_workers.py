"""The FSDP workers on a real Ray cluster: 1 rank and 2 ranks train alike and share checkpoints."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
import torch
from peft import set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from agent_system.types import SamplingParams
from verl import DataProto
from verl.algorithms.aggregation import loss_normalizers
from verl.algorithms.entropy_control import StepContext
from verl.config.actor import ActorConfig, ActorRolloutRefConfig, RolloutConfig
from verl.config.critic import CriticConfig, CriticModelConfig
from verl.config.model import ModelConfig
from verl.config.optim import OptimConfig
from verl.config.plan import EnginePlan, make_plan
from verl.config.root import PPOConfig
from verl.single_controller.base.decorator import Dispatch, register
from verl.single_controller.ray.base import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
    create_colocated_worker_cls,
)
from verl.utils.patience import Patience
from verl.workers.fsdp_workers import CriticWorker, PolicyWorker
from verl.workers.model_loading import load_causal_lm
from verl.workers.rollout.engines import build_engine
from verl.workers.runtime import WorkerRuntime
from verl.workers.update_context import UpdateContext
from verl.workers.weight_sync import LoraAdapter
from verl.workers.weight_sync.client import RolloutClient
from verl.workers.weight_sync.sync import TransferSync

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VOCABULARY, R, P, T = 40, 8, 5, 6
TEMPERATURE = 0.9
# rows of the second half, rank 1's share, are nearly all padding: its micro-batches are fewer
ACTIVE = [6, 5, 6, 4, 3, 0, 0, 0]


class MeanEntropy:
    """A regulariser with a partial sum that is easy to add up."""

    required_columns = ("trajectory_weight",)

    def __call__(self, entropy, mask, columns, context):
        term = -0.1 * (columns["trajectory_weight"] * entropy).sum()
        return term, {"plugin/term": term.detach(), "plugin/tokens": mask.sum()}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=12, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, write_policy):
    return write_policy(
        tmp_path_factory.mktemp("policy"),
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )


def actor_config(path, engine="hf", **model):
    return ActorRolloutRefConfig(
        model=ModelConfig(path=path, **model),
        rollout=RolloutConfig(name=engine, temperature=TEMPERATURE),
        actor=ActorConfig(
            ppo_micro_batch_size_per_gpu=2,
            use_kl_loss=True,
            kl_loss_coef=0.1,
            optim=OptimConfig(lr=1e-3, lr_warmup_steps=2, warmup_style="cosine"),
        ),
    )


def plan_for(engine, has_adapters):
    """Transfers are asked for where a test replaces the sender."""
    transport, adapters = "nccl", has_adapters and engine == "vllm"
    engine_plan = EnginePlan(engine, "cpu", torch.float32, P + T, transport, adapters)
    return replace(make_plan(PPOConfig()), engine=engine_plan, has_reference=True)


def start(path, ranks, lora_rank=0, engine="hf", actor_class=PolicyWorker):
    """Actor and critic, colocated, on `ranks` processes."""
    runtime = WorkerRuntime("cpu", seed=1, cpu_threads=1)
    critic = CriticConfig(
        model=CriticModelConfig(path=path, load_method="auto"), optim=OptimConfig(lr=1e-3)
    )
    actor = RayClassWithInitArgs(
        ray.remote(actor_class),
        actor_config(path, engine, lora_rank=lora_rank),
        plan_for(engine, has_adapters=lora_rank > 0),
        runtime,
        MeanEntropy(),
    )
    classes = {
        "actor": actor,
        "critic": RayClassWithInitArgs(ray.remote(CriticWorker), critic, runtime),
    }
    group = RayWorkerGroup(
        RayResourcePool([ranks], use_gpu=False), create_colocated_worker_cls(classes)
    )
    workers = group.spawn(prefix_set=classes.keys())
    for worker in workers.values():
        worker.init_model(10)
    return workers


@pytest.fixture(scope="module")
def one(model_path):
    return start(model_path, 1)


@pytest.fixture(scope="module")
def two(model_path):
    return start(model_path, 2)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1] * count + [0] * (T - count) for count in ACTIVE])
    columns = {
        "input_ids": torch.randint(2, VOCABULARY, (R, P + T), generator=generator),
        "attention_mask": torch.cat([torch.ones(R, P, dtype=torch.long), mask], dim=-1),
        "response_mask": mask,
        "advantages": torch.randn(R, T, generator=generator),
        "returns": torch.randn(R, T, generator=generator),
        "trajectory_weight": mask / mask.sum(),
    }
    return DataProto.from_dict(columns)


def metrics_of(ranks):
    """The metrics of a step; every rank reports the same."""
    first, *others = [
        {name: m.value for name, m in metrics.items() if not name.startswith("perf/")}
        for metrics in ranks
    ]
    assert all(other == pytest.approx(first, rel=0, abs=0, nan_ok=True) for other in others)
    return first


def weights_of(workers):
    return unpacked(ray.get(workers["actor"].publish_weights(1)[0][0]))


def unpacked(update):
    return {
        name: torch.from_numpy(content.copy()).view(getattr(torch, dtype)).view(shape)
        for name, (dtype, shape, content) in update.tensors.items()
    }


def training_step(workers, batch):
    """Score, update both, advance the schedules; returns all that must not depend on the ranks."""
    actor, critic = workers["actor"], workers["critic"]
    step = StepContext(step=0, total_steps=10)
    context = UpdateContext(step, **loss_normalizers(batch.batch["response_mask"]))
    scored = DataProto.from_dict(dict(batch.batch.items()))
    for result in (
        actor.compute_log_prob(batch),
        actor.compute_ref_log_prob(batch),
        critic.compute_values(batch),
    ):
        scored = scored.union(result)
    metrics = metrics_of(critic.update_critic(scored, context))
    metrics |= metrics_of(actor.update_actor(scored, context))
    metrics["lr"] = actor.step_lr()[0]
    critic.step_lr()
    columns = ("old_log_probs", "entropys", "ref_log_prob", "values")
    return {name: scored.batch[name] for name in columns}, metrics


def assert_close(first, second, atol=1e-5):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, float):
            assert second[name] == pytest.approx(value, rel=1e-4, abs=atol), name
        else:
            torch.testing.assert_close(
                second[name], value, atol=atol, rtol=1e-4, msg=lambda text, name=name: name + text
            )


def test_one_rank_and_two_ranks_train_alike_and_share_checkpoints(
    one, two, batch, model_path, tmp_path
):
    assert_close(weights_of(one), weights_of(two), atol=0)
    for _ in range(3):
        columns, metrics = training_step(one, batch)
        other_columns, other_metrics = training_step(two, batch)
        assert_close(columns, other_columns)
        assert_close(metrics, other_metrics)
    # 24 active tokens in the whole batch, whatever the ranks
    assert metrics["plugin/tokens"] == sum(ACTIVE)
    assert metrics["actor/skipped_steps"] == 0.0
    assert metrics["lr"] == pytest.approx(1e-3)  # two steps of warm-up are over
    assert_close(weights_of(one), weights_of(two))

    # a checkpoint of two ranks goes on, on two ranks and on one, as if never interrupted
    for name in ("actor", "critic"):
        two[name].save_checkpoint(str(tmp_path / name))
    want_columns, want = training_step(two, batch)
    want_weights = weights_of(two)
    for workers in (two, one):
        for _ in range(2):
            training_step(workers, batch)  # away from the checkpoint
        for name in ("actor", "critic"):
            workers[name].load_checkpoint(str(tmp_path / name))
        columns, metrics = training_step(workers, batch)
        atol = 0 if workers is two else 1e-5
        assert_close(want_columns, columns, atol)
        assert_close(want, metrics, atol)
        assert_close(want_weights, weights_of(workers), atol)

    # what is exported is what is published
    two["actor"].export_hf(str(tmp_path / "exported"))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").state_dict()
    for name, tensor in weights_of(two).items():
        assert torch.equal(exported[name], tensor)


def test_a_broken_batch_is_skipped_on_all_ranks(two, batch):
    before = weights_of(two)
    broken = DataProto.from_dict({name: column.clone() for name, column in batch.batch.items()})
    broken.batch["advantages"][0, 0] = float("nan")  # on rank 0 alone
    _, metrics = training_step(two, broken)
    assert metrics["actor/skipped_steps"] == 1.0
    assert_close(before, weights_of(two), atol=0)


def test_published_weights_are_sampled_from(two, batch, model_path):
    engine = build_engine(actor_config(model_path), EnginePlan("hf", "cpu", torch.float32, P + T))
    engine.start()
    prompt = batch.batch["input_ids"][0, :P].tolist()
    sampling = SamplingParams(max_tokens=T, temperature=TEMPERATURE, seed=3)

    def sample():
        return asyncio.run(engine.generate(prompt, sampling, trajectory_id="t"))

    stale = sample()
    engine.load_weights(ray.get(two["actor"].publish_weights(7)[0][0]))
    fresh = sample()
    engine.close()
    assert (stale.weight_version, fresh.weight_version) == (0, 7)
    assert stale.log_probs != fresh.log_probs

    # the trainer's log-probs of these tokens, with the engine's own beside them
    count = len(fresh.token_ids)
    ids = torch.full((2, P + T), 2)
    ids[:, : P + count] = torch.tensor([*prompt, *fresh.token_ids])
    mask = (torch.arange(T) < count).long().expand(2, T)
    rows = {
        "input_ids": ids,
        "attention_mask": torch.cat([torch.ones(2, P, dtype=torch.long), mask], dim=-1),
        "response_mask": mask,
    }
    data = DataProto.from_dict(rows)
    log_probs = two["actor"].compute_log_prob(data).batch["old_log_probs"][0, :count]
    torch.testing.assert_close(torch.tensor(fresh.log_probs), log_probs, atol=1e-4, rtol=0)


def test_adapters_train_alike_on_two_ranks_and_are_published_merged(model_path, batch, tmp_path):
    groups = [start(model_path, ranks, lora_rank=2) for ranks in (1, 2)]
    base = AutoModelForCausalLM.from_pretrained(model_path).state_dict()
    assert_close(weights_of(groups[0]), {k: base[k] for k in weights_of(groups[0])}, atol=0)
    for _ in range(2):
        results = [training_step(workers, batch) for workers in groups]
        assert_close(results[0][0], results[1][0])
        assert_close(results[0][1], results[1][1])
    merged = [weights_of(workers) for workers in groups]
    assert_close(*merged)
    changed = {name for name, tensor in merged[0].items() if not torch.equal(tensor, base[name])}
    assert changed and all("proj" in name for name in changed)
    assert results[0][1]["actor/kl_loss"] >= 0.0


@pytest.mark.vllm
def test_vllm_gets_the_adapters_alone(model_path, batch):
    workers = start(model_path, 2, lora_rank=2, engine="vllm")
    for _ in range(2):  # the rate of the first step is 0
        training_step(workers, batch)
    update = ray.get(workers["actor"].publish_weights(5)[0][0])
    assert (update.version, update.adapter) == (5, LoraAdapter(rank=2, alpha=16))
    found = unpacked(update)
    # 7 linear layers in each of 2 blocks, two matrices each
    assert len(found) == 2 * 7 * 2
    assert all(".lora_A.weight" in name or ".lora_B.weight" in name for name in found)
    with_adapters = load_causal_lm(ModelConfig(path=model_path, lora_rank=2), torch.float32)
    loaded = set_peft_model_state_dict(with_adapters, found)
    assert not loaded.unexpected_keys
    assert any(tensor.abs().sum() > 0 for name, tensor in found.items() if "lora_B" in name)


class FakeSender:
    """The trainer's end of a transfer, without GPUs: sends what it gathers inside the calls."""

    def __init__(self, transport, source, receivers, rank, meeting_point):
        assert transport == "nccl" and meeting_point[1].isdigit()
        self.client = RolloutClient(receivers)
        self.source, self.rank = source, rank
        if rank == 0:
            self.client.init_weight_transfer_engine({"rank_offset": 1})

    def send(self, version):
        weights = {name: tensor.clone() for name, tensor in self.source}  # all ranks gather
        declared = {meta.name: (meta.dtype, meta.shape) for meta in self.source.metadata()}
        assert declared == {n: (t.dtype, tuple(t.shape)) for n, t in weights.items()}
        if self.rank == 0:
            self.client.version = version
            self.client.start_weight_update()
            self.client.update_weights(weights)
            self.client.finish_weight_update()

    def close(self):
        if self.rank == 0:
            self.client.update_weights("closed")


class SendingWorker(PolicyWorker):
    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def use_fake_sender(self):
        from verl.workers.weight_sync import sender

        sender.WeightSender = FakeSender


@ray.remote
class Receiver:
    """A rollout worker that only writes down what it is told."""

    def __init__(self):
        self.calls, self.connected = [], False

    def transfer(self, stage, payload):
        self.calls.append((stage, payload))
        self.connected |= stage == "connect"
        return self.connected

    def restart(self):
        self.connected = False

    def heard(self):
        calls, self.calls = self.calls, []
        return [(stage, payload) for stage, payload in calls if stage != "look"]


@pytest.mark.vllm
def test_a_transfer_sends_whole_weights_to_every_engine_in_order(model_path, batch):
    workers = start(model_path, 2, engine="vllm", actor_class=SendingWorker)
    actor = workers["actor"]
    actor.use_fake_sender()
    receivers = [Receiver.remote() for _ in range(2)]
    rollouts = SimpleNamespace(workers=receivers, ask_for_weights=lambda fetch: None)
    sync = TransferSync(actor, rollouts, gpus_each=2, patience=Patience(), trainers_wait=True)
    training_step(workers, batch)
    sync.sync(3)
    want = weights_of(workers)
    for index, receiver in enumerate(receivers):
        (connect, info), start_call, (update, weights), finish = ray.get(receiver.heard.remote())
        assert (connect, start_call, update, finish) == (
            "connect", ("start", None), "update", ("finish", 3),
        )  # fmt: skip
        assert info == {"rank_offset": 1 + 2 * index}
        assert_close(want, weights, atol=0)
    ray.get(receivers[1].restart.remote())
    sync.sync(4)
    stages = [stage for stage, _ in ray.get(receivers[0].heard.remote())]
    assert stages == ["update", "connect", "start", "update", "finish"]  # closed, and anew
    sync.sync(5)
    stages = [stage for stage, _ in ray.get(receivers[0].heard.remote())]
    assert stages == ["start", "update", "finish"]
