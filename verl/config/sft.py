"""The configuration of `verl.trainer.main_sft`: behaviour cloning on conversations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl.config.fields import check_fields, setting
from verl.config.model import FSDPConfig, MicroBatchConfig, ModelConfig
from verl.config.optim import OptimConfig
from verl.config.trainer import DEVICES, RESUME_MODES, RayConfig
from verl.utils.errors import UserError
from verl.utils.importing import resolve_choice
from verl.utils.lr_schedules import SCHEDULES
from verl.utils.tracker_backends import TRACKERS
from verl.utils.tracking import tracker_class

CONFIG_DIR = Path(__file__).resolve().parents[1] / "trainer" / "config"


@dataclass
class SFTModelConfig(ModelConfig):
    init: str = setting(
        "pretrained",
        "random: the architecture of config.json with fresh weights",
        choices=("pretrained", "random"),
    )


@dataclass
class SFTDataConfig:
    """Conversations: a file of rows (jsonl, json or parquet), each with a list of messages."""

    train_files: list[str] = setting(MISSING, "what is learned from")
    val_files: list[str] = setting([], "what the loss is measured on")
    messages_key: str = setting("messages", 'the column with [{"role": .., "content": ..}, ..]')
    prompt_weight: float = setting(
        0.0, "loss weight of tokens outside the replies, which weigh 1", least=0
    )
    label_smoothing: float = setting(
        0.0, "share of each target that is spread over the vocabulary", least=0, below=1
    )
    augment: str | None = setting(
        None, "import path of f(messages, rng) -> messages; anew every epoch"
    )
    max_length: int = setting(2048, "tokens of a conversation", least=2)
    truncation: str = setting(
        "error",
        "what a longer one meets: error, or right (its end is cut off)",
        choices=("error", "right"),
    )
    train_batch_size: int = setting(32, "conversations an optimiser step", least=1)
    micro_batch: MicroBatchConfig = field(default_factory=MicroBatchConfig)


@dataclass
class SFTRunConfig:
    device: str = setting(
        "auto", "where the model is trained; auto: cuda where there is one", choices=DEVICES
    )
    total_epochs: int = setting(3, "the learning-rate schedule is planned over these", least=1)
    stop_after_epochs: int | None = setting(None, "stop earlier than planned", least=1)
    project_name: str = setting("sft", "folder and tracker project")
    experiment_name: str = setting("run", "folder and tracker run")
    logger: list[str] = setting(
        ["console", "file"],
        "trackers: where metrics go",
        choices=TRACKERS,
        open=True,
    )
    nnodes: int = setting(1, "machines of the Ray cluster", least=1)
    n_gpus_per_node: int = setting(1, "training workers a node; on a CPU: processes", least=1)
    seed: int = setting(0, "of shuffling, augmentation and initialisation", least=0)
    save_freq: int = setting(-1, "steps; a checkpoint is always written at the end", least=-1)
    test_freq: int = setting(
        -1, "steps between losses on data.val_files; always measured at the end", least=-1
    )
    resume_mode: str = setting(
        "auto",
        "auto: from the newest checkpoint of the run folder; resume_path: from resume_from_path",
        choices=RESUME_MODES,
    )
    resume_from_path: str | None = setting(None, "resume_path: a folder global_step_<n>")
    max_actor_ckpt_to_keep: int | None = setting(
        None, "keep the newest N checkpoints; None: all", least=1
    )
    default_local_dir: str = setting(
        "runs/${trainer.project_name}/${trainer.experiment_name}",
        "run folder: configuration, metrics, checkpoints",
    )
    export_dir: str = setting(
        "${trainer.default_local_dir}/model", "where the model ends up, a Hugging Face folder"
    )
    cpu_threads_per_worker: int = setting(1, "torch threads of each worker", least=1)


@dataclass
class SFTConfig:
    model: SFTModelConfig = field(default_factory=SFTModelConfig)
    data: SFTDataConfig = field(default_factory=SFTDataConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5, warmup_style="cosine"))
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)
    trainer: SFTRunConfig = field(default_factory=SFTRunConfig)
    ray_kwargs: RayConfig = field(default_factory=RayConfig)


def compose_sft_config(
    overrides: list[str], config_name: str = "sft_trainer"
) -> tuple[dict[str, Any], SFTConfig]:
    """A preset `sft_*` with Hydra overrides: resolved, as plain data and as typed dataclasses.

    Raises:
        UserError: an unknown preset or key, a value of the wrong type or outside its choices, a
            missing mandatory value, or an override that cannot be parsed.
    """
    presets = sorted(path.stem for path in CONFIG_DIR.glob("sft_*.yaml"))
    if config_name not in presets:
        raise UserError(f"unknown config name '{config_name}'; available: {', '.join(presets)}")
    ConfigStore.instance().store(name="sft_schema", node=SFTConfig)
    try:
        with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            composed: DictConfig = compose(config_name=config_name, overrides=overrides)
        OmegaConf.resolve(composed)
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_reason(error)) from error
    resolved = OmegaConf.to_container(composed)
    assert isinstance(config, SFTConfig) and isinstance(resolved, dict)
    check_sft_config(config)
    return cast(dict[str, Any], resolved), config


def last_epoch(run: SFTRunConfig) -> int:
    """How many epochs are trained; the schedule may be planned over more."""
    if run.stop_after_epochs is None:
        return run.total_epochs
    return min(run.stop_after_epochs, run.total_epochs)


def check_sft_config(config: SFTConfig) -> None:
    """Raises UserError on a value that no run could use."""
    check_fields(config)
    resolve_choice("optim.warmup_style", config.optim.warmup_style, SCHEDULES)
    for name in config.trainer.logger:
        tracker_class(name)
    if config.model.init == "random" and config.model.lora_rank > 0:
        raise UserError(
            f"model.lora_rank={config.model.lora_rank} would train adapters on random weights; "
            "set model.lora_rank=0 or model.init=pretrained"
        )
    if not config.data.train_files:
        raise UserError("data.train_files is empty; name at least one file of conversations")


def _reason(error: Exception) -> str:
    """Hydra's and OmegaConf's messages on one line, with the key they are about."""
    if isinstance(error, OverrideParseException):
        return f"cannot read the override '{error.override}'; write key=value"
    lines = str(error.__cause__ or error).splitlines()
    key = next((line.split(": ")[1] for line in lines if line.strip().startswith("full_key:")), "")
    reason = f"{key}: {lines[0]}" if key else lines[0]
    return f"{reason}; the keys are those of verl/config/sft.py"
