"""A trained model as a folder that Hugging Face's classes, and every engine, load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from verl.config.model import ModelConfig
from verl.utils.atomic import atomic_directory
from verl.workers.checkpoint_names import CheckpointNames
from verl.workers.model_loading import (
    load_architecture,
    load_generation_config,
    load_tokenizer,
    model_on_meta,
    resolve_model_path,
)
from verl.workers.sharded_model import under_first_names


def save_causal_lm(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    folder: Path,
    dtype: torch.dtype | None = None,
) -> None:
    """Write full, merged `weights` with the tokenizer as a Hugging Face folder, whole or not at
    all. A folder that is there is replaced.

    What the checkpoint at `config.path` has beside the language model, such as a vision tower,
    comes along as it is.

    Args:
        dtype: of floating tensors; None: what the model at `config.path` has.

    Raises:
        ValueError: `weights` are not those of the model.
    """
    architecture = load_architecture(config)
    own_dtype = cast(torch.dtype | None, architecture.dtype)
    written = dtype or own_dtype or next(iter(weights.values())).dtype
    model = model_on_meta(architecture, {"dtype": written})
    weights = under_first_names(model, weights)
    _check_names(model, weights)
    converted = {n: t.to(written) if t.is_floating_point() else t for n, t in weights.items()}
    generation = load_generation_config(config) or cast(GenerationConfig, model.generation_config)
    # Written by itself: `save_pretrained` refuses some that every loader takes, such as a
    # temperature without do_sample.
    model.generation_config = GenerationConfig()
    with atomic_directory(folder) as unfinished:
        if isinstance(model.config, type(architecture)):
            model.save_pretrained(unfinished, state_dict=converted)
        else:
            _save_with_other_parts(config, architecture, converted, unfinished)
        generation.to_json_file(unfinished / GENERATION_CONFIG_NAME)
        load_tokenizer(config).save_pretrained(unfinished)


def _save_with_other_parts(
    config: ModelConfig, architecture: PreTrainedConfig, weights: dict[str, Tensor], folder: Path
) -> None:
    """The checkpoint at `config.path` with the language model replaced."""
    path = resolve_model_path(config.path, config.load_method)
    named = CheckpointNames(config).convert(weights)
    for name, tensor in _tensors_on_disk(path).items():
        named.setdefault(name, tensor)
    # a file takes no views: an expert may be a part of the tensor of all of them
    save_torch_state_dict({name: tensor.clone() for name, tensor in named.items()}, folder)
    architecture.save_pretrained(folder)


def _tensors_on_disk(path: str) -> dict[str, Tensor]:
    folder = Path(path)
    if not folder.is_dir():
        folder = Path(snapshot_download(path, allow_patterns="*.safetensors"))
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as content:
            tensors |= {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    return tensors


def _check_names(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    wanted = set(under_first_names(model, model.state_dict()))
    unknown, missing = sorted(set(weights) - wanted), sorted(wanted - set(weights))
    if unknown or missing:
        raise ValueError(
            f"the weights are not those of {type(model).__name__}: missing {missing[:3]}, "
            f"unknown {unknown[:3]}"
        )
