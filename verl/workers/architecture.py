"""What an architecture demands of whoever computes with it, read from its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import NamedTuple

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from verl.config.plan import is_installed
from verl.utils.errors import UserError

ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})  # layer types
FLASH = "flash_attention_2"
# Positions beyond their first length change the frequencies of the whole batch.
RESCALED_LENGTH = {
    "longrope": "original_max_position_embeddings",
    "dynamic": "max_position_embeddings",
}


def without_chance(architecture: PreTrainedConfig) -> PreTrainedConfig:
    """A copy in which no dropout and no router noise is left.

    The ratio of PPO compares two passes over the same tokens: chance in one of them looks like a
    change of the policy.
    """
    still = deepcopy(architecture)
    for part in _parts(still):
        for name, value in vars(part).items():
            if ("drop" in name or "jitter" in name) and type(value) is float:
                setattr(part, name, 0.0)
    return still


def attention_kernel(name: str, device: str, architecture: PreTrainedConfig) -> str:
    """`name`, or for `auto` the first of flash_attention_2 (on cuda, where the package is there),
    sdpa and eager that computes all that the architecture's attention has.

    Raises:
        UserError: the kernel `name` leaves something out.
    """
    if name != "auto":
        reason = _left_out(name, architecture)
        if reason is not None:
            raise UserError(
                f"model.attn_implementation={name} {reason}; "
                f"use auto, which takes {attention_kernel('auto', device, architecture)}"
            )
        return name
    has_flash = device == "cuda" and is_installed("flash_attn")
    kernels = [FLASH, "sdpa"] if has_flash else ["sdpa"]
    return next((k for k in kernels if _left_out(k, architecture) is None), "eager")


def longest_row(architecture: PreTrainedConfig) -> int | None:
    """Tokens up to which a row's numbers do not depend on the rows beside it; None: any length."""
    text = architecture.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    limits = []
    for kind in kinds:
        key = RESCALED_LENGTH.get(kind.get("rope_type"))
        if key is not None:
            limits.append(kind.get(key) or getattr(text, key))
    return min(limits, default=None)


class Positions(NamedTuple):
    """Room for `tokens`; `origin`: how the number comes about, in the names of config.json."""

    tokens: int
    origin: str


def positions_of(architecture: PreTrainedConfig) -> Positions | None:
    """What the model was made for; None of one without a limit (ALiBi, state spaces).

    Of scaled frequencies most configurations state the scaled length. With linear ones they state
    that before, and so they may where a user has switched the scaling on.
    """
    text = architecture.get_text_config(decoder=True)
    stated = getattr(text, "max_position_embeddings", None)
    if stated is None or getattr(text, "alibi", False):
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    factor = rope.get("factor") or 1
    before = rope.get("original_max_position_embeddings") or 0
    if rope.get("rope_type") == "linear":
        before = stated
    if before * factor <= stated:
        return Positions(stated, f"max_position_embeddings={stated}")
    scaling = f"{before} x {factor:g} of rope {rope['rope_type']}"
    return Positions(int(before * factor), scaling)


def keeps_states(architecture: PreTrainedConfig) -> bool:
    """Whether layers carry a state from token to token that cannot be cut back to a prefix."""
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(architecture), None)
    kinds = getattr(architecture.get_text_config(decoder=True), "layer_types", None) or ()
    return getattr(model, "_is_stateful", False) or not ATTENTION.issuperset(kinds)


def _left_out(kernel: str, architecture: PreTrainedConfig) -> str | None:
    """What `kernel` does not compute of the attention, as the end of a sentence."""
    text = architecture.get_text_config(decoder=True)
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(architecture), None)
    supports = {
        "sdpa": getattr(model, "_supports_sdpa", True),
        FLASH: getattr(model, "_supports_flash_attn", True),
    }
    if not supports.get(kernel, True):
        return f"is not implemented for {architecture.model_type}"
    others = getattr(model, "_compatible_flash_implementations", None)
    if kernel == FLASH and others and FLASH not in others:
        return f"lacks what the attention of {architecture.model_type} has"
    if kernel == "sdpa" and getattr(text, "attn_logit_softcapping", None) is not None:
        return (
            f"drops attn_logit_softcapping={text.attn_logit_softcapping} "
            f"of {architecture.model_type}"
        )
    return None


def _parts(architecture: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield architecture
    for value in vars(architecture).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)
