"""Clone behaviour from conversations: `python -m verl.trainer.main_sft [key=value ...]`.

python -m verl.trainer.main_sft model.path=Qwen/Qwen3-0.6B data.train_files=[games.jsonl]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from omegaconf import OmegaConf

from verl.config.compose import compose_sft_config, plain
from verl.config.plan import chat_date, resolve_device
from verl.config.saved import load_saved_sft
from verl.config.sft import SFTConfig
from verl.config.trainer import SessionConfig
from verl.single_controller.ray.base import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
)
from verl.trainer.checkpoint import (
    CONFIG_FILE,
    CheckpointStore,
    changes_on_resume,
    checkpoint_bytes,
    date_on_resume,
    tell_changes,
)
from verl.trainer.cli import run_cli
from verl.trainer.restarts import surviving_deaths
from verl.trainer.run_folder import check_run_folder, open_run_folder
from verl.trainer.session import open_tracker, record_run, run_session, worker_environment
from verl.trainer.sft.batches import ConversationData
from verl.trainer.sft.trainer import SFTTrainer
from verl.trainer.sft.worker import SFTWorker
from verl.utils.errors import UserError
from verl.utils.importing import load_object
from verl.utils.patience import Patience
from verl.utils.tracking import Tracking
from verl.workers.chat_check import check_chat, tell_chat_notes
from verl.workers.chat_template import ChatTemplate
from verl.workers.model_loading import load_causal_lm, load_chat_template
from verl.workers.model_support import check_model
from verl.workers.runtime import WorkerRuntime


def main(arguments: list[str]) -> None:
    """Compose, check, train."""
    options = parse(arguments)
    composed, config = compose_sft_config(options.overrides, options.config_name)
    if options.cfg is not None:
        sys.stdout.write(OmegaConf.to_yaml(composed))
        return
    resolved = plain(composed)

    def attempt(run: SessionConfig) -> Tracking:
        with sft_run(replace(config, trainer=run), resolved) as trainer:
            trainer.fit()
        return trainer.tracker

    surviving_deaths(config.trainer, attempt).check_complete()


def parse(arguments: list[str]) -> argparse.Namespace:
    """Hydra's usual flags."""
    parser = argparse.ArgumentParser(prog="python -m verl.trainer.main_sft", description=__doc__)
    parser.add_argument("--config-name", "-cn", default="sft_trainer", help="a preset sft_*")
    parser.add_argument("--cfg", "-c", choices=["job"], help="print the configuration and stop")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="see docs/configuration.md"
    )
    return parser.parse_intermixed_args(arguments)


@contextmanager
def sft_run(config: SFTConfig, resolved: dict[str, Any]) -> Iterator[SFTTrainer]:
    """A trainer with its workers up. Data and paths are checked before Ray starts."""
    run, device = config.trainer, resolve_device(config.trainer.device)
    check_run_folder(run)
    check_export_dir(Path(run.export_dir))
    check_model(config.model, "model", tokens=config.data.max_length, device=device)
    store = CheckpointStore(run)
    store.check_room_at_start(
        lambda: checkpoint_bytes(load_causal_lm, config.model, config.fsdp_config)
    )
    changes, today = [], chat_date(config.model)
    if (checkpoint := store.find()) is not None:
        before = load_saved_sft(checkpoint.parent / CONFIG_FILE)
        changes = changes_on_resume(run, checkpoint, before, config)
        today = date_on_resume(config.model, checkpoint)
    chat = load_chat_template(config.model, today)
    check_chat(chat, continues=True)
    train, validation = load_data(config, chat)
    with open_run_folder(run) as folder:
        tell_changes(changes)
        tell_chat_notes(chat, keeps_reasoning=True)
        environment = record_run(folder, resolved, {"device": device})
        record = resolved | {"environment": environment}
        ranks, steps = run.nnodes * run.n_gpus_per_node, run.total_epochs * train.batches_per_epoch
        with (
            run_session(run, config.ray_kwargs.ray_init, ranks + 1, folder) as stop,
            open_tracker(run, record, folder, checkpoint) as tracker,
        ):
            workers = start_workers(config, device, steps)
            yield SFTTrainer(config, workers, train, validation, tracker, checkpoint, stop)


def check_export_dir(folder: Path) -> None:
    """Raises UserError when the trained model would take the place of something else."""
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise UserError(
            f"trainer.export_dir={folder} is there already and holds no model, and the trained "
            "model would take its place; name a folder that does not exist yet"
        )


def load_data(
    config: SFTConfig, chat: ChatTemplate
) -> tuple[ConversationData, ConversationData | None]:
    """Training and validation conversations. Only those for training are augmented."""
    data = config.data
    augment = None if data.augment is None else load_object(data.augment)
    seed = config.trainer.seed
    train = ConversationData(data.train_files, data, chat, augment, seed)
    if not data.val_files:
        return train, None
    return train, ConversationData(data.val_files, data, chat, None, seed)


def start_workers(config: SFTConfig, device: str, total_steps: int) -> RayWorkerGroup:
    """One rank a GPU, or a process a rank on the CPU, with the model loaded."""
    run = config.trainer
    runtime = WorkerRuntime(device, run.seed, run.cpu_threads_per_worker)
    workers = RayWorkerGroup(
        resource_pool=RayResourcePool(
            process_on_nodes=[run.n_gpus_per_node] * run.nnodes,
            use_gpu=device == "cuda",
            max_colocate_count=1,
            apart=True,
        ),
        ray_cls_with_init=RayClassWithInitArgs(ray.remote(SFTWorker), config, runtime),
        device_name=device,
        worker_env=worker_environment(run.cpu_threads_per_worker),
        patience=Patience.of(run),
    )
    workers.init_model(total_steps)
    return workers


if __name__ == "__main__":
    run_cli(main)
