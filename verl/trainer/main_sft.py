"""Clone behaviour from conversations: `python -m verl.trainer.main_sft [key=value ...]`.

python -m verl.trainer.main_sft model.path=Qwen/Qwen3-0.6B data.train_files=[games.jsonl]
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml

from verl.config.plan import resolve_device
from verl.config.sft import SFTConfig, compose_sft_config
from verl.single_controller.ray.base import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
)
from verl.trainer.cli import run_cli
from verl.trainer.ppo.checkpoint import CheckpointStore, load_driver_state
from verl.trainer.sft.batches import ConversationData
from verl.trainer.sft.trainer import SFTTrainer
from verl.trainer.sft.worker import SFTWorker
from verl.utils.atomic import atomic_write_text
from verl.utils.importing import load_object
from verl.utils.logging import setup_logging
from verl.utils.tracking import Tracking
from verl.workers.model_loading import load_tokenizer
from verl.workers.runtime import WorkerRuntime

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Compose, check, train."""
    options = parse(arguments)
    resolved, config = compose_sft_config(options.overrides, options.config_name)
    if options.cfg is not None:
        sys.stdout.write(yaml.safe_dump(resolved, sort_keys=False))
        return
    with sft_run(config, resolved) as trainer:
        trainer.fit()


def parse(arguments: list[str]) -> argparse.Namespace:
    """Hydra's usual flags."""
    parser = argparse.ArgumentParser(prog="python -m verl.trainer.main_sft", description=__doc__)
    parser.add_argument("--config-name", "-cn", default="sft_trainer", help="a preset sft_*")
    parser.add_argument("--cfg", "-c", choices=["job"], help="print the configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="see verl/config/sft.py")
    return parser.parse_intermixed_args(arguments)


@contextmanager
def sft_run(config: SFTConfig, resolved: dict[str, Any]) -> Iterator[SFTTrainer]:
    """A trainer with its workers up. Data and paths are checked before Ray starts."""
    train, validation = load_data(config)
    run_dir = Path(config.trainer.default_local_dir).absolute()
    run_dir.mkdir(parents=True, exist_ok=True)
    setup_logging(file=run_dir / "run.log")
    atomic_write_text(run_dir / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))
    tracker = make_tracker(config, resolved, run_dir)
    try:
        start_ray(config)
        workers = start_workers(config, config.trainer.total_epochs * train.batches_per_epoch)
        yield SFTTrainer(config, workers, train, validation, tracker)
    finally:
        tracker.finish()
        ray.shutdown()


def load_data(config: SFTConfig) -> tuple[ConversationData, ConversationData | None]:
    """Training and validation conversations. Only those for training are augmented."""
    data = config.data
    tokenizer = load_tokenizer(config.model)
    augment = None if data.augment is None else load_object(data.augment)
    seed = config.trainer.seed
    train = ConversationData(data.train_files, data, tokenizer, augment, seed)
    if not data.val_files:
        return train, None
    return train, ConversationData(data.val_files, data, tokenizer, None, seed)


def make_tracker(config: SFTConfig, resolved: dict[str, Any], run_dir: Path) -> Tracking:
    """A resumed run goes on logging where its checkpoint left off."""
    run = config.trainer
    folder = CheckpointStore(run).find()
    state = load_driver_state(folder) if folder is not None else None
    return Tracking(
        run.project_name,
        run.experiment_name,
        run.logger,
        config=resolved,
        run_dir=run_dir,
        resume_ids=state["tracker"] if state else None,
        resume_step=state["step"] if state else None,
    )


def start_ray(config: SFTConfig) -> None:
    """Join the cluster at `ray_kwargs.ray_init.address`, or start one on this machine."""
    ray_init = config.ray_kwargs.ray_init
    if ray_init.address is not None:
        ray.init(address=ray_init.address, runtime_env=ray_init.runtime_env)
        return
    ray.init(
        # on a CPU a worker is a process, not a core: there is logical room for all of them
        num_cpus=ray_init.num_cpus or max(os.cpu_count() or 1, config.trainer.n_gpus_per_node),
        include_dashboard=False,
        runtime_env=ray_init.runtime_env,
        logging_level=logging.WARNING,
    )


def start_workers(config: SFTConfig, total_steps: int) -> RayWorkerGroup:
    """One rank a GPU, or a process a rank on the CPU, with the model loaded."""
    run = config.trainer
    device = resolve_device(run.device)
    runtime = WorkerRuntime(device, run.seed, run.cpu_threads_per_worker)
    workers = RayWorkerGroup(
        resource_pool=RayResourcePool(
            process_on_nodes=[run.n_gpus_per_node] * run.nnodes,
            use_gpu=device == "cuda",
            max_colocate_count=1,
        ),
        ray_cls_with_init=RayClassWithInitArgs(ray.remote(SFTWorker), config, runtime),
        device_name=device,
        worker_env={
            "OMP_NUM_THREADS": str(run.cpu_threads_per_worker),
            "TOKENIZERS_PARALLELISM": "false",
        },
    )
    workers.init_model(total_steps)
    return workers


if __name__ == "__main__":
    run_cli(main)
