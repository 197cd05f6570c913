"""The trainer's end of vLLM's weight transfer (nccl, ipc). Imports vLLM; needs GPUs to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer import (
    ParamMeta,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.base import TrainerInitInfo
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from verl.workers.weight_sync.client import Receivers, RolloutClient
from verl.workers.weight_sync.gather import full_parameters, sharded_parameters, wire_dtype

Named = Iterable[tuple[str, Tensor]]

PACKED_BYTES = 256 * 2**20  # tensors travel together up to this size


class PolicySource(WeightSource):
    """The policy's weights under the names of its checkpoint, in the engines' dtype."""

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        to_checkpoint: Callable[[Named], Iterator[tuple[str, Tensor]]],
    ) -> None:
        """`to_checkpoint`: from the model's own names and shapes; `CheckpointNames.stream`."""
        self._model = model
        self._dtype = dtype
        self._device = device
        self._to_checkpoint = to_checkpoint

    def metadata(self) -> list[ParamMeta]:
        """Names, types and whole shapes; gathers nothing."""
        wholes = (
            (name, torch.empty(shard.shape, dtype=wire_dtype(shard, self._dtype), device="meta"))
            for name, shard in sharded_parameters(self._model).items()
        )
        return [
            ParamMeta(name, tensor.dtype, tuple(tensor.shape))
            for name, tensor in self._to_checkpoint(wholes)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self._to_checkpoint(full_parameters(self._model, self._dtype, self._device))


class WeightSender:
    """One trainer rank's end. Every rank has one, and every method is called on all ranks; rank 0
    talks to the engines."""

    def __init__(
        self,
        transport: str,
        source: PolicySource,
        receivers: Receivers,
        rank: int,
        meeting_point: tuple[str, str],
    ) -> None:
        """Connects; returns when every engine has joined. `meeting_point`: address and port."""
        self._client = RolloutClient(receivers)
        info = trainer_info(transport, source, receivers.gpus, rank, meeting_point)
        self._engine: TrainerWeightTransferEngine = WeightTransferTrainerFactory.trainer_init(
            info, client=self._client, source=source
        )

    def send(self, version: int) -> None:
        """Returns when every engine samples from the trainer's weights of now, as `version`."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # vLLM reads the weights on streams of its own
        self._client.version = version
        self._engine.send_weights()

    def close(self) -> None:
        """Leave the group; the engines leave it when they connect again."""
        self._engine.shutdown()


def trainer_info(
    transport: str, source: PolicySource, gpus: int, rank: int, meeting_point: tuple[str, str]
) -> TrainerInitInfo:
    """What vLLM has to know of rank `rank` of the trainer; `gpus` of the engines receive."""
    if transport == "nccl":
        address, port = meeting_point
        return NCCLTrainerInitInfo(
            master_address=address,
            master_port=int(port),
            world_size=1 + gpus,  # rank 0 of the trainer sends to all of them
            packed_buffer_size_bytes=PACKED_BYTES,
            rank=rank,
        )
    largest = max(math.prod(meta.shape) * meta.dtype.itemsize for meta in source.metadata())
    # Packed: otherwise every rank would hold a whole copy of the policy until all are loaded.
    return IPCTrainerInitInfo(
        packed=True, packed_buffer_size_bytes=max(PACKED_BYTES, largest), rank=rank
    )
