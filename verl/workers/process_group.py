"""The process group of a worker's ranks, and where they meet."""

from __future__ import annotations

import os
import socket

import torch
import torch.distributed as dist
from torch.distributed import (  # torch has no __all__
    HashStore,  # pyright: ignore[reportPrivateImportUsage]
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)

from verl.workers.runtime import WorkerRuntime


def join_process_group(runtime: WorkerRuntime) -> None:
    """Join the group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe.

    Without these variables the process is a group of its own. A second call does nothing.
    """
    if dist.is_initialized():
        return
    if runtime.device == "cpu":
        torch.set_num_threads(runtime.cpu_threads)
    else:
        # Ray shows each worker its own GPU only, torchrun shows all of them
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if "RANK" not in os.environ:
        store = HashStore()
        dist.init_process_group(runtime.backend, store=store, rank=0, world_size=1)
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's own
        dist.init_process_group(runtime.backend)
    else:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = meeting_store(rank, world_size)
        dist.init_process_group(runtime.backend, store=store, rank=rank, world_size=world_size)


def meeting_store(rank: int, world_size: int) -> TCPStore:
    """Rank 0's store at MASTER_ADDR and MASTER_PORT.

    It listens at that address alone, on one machine the loopback; a store that torch opens by
    itself listens at all addresses of the machine, and asks nobody who they are.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank != 0:
        return TCPStore(host, port, world_size)
    listener = socket.create_server((host, port))
    return TCPStore(host, port, world_size, is_master=True, master_listen_fd=listener.detach())
