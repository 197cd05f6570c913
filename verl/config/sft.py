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

from verl.config.model import FSDPConfig, MicroBatchConfig, ModelConfig
from verl.config.optim import OptimConfig
from verl.config.trainer import RayConfig
from verl.utils.errors import UserError

CONFIG_DIR = Path(__file__).resolve().parents[1] / "trainer" / "config"


@dataclass
class SFTModelConfig(ModelConfig):
    init: str = "pretrained"  # random: the architecture of config.json with fresh weights


@dataclass
class SFTDataConfig:
    """Conversations: a file of rows (jsonl, json or parquet), each with a list of messages."""

    train_files: list[str] = MISSING
    val_files: list[str] = field(default_factory=list)
    messages_key: str = "messages"  # holds [{"role": .., "content": ..}, ..]
    prompt_weight: float = 0.0  # loss weight of tokens outside the replies, which weigh 1
    label_smoothing: float = 0.0  # share of each target that is spread over the vocabulary
    augment: str | None = None  # import path of f(messages, rng) -> messages; anew every epoch
    max_length: int = 2048  # tokens of a conversation
    truncation: str = "error"  # what a longer one meets: error, or right (its end is cut off)
    train_batch_size: int = 32  # conversations an optimiser step
    micro_batch: MicroBatchConfig = field(default_factory=MicroBatchConfig)


@dataclass
class SFTRunConfig:
    device: str = "auto"  # auto | cuda | cpu
    total_epochs: int = 3  # the learning-rate schedule is planned over these
    stop_after_epochs: int | None = None  # stop earlier than planned
    project_name: str = "sft"
    experiment_name: str = "run"
    # console | file | tensorboard | wandb | import path of a tracker of your own
    logger: list[str] = field(default_factory=lambda: ["console", "file"])
    nnodes: int = 1
    n_gpus_per_node: int = 1  # training workers a node; on a CPU: processes
    seed: int = 0
    save_freq: int = -1  # steps; a checkpoint is always written at the end
    test_freq: int = -1  # steps between losses on data.val_files; always measured at the end
    resume_mode: str = "auto"  # auto | disable | resume_path
    resume_from_path: str | None = None
    max_actor_ckpt_to_keep: int | None = None  # keep the newest N checkpoints; None: all
    default_local_dir: str = "runs/${trainer.project_name}/${trainer.experiment_name}"
    export_dir: str = "${trainer.default_local_dir}/model"  # a Hugging Face folder
    cpu_threads_per_worker: int = 1


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
    data, run = config.data, config.trainer
    _one_of("model.init", config.model.init, ("pretrained", "random"))
    if config.model.init == "random" and config.model.lora_rank > 0:
        raise UserError(
            f"model.lora_rank={config.model.lora_rank} would train adapters on random weights; "
            "set model.lora_rank=0 or model.init=pretrained"
        )
    _one_of("data.truncation", data.truncation, ("error", "right"))
    _one_of("trainer.device", run.device, ("auto", "cuda", "cpu"))
    _one_of("trainer.resume_mode", run.resume_mode, ("auto", "disable", "resume_path"))
    at_least_1 = {
        "data.train_batch_size": data.train_batch_size,
        "trainer.total_epochs": run.total_epochs,
        "trainer.stop_after_epochs": last_epoch(run),
        "trainer.n_gpus_per_node": run.n_gpus_per_node,
        "trainer.nnodes": run.nnodes,
    }
    for key, value in at_least_1.items():
        if value < 1:
            raise UserError(f"{key}={value} must be at least 1")
    if data.max_length < 2:
        raise UserError(
            f"data.max_length={data.max_length} leaves nothing to predict; use 2 or more"
        )
    if data.prompt_weight < 0:
        raise UserError(
            f"data.prompt_weight={data.prompt_weight} must not be negative; 0 ignores prompts"
        )
    if not 0 <= data.label_smoothing < 1:
        raise UserError(
            f"data.label_smoothing={data.label_smoothing} is a share: 0 (off) up to below 1"
        )
    if not data.train_files:
        raise UserError("data.train_files is empty; name at least one file of conversations")


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value!r} is unknown; use one of {', '.join(choices)}")


def _reason(error: Exception) -> str:
    """Hydra's and OmegaConf's messages on one line, with the key they are about."""
    if isinstance(error, OverrideParseException):
        return f"cannot read the override '{error.override}'; write key=value"
    lines = str(error.__cause__ or error).splitlines()
    key = next((line.split(": ")[1] for line in lines if line.strip().startswith("full_key:")), "")
    reason = f"{key}: {lines[0]}" if key else lines[0]
    return f"{reason}; the keys are those of verl/config/sft.py"
