"""Which way the weights take, what is gathered for it, and who is called when."""

from functools import partial

import pytest
import torch
from torch.distributed.tensor import DTensor

from verl.config.actor import ActorRolloutRefConfig, RolloutConfig
from verl.config.model import FSDPConfig, ModelConfig
from verl.config.plan import make_plan
from verl.config.root import PPOConfig
from verl.config.trainer import RunConfig
from verl.config.transport import resolve_transport, transport_environment
from verl.utils.errors import UserError
from verl.utils.patience import Patience
from verl.workers.model_loading import load_causal_lm
from verl.workers.sharded_model import ShardedModel
from verl.workers.weight_sync.client import Receivers, RolloutClient
from verl.workers.weight_sync.gather import full_parameters, sharded_parameters, wire_dtype
from verl.workers.weight_sync.sync import ObjectStoreSync, TransferSync, build_weight_sync

# --- which way they go ---------------------------------------------------------------------------


def rollout(**settings):
    return RolloutConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "device", "engine", "lora", "transport"),
    [
        ({}, "cuda", "vllm", False, "ipc"),
        ({"mode": "disaggregated"}, "cuda", "vllm", False, "nccl"),
        ({}, "cpu", "vllm", False, "object_store"),
        ({}, "cuda", "hf", False, "object_store"),
        ({}, "cuda", "vllm", True, "object_store"),  # adapters are small
        ({"check_weights": True}, "cuda", "vllm", False, "object_store"),
        ({"weight_sync": "object_store"}, "cuda", "vllm", False, "object_store"),
        ({"weight_sync": "ipc"}, "cuda", "vllm", False, "ipc"),
        ({"weight_sync": "nccl", "mode": "disaggregated"}, "cuda", "vllm", False, "nccl"),
    ],
)
def test_the_fastest_possible_transport_is_chosen(settings, device, engine, lora, transport):
    assert resolve_transport(rollout(**settings), device, engine, lora) == transport
    # a CUDA handle is a Python object, and vLLM pickles none unless it is told to
    pickles = transport_environment(transport).get("VLLM_ALLOW_INSECURE_SERIALIZATION") == "1"
    assert pickles == (transport == "ipc")


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
@pytest.mark.parametrize(
    ("settings", "device", "engine", "lora", "reason"),
    [
        ({}, "cpu", "vllm", False, "between GPUs, and this run is on cpu"),
        ({}, "cuda", "hf", False, "part of vLLM, and the engine is hf"),
        ({}, "cuda", "vllm", True, "a LoRA policy .* sends its adapters alone"),
        ({"check_weights": True}, "cuda", "vllm", False, "check_weights=true compares bytes"),
    ],
)
def test_impossible_transports_are_refused(transport, settings, device, engine, lora, reason):
    asked = rollout(weight_sync=transport, **settings)
    with pytest.raises(UserError, match=f"weight_sync={transport} is not .*{reason}.*to auto"):
        resolve_transport(asked, device, engine, lora)


@pytest.mark.parametrize(
    ("transport", "mode", "reason"),
    [
        ("nccl", "colocated", "share a GPU, which NCCL refuses"),
        ("ipc", "disaggregated", "share no GPU"),
    ],
)
def test_a_transport_serves_one_placement(transport, mode, reason):
    with pytest.raises(UserError, match=f"with rollout.mode={mode} .*{reason}"):
        resolve_transport(rollout(weight_sync=transport, mode=mode), "cuda", "vllm", False)


# --- gathering -----------------------------------------------------------------------------------


def test_gathered_parameters_are_a_checkpoint_in_the_engines_dtype(tiny_model_path, single_rank):
    load = partial(load_causal_lm, ModelConfig(path=tiny_model_path))
    engine = ShardedModel(load, FSDPConfig(), single_rank)
    want = engine.full_state_dict()
    with torch.no_grad():  # leaves the root module's weights gathered: no DTensors any more
        engine.model(torch.tensor([[3, 4]]))
    found = dict(full_parameters(engine.model, torch.bfloat16, torch.device("cpu")))
    assert list(found) == list(want)
    assert "model.embed_tokens.weight" in found and "lm_head.weight" not in found  # tied
    for name, tensor in found.items():
        assert not isinstance(tensor, DTensor)
        assert torch.equal(tensor, want[name].bfloat16())
    assert all(isinstance(shard, DTensor) for shard in sharded_parameters(engine.model).values())
    norms = full_parameters(
        engine.model, torch.float32, torch.device("cpu"), lambda name: name.endswith("norm.weight")
    )
    # 2 norms in each of 2 layers, and the last one
    assert len(list(norms)) == 5


def test_integers_keep_their_type():
    assert wire_dtype(torch.tensor([1]), torch.bfloat16) == torch.int64
    assert wire_dtype(torch.tensor([1.0]), torch.bfloat16) == torch.bfloat16


# --- the control plane of a transfer -------------------------------------------------------------


class Remote:
    """Stands for a rollout worker; a call happens when it is waited for."""

    def __init__(self, log, name, connected=True, error=None):
        self.log, self.name, self.connected, self.error = log, name, connected, error
        self.transfer = self  # worker.transfer.remote(...)

    def remote(self, stage, payload):
        return lambda: self._run(stage, payload)

    def _run(self, stage, payload):
        self.log.append((self.name, stage, payload))
        if self.error == stage:
            raise RuntimeError(f"{self.name} died")
        return self.connected


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(Patience, "results", lambda self, pending, what: [c() for c in pending])
    return []


def test_every_engine_gets_ranks_of_its_own(calls):
    receivers = Receivers((Remote(calls, "a"), Remote(calls, "b")), gpus_each=2)
    RolloutClient(receivers).init_weight_transfer_engine({"rank_offset": 1, "world_size": 5})
    # 1 sender + 2 engines * 2 GPUs = 5: ranks 1 and 2, then 3 and 4
    assert receivers.gpus == 4
    assert calls == [
        ("a", "connect", {"rank_offset": 1, "world_size": 5}),
        ("b", "connect", {"rank_offset": 3, "world_size": 5}),
    ]


def test_an_update_reaches_all_engines_stage_by_stage(calls):
    client = RolloutClient(Receivers((Remote(calls, "a"), Remote(calls, "b")), gpus_each=1))
    client.version = 4
    client.init_weight_transfer_engine({"packed": True})
    client.start_weight_update()
    client.update_weights({"names": ["w"]})
    client.finish_weight_update()
    assert calls == [
        (name, stage, payload)
        for stage, payload in (
            ("connect", {"packed": True}),
            ("start", None),
            ("update", {"names": ["w"]}),
            ("finish", 4),
        )
        for name in ("a", "b")
    ]


def test_an_error_of_one_engine_reaches_the_trainer(calls):
    workers = (Remote(calls, "a"), Remote(calls, "b", error="update"))
    client = RolloutClient(Receivers(workers, gpus_each=1))
    client.start_weight_update()
    with pytest.raises(RuntimeError, match="b died"):
        client.update_weights({})


class Trainers:
    def __init__(self, log):
        self.log = log

    def connect_rollouts(self, receivers):
        self.log.append(("connect_rollouts", receivers.gpus))
        for worker in receivers.workers:
            worker.connected = True

    def send_weights(self, version):
        self.log.append(("send_weights", version))

    def publish_weights(self, version):
        return [[f"update {version}"], []]  # rank 0 and another one


class Rollouts:
    def __init__(self, workers=()):
        self.workers = workers
        self.updates = []

    def update_weights(self, update):
        self.updates.append(update)

    def ask_for_weights(self, fetch):
        self.fetch = fetch


def test_engines_connect_once_and_again_after_a_restart(calls):
    workers = [Remote([], "a", connected=False), Remote([], "b", connected=False)]
    sync = transfer_sync(calls, Rollouts(workers))
    sync.sync(0)
    sync.sync(1)
    workers[1].connected = False  # it was started anew
    sync.sync(2)
    connect = ("connect_rollouts", 4)
    assert calls == [
        connect, ("send_weights", 0), ("send_weights", 1), connect, ("send_weights", 2),
    ]  # fmt: skip


def transfer_sync(calls, rollouts, trainers_wait=True):
    return TransferSync(Trainers(calls), rollouts, 2, Patience(), trainers_wait)


def test_a_lost_engine_gets_the_version_that_it_had(calls):
    rollouts = Rollouts()
    transfer_sync(calls, rollouts).sync(7)
    assert rollouts.fetch() == "update 7"


def test_weights_that_are_being_trained_are_not_given_to_a_lost_engine(calls):
    rollouts = Rollouts()
    transfer_sync(calls, rollouts, trainers_wait=False).sync(7)
    with pytest.raises(UserError, match=r"resumes from the last checkpoint.*object_store"):
        rollouts.fetch()


def test_the_object_store_carries_a_reference():
    rollouts = Rollouts()
    ObjectStoreSync(Trainers([]), rollouts).sync(3)
    assert rollouts.updates == ["update 3"]


@pytest.mark.parametrize(
    ("settings", "device", "kind"),
    [({"name": "hf"}, "cpu", ObjectStoreSync), ({"name": "vllm"}, "cuda", TransferSync)],
)
def test_the_configuration_chooses_the_way(settings, device, kind):
    policy = ActorRolloutRefConfig(rollout=rollout(tensor_model_parallel_size=2, **settings))
    run = RunConfig(device=device)
    config = PPOConfig(epo=None, env=None, actor_rollout_ref=policy, trainer=run)
    sync = build_weight_sync(config, make_plan(config), Trainers([]), Rollouts())
    assert isinstance(sync, kind)
    if kind is TransferSync:
        assert sync.gpus_each == 2
