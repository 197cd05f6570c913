"""What a worker needs to know about the machine it runs on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerRuntime:
    """Decided once on the driver. `backend` names the collective libraries that fit `device`."""

    device: str  # cuda | cpu
    seed: int = 0
    cpu_threads: int = 1

    @property
    def backend(self) -> str:
        # offloaded gradients and counts of micro-batches are reduced on the CPU
        return "cpu:gloo,cuda:nccl" if self.device == "cuda" else "gloo"
