"""Write a checkpoint's policy as a plain Hugging Face folder.

`python -m verl.trainer.main_export checkpoint=runs/.../global_step_30 output=my_model`, with
`dtype=bfloat16` or `dtype=float32` for another type than that of `model.path`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from verl.config.model import resolve_dtype
from verl.config.plan import make_plan
from verl.config.saved import load_saved
from verl.trainer.checkpoint import CONFIG_FILE, check_whole
from verl.trainer.cli import run_cli
from verl.trainer.main_eval import split_checkpoint
from verl.trainer.ppo.cluster import start_trainers
from verl.trainer.ppo.placement import trainer_pool
from verl.trainer.ppo.ray_trainer import total_training_steps
from verl.trainer.session import ray_cluster
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Load the actor alone (no environment, no critic) and save it."""
    checkpoint, rest = split_checkpoint(arguments)
    outputs = [a.removeprefix("output=") for a in rest if a.startswith("output=")]
    if len(outputs) != 1 or Path(outputs[0]).exists():
        raise UserError(f"output={outputs}: name exactly one folder that does not exist yet")
    target = Path(outputs[0]).absolute()
    dtypes = [a.removeprefix("dtype=") for a in rest if a.startswith("dtype=")]
    named = [name for name in dtypes[-1:] if name != "auto"]  # auto: the model's own
    dtype = resolve_dtype(named[0], auto=torch.float32) if named else None
    # no engine is built, so this machine need not be able to send weights to one
    overrides = ["trainer.val_only=true", "actor_rollout_ref.rollout.weight_sync=auto"]
    overrides += [a for a in rest if not a.startswith(("output=", "dtype="))]
    _, config = load_saved(checkpoint.parent / CONFIG_FILE, overrides)
    plan = make_plan(config)
    check_whole(checkpoint)
    pool, steps = trainer_pool(config, plan), total_training_steps(config)
    with ray_cluster(config.ray_kwargs.ray_init, pool.world_size + 1):
        actor = start_trainers(config, plan, pool, None, steps)["actor"]
        actor.load_checkpoint(str(checkpoint / "actor"))
        actor.export_hf(str(target), dtype)
    logger.info("exported to %s", target)


if __name__ == "__main__":
    run_cli(main)
