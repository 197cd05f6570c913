"""A model sharded with FSDP2, its optimiser and schedule: what actor, critic and cloning use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from verl.config.model import FSDPConfig, compute_dtype, resolve_dtype
from verl.config.optim import OptimConfig
from verl.utils.errors import UserError, root_cause
from verl.utils.plain_values import load_plain
from verl.workers.checkpoint_reading import read_checkpoint
from verl.workers.optimizer import build_optimizer, build_schedule, resume_schedule
from verl.workers.process_group import join_process_group
from verl.workers.runtime import WorkerRuntime

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """One optimiser step: the gradient's norm over all ranks before clipping, and whether it was
    skipped because that norm is not finite."""

    grad_norm: float
    skipped: bool


class ShardedModel:
    """Owns a model on all ranks of the process group; every method is called on all of them.

    Parameters and optimiser keep `fsdp.dtype`, forward and backward compute in
    `fsdp.mixed_precision`, gradients are reduced in float32. Without `optim` the model is frozen.
    """

    optimizer: Optimizer  # a frozen model has neither of the two
    schedule: LambdaLR

    def __init__(
        self,
        load_model: Callable[..., PreTrainedModel],
        fsdp: FSDPConfig,
        runtime: WorkerRuntime,
        optim: OptimConfig | None = None,
        total_steps: int = 0,
    ) -> None:
        """Build and shard the model. The process group must exist (`join_process_group`).

        Args:
            load_model: called with (dtype, device=, empty=), as `load_causal_lm` after its config.
            total_steps: training steps of this model, for which its schedule plans.
        """
        join_process_group(runtime)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(runtime.seed + self.rank)  # rank 0 draws the initial adapters
        self.device = torch.device(runtime.device)
        self.offload = fsdp.param_offload and runtime.device == "cuda"
        self.offload_optimizer = (
            fsdp.optimizer_offload and runtime.device == "cuda" and not self.offload
        )
        self.mesh = init_device_mesh(runtime.device, (self.world_size,))
        self.model = self._load_sharded(load_model, fsdp, runtime.device)
        if optim is None:
            self.model.requires_grad_(False)
        else:
            self.grad_clip = optim.grad_clip
            self.optimizer = build_optimizer(self.model.parameters(), optim)
            self.schedule = build_schedule(self.optimizer, optim, total_steps)

    @property
    def group(self) -> dist.ProcessGroup:
        return self.mesh.get_group()

    def _load_sharded(
        self, load_model: Callable[..., PreTrainedModel], fsdp: FSDPConfig, device: str
    ) -> PreTrainedModel:
        """Rank 0 reads the weights and sends every rank its shard; the others never hold a copy."""
        dtype = resolve_dtype(fsdp.dtype, auto=torch.float32)
        model = load_model(dtype, device=device, empty=self.rank != 0)
        weights = model.state_dict() if self.rank == 0 else {}
        shard_model(model, self.mesh, fsdp, device, offload=self.offload)
        if self.world_size > 1:
            _allocate_shards(model, "cpu" if self.offload else device)
            options = StateDictOptions(
                full_state_dict=True, broadcast_from_rank0=True, cpu_offload=self.offload
            )
            set_model_state_dict(model, weights, options=options)
        return model

    # --- one update -----------------------------------------------------------------------------

    def backward(self, loss: Tensor) -> None:
        """Backward of a partial sum. FSDP averages gradients over ranks: the sum is scaled up."""
        (loss * self.world_size).backward()

    def optimizer_step(self) -> StepResult:
        """Clip by the norm over all ranks and step; with a non-finite norm drop the gradients.

        The norm is the same number on all ranks, so that all of them step or all of them skip.
        """
        trained = [(p, p.grad) for p in self.model.parameters() if p.grad is not None]
        parameters = [parameter for parameter, _ in trained]
        norm = nn.utils.get_total_norm([grad for _, grad in trained])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        result = StepResult(float(norm), skipped=not bool(norm.isfinite()))
        if result.skipped:
            logger.warning("gradient norm is %s: this optimiser step is skipped", result.grad_norm)
        else:
            nn.utils.clip_grads_with_norm_(
                parameters, self.grad_clip, norm.to(parameters[0].device)
            )
            self._step_on_device()
        self.optimizer.zero_grad(set_to_none=True)
        return result

    def step_lr(self) -> float:
        """Advance the schedule by one training step; returns the rate that was in force."""
        rate = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        return rate

    def _step_on_device(self) -> None:
        if self.offload_optimizer:
            self._move_optimizer(self.device)
        self.optimizer.step()
        if self.offload_optimizer:
            self._move_optimizer(torch.device("cpu"))

    def _move_optimizer(self, device: torch.device) -> None:
        for state in self.optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, DTensor):  # the step counter stays where the optimiser put it
                    state[name] = value.to(device)

    def reshard(self) -> None:
        """Free the parameters that a forward pass without a backward leaves gathered."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    # --- weights and checkpoints ----------------------------------------------------------------

    def full_state_dict(self) -> dict[str, Tensor]:
        """The whole model's weights on the CPU of rank 0; an empty dict on the other ranks.

        A tied weight is there under the first of its names.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = cast(dict[str, Tensor], get_model_state_dict(self.model, options=options))
        return under_first_names(self.model, weights)

    def save_checkpoint(self, path: Path) -> None:
        """Write model, optimiser, schedule and random state into the folder `path`.

        Sharded files that any number of ranks can load. Replacing an older folder atomically is the
        caller's part.
        """
        save(self._state(), checkpoint_id=path)
        torch.save(_random_state(self.device), _random_file(path, self.rank))

    def load_checkpoint(self, path: Path) -> None:
        """Continue as if never interrupted; a learning rate that was changed since then counts.

        With more ranks than were saved, a rank without a saved random state keeps its own.

        Nothing of what the checkpoint holds is executed.

        Raises:
            UserError: the checkpoint is of another model, or holds what no checkpoint does.
        """
        try:
            self._load(path)
        except Exception as error:  # strange files make torch raise anything
            raise UserError(
                f"cannot resume from {path.parent}: {root_cause(error)}; the checkpoint has to be "
                "one of this trainer, of the same model.path and lora_rank: keep them, or start "
                "afresh under another trainer.experiment_name"
            ) from error

    def _load(self, path: Path) -> None:
        state = self._state()
        read_checkpoint(state, path)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=False),  # all of the model's has been found
        )
        resume_schedule(self.schedule, state["schedule"])
        if (random := _random_file(path, self.rank)).exists():
            _restore_random_state(load_plain(random, random.name), self.device)

    def _state(self) -> dict:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "schedule": self.schedule.state_dict()}


def under_first_names(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` of `model` without the further names of tied ones."""
    unique = {name for name, _ in model.named_parameters()}
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)} - unique
    return {name: tensor for name, tensor in weights.items() if name not in aliases}


def shard_model(
    model: PreTrainedModel, mesh, fsdp: FSDPConfig, device: str, *, offload: bool
) -> None:
    """`fully_shard` every decoder layer and then the rest, in place."""
    compute = compute_dtype(fsdp.mixed_precision, device)
    options = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32),
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    for layer in decoder_layers(model):
        fully_shard(layer, reshard_after_forward=fsdp.reshard_after_forward, **options)
    fully_shard(
        model, reshard_after_forward=False, **options
    )  # embedding and head: backward starts with them


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks that the architecture names as not to be split."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _allocate_shards(model: nn.Module, device: str) -> None:
    """Give meta parameters memory for their shard, in place, so that tied ones stay tied."""
    for parameter in model.parameters():
        if parameter.is_meta:
            shard = nn.Parameter(
                torch.empty_like(parameter, device=device), parameter.requires_grad
            )
            torch.utils.swap_tensors(parameter, shard)


def _random_file(path: Path, rank: int) -> Path:
    return Path(path) / f"random_state_rank_{rank}.pt"


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
