"""The configuration of `verl.trainer.main_sft`: behaviour cloning on conversations."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from verl.config.fields import check_fields, setting
from verl.config.model import FSDPConfig, MicroBatchConfig, ModelConfig
from verl.config.optim import OptimConfig, check_optim
from verl.config.trainer import RayConfig, SessionConfig
from verl.utils.errors import UserError
from verl.utils.tracking import tracker_class


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
    val_files: list[str] = setting([], "what the loss is measured on", harmless=True)
    messages_key: str = setting("messages", 'the column with [{"role": .., "content": ..}, ..]')
    prompt_weight: float = setting(
        0.0, "loss weight of tokens outside the replies, which weigh 1", least=0
    )
    label_smoothing: float = setting(
        0.0, "share of each target that is spread over the vocabulary", least=0, below=1
    )
    augment: str | None = setting(
        None, "import path of f(messages, rng) -> messages; anew every epoch", open=True
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
class SFTRunConfig(SessionConfig):
    total_epochs: int = setting(3, "the learning-rate schedule is planned over these", least=1)
    stop_after_epochs: int | None = setting(
        None, "stop earlier than planned", least=1, harmless=True
    )
    project_name: str = setting("sft", "folder and tracker project", harmless=True)
    test_freq: int = setting(
        -1,
        "steps between losses on data.val_files; always measured at the end",
        least=-1,
        harmless=True,
    )
    export_dir: str = setting(
        "${trainer.default_local_dir}/model",
        "where the model ends up, a Hugging Face folder; an earlier model there is replaced",
        harmless=True,
    )


@dataclass
class SFTConfig:
    model: SFTModelConfig = field(default_factory=SFTModelConfig)
    data: SFTDataConfig = field(default_factory=SFTDataConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5, warmup_style="cosine"))
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)
    trainer: SFTRunConfig = field(default_factory=SFTRunConfig)
    ray_kwargs: RayConfig = field(default_factory=RayConfig)


def last_epoch(run: SFTRunConfig) -> int:
    """How many epochs are trained; the schedule may be planned over more."""
    if run.stop_after_epochs is None:
        return run.total_epochs
    return min(run.stop_after_epochs, run.total_epochs)


def check_sft_config(config: SFTConfig) -> None:
    """Raises UserError on a value that no run could use."""
    check_fields(config)
    check_optim("optim", config.optim)
    for name in config.trainer.logger:
        tracker_class(name)
    if config.model.init == "random" and config.model.lora_rank > 0:
        raise UserError(
            f"model.lora_rank={config.model.lora_rank} would train adapters on random weights; "
            "set model.lora_rank=0 or model.init=pretrained"
        )
    if not config.data.train_files:
        raise UserError("data.train_files is empty; name at least one file of conversations")
