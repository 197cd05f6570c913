"""What a worker needs to know about the machine it runs on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerRuntime:
    """Decided once on the driver. `backend` is the collective library that fits `device`."""

    device: str  # cuda | cpu
    seed: int = 0
    cpu_threads: int = 1

    @property
    def backend(self) -> str:
        return "nccl" if self.device == "cuda" else "gloo"
