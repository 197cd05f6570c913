"""Which architectures this trainer and its engines compute right, as `tests/models` measured it.

`architectures.json` holds the result; `python -m tests.models.measure` writes it and, from it,
docs/models.md. What is not right there, or is not there, is refused before anything starts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from verl.config.model import ModelConfig
from verl.config.plan import EnginePlan, RunPlan
from verl.config.root import PPOConfig
from verl.utils.errors import UserError
from verl.workers.architecture import FLASH, attention_kernel, longest_row, positions_of
from verl.workers.checkpoint_names import check_names
from verl.workers.model_loading import load_architecture, load_causal_lm
from verl.workers.weight_sync.lora import adapts_experts

MEASURED_VLLM = ("cpu", torch.float32)  # device and dtype of the engine
RESULTS = Path(__file__).with_name("architectures.json")


@dataclass(frozen=True)
class Support:
    """Of one architecture. A text says what is wrong; None: it is right.

    `trainer`: log-probs, updates, checkpoints and exports. `packing`: rows laid end to end.
    `lora`: adapters on all linear layers. `critic`: the value model. `hf`, `vllm`: the engine
    against the trainer; `vllm` as `MEASURED_VLLM` says.
    """

    model_class: str
    trainer: str | None
    packing: str | None
    lora: str | None
    critic: str | None
    hf: str | None
    vllm: str | None


@cache
def measured() -> dict[str, Support]:
    """By model type."""
    rows = json.loads(RESULTS.read_text())["architectures"]
    return {name: Support(**row) for name, row in rows.items()}


def check_models(config: PPOConfig, plan: RunPlan) -> None:
    """Refuse models whose numbers would be wrong in this run.

    Raises:
        UserError: with the reason and the way out.
    """
    tokens = config.data.max_prompt_length + config.data.max_response_length
    policy = config.actor_rollout_ref.model
    check_model(policy, "actor_rollout_ref.model", tokens=tokens, device=plan.device)
    check_engine(config.actor_rollout_ref.model, plan.engine)
    if plan.has_critic:
        check_model(config.critic.model, "critic.model", tokens=tokens, device=plan.device)
        kind = load_architecture(config.critic.model).model_type
        if (support := measured().get(kind)) is not None:
            _refuse(
                "critic.model",
                config.critic.model,
                f"{kind} as a critic",
                support.critic,
                "use an estimator without one, such as algorithm.adv_estimator=grpo",
            )


def check_model(model: ModelConfig, key: str, *, tokens: int, device: str) -> None:
    """Refuse a model that cannot be trained right.

    Args:
        key: where `model` stands in the configuration. tokens: the longest row. device: of the
            trainer.

    Raises:
        UserError: with the reason and the way out.
    """
    architecture = load_architecture(model)
    kind = architecture.model_type
    support = measured().get(kind)
    if support is not None:
        _refuse(key, model, kind, support.trainer, "choose a model of another architecture")
        if model.lora_rank > 0:
            _refuse(key, model, f"{kind} with LoRA", support.lora, f"set {key}.lora_rank=0")
    elif not model.accept_untested:
        raise UserError(
            f"{key}.path={model.path!r} is a {kind}, which is not among the architectures of "
            "docs/models.md, so whether its numbers are right is not known; choose one of those, "
            f"or set {key}.accept_untested=true"
        )
    attention_kernel(model.attn_implementation, device, architecture)
    longest = longest_row(architecture)
    if longest is not None and tokens > longest:
        raise UserError(
            f"{key}.path={model.path!r} computes all rows of a batch with other position "
            f"frequencies as soon as one has more than {longest} tokens, and rows of {tokens} are "
            f"asked for; lower the lengths of data to {longest} together, or choose another model"
        )
    _check_positions(model, key, tokens, "the lengths of data together")


def _check_positions(model: ModelConfig, key: str, tokens: int, lengths: str) -> None:
    """What a model computes beyond its positions is noise or an error."""
    positions = positions_of(load_architecture(model))
    if positions is not None and tokens > positions.tokens:
        raise UserError(
            f"{key}.path={model.path!r} has {positions.tokens} positions ({positions.origin}), and "
            f"rows of {tokens} tokens are asked for; lower {lengths} to {positions.tokens}, or "
            "choose another model"
        )


def check_engine(model: ModelConfig, engine: EnginePlan) -> None:
    """Refuse an engine that would sample from something else than the trainer's model.

    Raises:
        UserError: with the reason and the way out.
    """
    key = "actor_rollout_ref.rollout.max_model_len"
    _check_positions(model, "actor_rollout_ref.model", engine.max_model_len, key)
    kind = load_architecture(model).model_type
    support = measured().get(kind)
    reasons = {} if support is None else {"hf": support.hf, "vllm": support.vllm}
    others = [name for name, reason in reasons.items() if reason is None]
    what = f"{kind} with rollout.name={engine.name}"
    remedy = f"set actor_rollout_ref.rollout.name={others[0]}" if others else "choose another model"
    if engine.name == "vllm" and (engine.device, engine.dtype) != MEASURED_VLLM:
        if model.accept_untested:
            reasons.pop("vllm", None)
        what += " on a CPU in float32"
        remedy += (
            ", or actor_rollout_ref.model.accept_untested=true, with which the comparison of "
            "engine and trainer after each weight sync decides"
        )
    _refuse("actor_rollout_ref.model", model, what, reasons.get(engine.name), remedy)
    if engine.reads_checkpoints:
        check_names(model)
    if engine.takes_adapters and adapts_experts(load_causal_lm(model, torch.float32, empty=True)):
        raise UserError(
            f"actor_rollout_ref.model.target_modules={model.target_modules} puts adapters on the "
            f"experts of {model.path!r}, which vLLM cannot take; name other layers, such as "
            "target_modules='.*(q|k|v|o)_proj', or set actor_rollout_ref.rollout.name=hf"
        )


def packs_rows(config: ModelConfig, device: str) -> bool:
    """Whether a forward lays rows end to end: only flash-attention does that without waste, and
    layers that carry a state from token to token would carry it into the next row."""
    if not config.use_remove_padding:
        return False
    architecture = load_architecture(config)
    support = measured().get(architecture.model_type)
    kernel = attention_kernel(config.attn_implementation, device, architecture)
    return kernel == FLASH and support is not None and support.packing is None


def _refuse(key: str, model: ModelConfig, what: str, reason: str | None, remedy: str) -> None:
    if reason is not None:
        raise UserError(f"{key}.path={model.path!r}: {what} {reason} (docs/models.md); {remedy}")
