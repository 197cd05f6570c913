"""What runs in vLLM's worker processes. Imports only what they need."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
from safetensors import safe_open
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

from verl.workers.weight_sync.packing import checksum, pack_weights

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class WeightReceiver:
    """Mixed into vLLM's worker; its methods are called with `collective_rpc`."""

    model_runner: GPUModelRunner  # of that worker

    def checksum_of_file(self, path: str) -> int:
        """`packing.checksum` of the weights in a safetensors file, as this process reads them."""
        return checksum(pack_weights(dict(_weights(path))))

    def reload_from_file(self, path: str) -> None:
        """Replace all weights in place, converting and re-packing them as vLLM needs them.

        What `reload_weights` leaves as it was on a CPU: the packed copy with which a head that is
        tied to the embedding computes; and experts unpacked, which are packed with their kernel.
        """
        model = self.model_runner.get_model()
        packed = list(_packed_experts(model))
        for experts in packed:
            experts.moe_kernel = None  # so that it is made anew
        self.model_runner.reload_weights(weights_iterator=_weights(path))
        if any(experts.moe_kernel is None for experts in packed):
            raise RuntimeError(f"vLLM's {type(model).__name__} kept the experts that it had")
        for layer in model.modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)

    def end_with_owner(self, owner_pid: int, engine_pid: int) -> None:
        """From now on vLLM's engine process and this one end when their owner has ended, even if
        it was killed: vLLM would wait for its next request forever."""
        owner, engine = psutil.Process(owner_pid), psutil.Process(engine_pid)
        threading.Thread(
            target=_end_after, args=(owner, [engine, psutil.Process()]), daemon=True
        ).start()


def _end_after(owner: psutil.Process, processes: list[psutil.Process]) -> None:
    owner.wait()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _packed_experts(model: nn.Module) -> Iterator[FusedMoEMethodBase]:
    if current_platform.is_cpu():
        for layer in model.modules():
            if isinstance(layer, RoutedExperts) and layer.quant_method.moe_kernel is not None:
                yield layer.quant_method


def _weights(path: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  safe_open is not a mapping
            yield name, file.get_tensor(name)
