"""What the GPU paths call exists in the installed vLLM and takes what they give, without a GPU.

Wherever it can be, vLLM's own code runs here, with only NCCL and CUDA taken out of it.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

from verl.config.actor import ActorRolloutRefConfig, RolloutConfig
from verl.config.model import ModelConfig
from verl.config.plan import EnginePlan
from verl.config.transport import transport_environment
from verl.trainer.ppo.placement import engine_placement
from verl.utils.patience import Patience
from verl.workers.rollout.vllm_rollout.arguments import engine_args
from verl.workers.weight_sync.client import Receivers

pytestmark = pytest.mark.vllm


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.LayerNorm(4)


@pytest.fixture
def source():
    from verl.workers.weight_sync.sender import PolicySource

    return PolicySource(Policy(), torch.bfloat16, torch.device("cpu"), iter)


class Worker:
    """A rollout worker that writes down what it is told."""

    def __init__(self):
        self.calls = []
        self.transfer = SimpleNamespace(
            remote=lambda stage, payload: self.calls.append((stage, payload)) or object()
        )


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setattr(Patience, "results", lambda self, answers, what: list(answers))
    return Worker(), Worker()


@pytest.fixture
def nccl_sender(monkeypatch, source, workers):
    """vLLM's NCCL trainer engine without its communicator: what it would broadcast is in `sent`."""
    from vllm.distributed.weight_transfer import nccl_engine

    from verl.workers.weight_sync.sender import WeightSender

    sent = {}

    def broadcast(engine, source, meta):  # the sender's own check of iteration against metadata
        sent.update(engine._checked_iter(source, meta))

    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: None)
    monkeypatch.setattr(nccl_engine.NCCLTrainerWeightTransferEngine, "_broadcast", broadcast)
    sender = WeightSender("nccl", source, Receivers(workers, 2), 0, ("10.0.0.1", "20000"))
    return sender, sent


def test_nccl_sends_what_its_receiver_understands(nccl_sender, workers):
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    sender, sent = nccl_sender
    sender.send(7)
    for index, worker in enumerate(workers):
        (connect, info), start, (update, weights), finish = worker.calls
        assert (connect, start, update, finish) == (
            "connect", ("start", None), "update", ("finish", 7),
        )  # fmt: skip
        info = NCCLWeightTransferEngine.init_info_cls(**info)
        # 1 sender + 2 engines * 2 GPUs
        assert (info.rank_offset, info.world_size, info.packed) == (1 + 2 * index, 5, True)
        assert (info.master_address, info.master_port) == ("10.0.0.1", 20000)
        update = NCCLWeightTransferEngine.update_info_cls(**weights)
        assert update.names == list(sent) == ["embed.weight", "norm.weight", "norm.bias"]
        assert update.shapes == [[5, 4], [4], [4]] and set(update.dtype_names) == {"bfloat16"}
    assert all(tensor.dtype == torch.bfloat16 for tensor in sent.values())
    sender.close()


def test_other_ranks_gather_and_stay_silent(source, workers):
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

    from verl.workers.weight_sync.client import RolloutClient
    from verl.workers.weight_sync.sender import trainer_info

    info = trainer_info("nccl", source, 4, 1, ("", "1"))
    client = RolloutClient(Receivers(workers, 2))
    engine = WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
    engine.send_weights()
    assert workers[0].calls == [] and not engine.is_sender


def test_ipc_sends_packed_what_its_receiver_understands(monkeypatch, source, workers):
    from vllm.distributed.weight_transfer import ipc_engine
    from vllm.distributed.weight_transfer.packed_tensor import PackedIpcChunk, pack_tensors

    from verl.workers.weight_sync.sender import PACKED_BYTES, WeightSender

    def producer(iterator, gpu_uuid, post_iter_func, buffer_size_bytes):
        assert buffer_size_bytes == PACKED_BYTES  # larger than any tensor here
        chunk = pack_tensors(iterator, post_iter_func, buffer_size_bytes)
        names = [str(dtype).removeprefix("torch.") for dtype in chunk.dtypes]
        handle = {gpu_uuid: ("handle",)}
        yield PackedIpcChunk(chunk.names, chunk.shapes, names, chunk.tensor_sizes, handle)

    monkeypatch.setattr(ipc_engine, "packed_ipc_producer", producer)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    properties = SimpleNamespace(uuid="gpu")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    sender = WeightSender("ipc", source, Receivers(workers, 1), 0, ("", "1"))
    sender.send(2)
    for worker in workers:
        (_, info), start, (_, weights), finish = worker.calls
        assert ipc_engine.IPCWeightTransferEngine.init_info_cls(**info).packed
        update = ipc_engine.IPCWeightTransferEngine.update_info_cls(**weights)
        # 5 * 4 and twice 4 numbers of 2 bytes
        assert update.tensor_sizes == [40, 8, 8] and update.ipc_handles == {"gpu": ("handle",)}
        assert (start, finish) == (("start", None), ("finish", 2))


def test_ipc_makes_room_for_the_largest_tensor(source, monkeypatch):
    from verl.workers.weight_sync import sender

    monkeypatch.setattr(sender, "PACKED_BYTES", 10)
    assert sender.trainer_info("ipc", source, 1, 0, ("", "1")).packed_buffer_size_bytes == 40


def test_a_cuda_handle_reaches_vllms_process_only_as_a_pickle(monkeypatch):
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    handle = {"ipc_handles": {"gpu": (torch.Tensor, (5, 4), torch.bfloat16)}}
    ((name, value),) = transport_environment("ipc").items()
    monkeypatch.delenv(name, raising=False)
    with pytest.raises(TypeError, match=name):
        MsgpackEncoder().encode(handle)
    monkeypatch.setenv(name, value)
    decoded = MsgpackDecoder().decode(MsgpackEncoder().encode(handle))
    assert decoded["ipc_handles"]["gpu"][0] is torch.Tensor


# --- the engine's end ----------------------------------------------------------------------------


@pytest.fixture
def llm():
    """Refuses calls that the real AsyncLLM would refuse."""
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = create_autospec(AsyncLLM, instance=True)
    llm.is_sleeping.return_value = False
    return llm


def stages_of(llm, *stages):
    """The calls on `llm`, by name, of the stages of a transfer; and the receiver's last answer."""
    from verl.workers.weight_sync.receiver import TransferReceiver

    async def run():
        receiver = TransferReceiver(llm)
        for stage, payload in stages:
            answer = await receiver.handle(stage, payload)
        return answer

    answer = asyncio.run(run())
    return [call[0] for call in llm.mock_calls], answer


UPDATE = [("start", None), ("update", {"names": []}), ("update", {"names": []}), ("finish", 3)]


def test_an_engine_that_is_awake_pauses_for_an_update(llm):
    calls, connected = stages_of(llm, ("connect", {"packed": True}), *UPDATE)
    assert calls == [
        "init_weight_transfer_engine",
        "is_sleeping", "pause_generation", "start_weight_update",
        "update_weights", "update_weights",
        "finish_weight_update", "resume_generation",
    ]  # fmt: skip
    assert connected
    llm.finish_weight_update.assert_called_once_with(weight_version="3")
    assert llm.init_weight_transfer_engine.call_args.args[0].init_info == {"packed": True}
    assert llm.update_weights.call_args.args[0].update_info == {"names": []}
    # nothing may be left in the cache of what the old weights computed
    llm.pause_generation.assert_called_once_with(mode="wait", clear_cache=True)


def test_an_engine_that_sleeps_gets_its_weights_before_its_cache(llm):
    llm.is_sleeping.return_value = True
    calls, _ = stages_of(llm, *UPDATE)
    assert calls == [
        "is_sleeping", "wake_up", "start_weight_update", "update_weights", "update_weights",
        "finish_weight_update", "wake_up",
    ]  # fmt: skip
    tags = [call.kwargs["tags"] for call in llm.wake_up.mock_calls]
    assert tags == [["weights"], ["kv_cache"]]


def test_connecting_again_leaves_the_old_group(llm):
    calls, connected = stages_of(llm, ("connect", {}), ("connect", {}), ("look", None))
    assert connected
    join, leave = "init_weight_transfer_engine", "shutdown_weight_transfer_engine"
    assert calls == [join, leave, join]


def test_a_new_engine_is_not_connected(llm):
    assert stages_of(llm, ("look", None)) == ([], False)
    with pytest.raises(ValueError, match="unknown stage 'stop'"):
        stages_of(llm, ("stop", None))


def test_waking_up_resumes_only_what_is_wholly_awake():
    """What the stages above rely on, in vLLM's own engine core."""
    from vllm.v1.engine.core import EngineCore

    executor = SimpleNamespace(is_sleeping=True)
    core = SimpleNamespace(model_executor=executor, resumed=0)
    core.resume_scheduler = lambda: setattr(core, "resumed", core.resumed + 1)
    executor.wake_up = lambda tags: setattr(executor, "is_sleeping", tags == ["weights"])
    assert EngineCore.wake_up(core, ["weights"]) is False
    assert core.resumed == 0
    assert EngineCore.wake_up(core, ["kv_cache"]) is True
    assert core.resumed == 1


def test_a_paused_engine_says_that_it_sleeps_and_is_resumed_by_a_call_to_wake_up():
    """So whether an engine sleeps has to be asked before it is paused."""
    from vllm.v1.engine.core import EngineCore

    resumed = []
    executor = SimpleNamespace(is_sleeping=False, wake_up=lambda tags: None)
    core = SimpleNamespace(
        model_executor=executor,
        is_scheduler_paused=lambda: True,
        resume_scheduler=lambda: resumed.append(True),
    )
    assert EngineCore.is_sleeping(core) is True
    assert EngineCore.wake_up(core, ["weights"]) is True
    assert resumed == [True]


# --- starting an engine on GPUs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "transport", "backend"),
    [
        ({"tensor_model_parallel_size": 2}, "ipc", "ipc"),
        ({"mode": "disaggregated"}, "nccl", "nccl"),
        ({"free_cache_engine": False}, "object_store", None),
    ],
)
def test_engine_arguments_of_a_gpu_are_vllms(tmp_path, settings, transport, backend):
    from vllm.engine.arg_utils import AsyncEngineArgs

    config = ActorRolloutRefConfig(
        model=ModelConfig(path=str(tmp_path)), rollout=RolloutConfig(**settings)
    )
    plan = EnginePlan("vllm", "cuda", torch.bfloat16, 128, transport)
    args = AsyncEngineArgs(**engine_args(config, plan))
    assert getattr(args.weight_transfer_config, "backend", None) == backend
    many = config.rollout.tensor_model_parallel_size > 1
    assert args.distributed_executor_backend == ("ray" if many else None)
    is_colocated = config.rollout.mode == "colocated" and config.rollout.free_cache_engine
    assert args.enable_sleep_mode == is_colocated
    assert args.gpu_memory_utilization == 0.5


def test_vllms_ray_executor_reads_the_bundles(monkeypatch):
    from vllm import envs
    from vllm.v1.executor import ray_utils

    places = [SimpleNamespace(group="g", bundle=bundle) for bundle in (2, 3)]
    for name, value in engine_placement(places, 0.5).env_vars.items():
        monkeypatch.setenv(name, value)
    assert (envs.VLLM_RAY_BUNDLE_INDICES, envs.VLLM_RAY_PER_WORKER_GPUS) == ("2,3", 0.5)
    nodes = {"bundles_to_node_id": dict.fromkeys(range(4), "n")}
    monkeypatch.setattr(ray_utils, "placement_group_table", lambda group: nodes)
    alive = [{"NodeID": "n", "NodeManagerAddress": "ip", "Alive": True}]
    monkeypatch.setattr(ray_utils.ray, "nodes", lambda: alive)
    indices = [int(index) for index in envs.VLLM_RAY_BUNDLE_INDICES.split(",")]
    found = ray_utils.get_bundles_for_indices("g", indices, 2)
    assert found == [(2, "n", "ip"), (3, "n", "ip")]


def test_calls_that_only_a_gpu_makes_bind():
    from vllm.v1.engine.async_llm import AsyncLLM

    calls = [
        partial(inspect.signature(AsyncLLM.sleep).bind, None, level=2, mode="wait"),
        partial(inspect.signature(AsyncLLM.wake_up).bind, None, tags=["kv_cache"]),
        partial(
            inspect.signature(fully_shard).bind,
            Policy(),
            mesh=None,
            mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32),
            offload_policy=CPUOffloadPolicy(),
            reshard_after_forward=True,
        ),
    ]
    for call in calls:
        assert call().arguments
