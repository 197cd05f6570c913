"""Between a model's tensors in memory and those of its checkpoint.

transformers may hold a model otherwise than its checkpoint does: without a prefix that a
vision-language model has, with all experts of a layer in one tensor. Other tools, so also vLLM,
read checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import cached_file

from verl.config.model import ModelConfig
from verl.utils.errors import UserError
from verl.workers.model_loading import load_causal_lm, resolve_model_path
from verl.workers.sharded_model import under_first_names
from verl.workers.weight_sync.lora import LORA_PREFIX

FILES = (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME)
Shapes = dict[str, tuple[int, ...]]


class CheckpointNames:
    """How the checkpoint of a policy, LoRA merged, has its tensors. Weights are not read.

    A tied weight is meant once, under the first of its names.
    """

    shapes: Shapes  # in the checkpoint

    def __init__(self, config: ModelConfig) -> None:
        """Raises UserError: see `load_causal_lm`."""
        plain = replace(config, lora_rank=0, attn_implementation="eager")
        self._model = load_causal_lm(plain, torch.float32, empty=True)
        self._on_disk = names_on_disk(config)
        self._conversions = _conversions(self._model, self._on_disk)
        weights = under_first_names(self._model, self._model.state_dict())
        tensors = {name: tensor.to("meta") for name, tensor in weights.items()}
        self._together = self._groups(tensors)
        self.shapes = {name: tuple(t.shape) for name, t in self.convert(tensors).items()}

    def convert(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All of the model's weights, given as they are in memory."""
        return dict(self.stream(weights.items()))

    def stream(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """As `convert`, each as soon as all are there that it is made of."""
        waiting: dict[str, Tensor] = {}
        for name, tensor in weights:
            waiting[name] = tensor
            group = self._together[name]
            if all(member in waiting for member in group):
                yield from self._revert({n: waiting.pop(n) for n in group}).items()
        assert not waiting, f"some weights are missing beside {sorted(waiting)[:3]}"

    def convert_adapters(self, adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """LoRA matrices under peft's names, for the layers as the checkpoint names them.

        Raises:
            UserError: the checkpoint has an adapted weight otherwise than in a tensor of its own.
        """
        reverse = [conversion.reverse_transform() for conversion in self._conversions[::-1]]
        converted = {}
        for name, tensor in adapters.items():
            own = name.removeprefix(LORA_PREFIX)
            renamed, converter = rename_source_key(own, *_kinds(reverse), reverse=True)
            if converter is not None:
                raise UserError(
                    f"vLLM cannot take adapters of {own.split('.lora_')[0]}, which the checkpoint "
                    "has as other tensors; leave that layer out of model.target_modules or set "
                    "actor_rollout_ref.rollout.name=hf"
                )
            converted[LORA_PREFIX + renamed] = tensor
        return converted

    def _groups(self, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
        """Of each weight, those that are converted together with it: they give one name alone."""
        groups: dict[str, list[str]] = {}
        for name, tensor in tensors.items():
            groups.setdefault(min(self._revert({name: tensor})), []).append(name)
        return {name: group for group in groups.values() for name in group}

    def _revert(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._conversions:
            cast(Any, self._model)._weight_conversions = self._conversions
            weights = cast(dict[str, Tensor], revert_weight_conversion(self._model, weights))
        return {self._with_prefix(name): tensor for name, tensor in weights.items()}

    def _with_prefix(self, name: str) -> str:
        """With or without that of the model below the head, which loading adds or takes away."""
        prefix = f"{self._model.base_model_prefix}."
        candidates = (name, name.removeprefix(prefix), prefix + name)
        return next((known for known in candidates if known in self._on_disk), name)


def check_names(config: ModelConfig) -> None:
    """Hold what an engine would be sent against a checkpoint in a folder, which the engine loads.

    Raises:
        UserError: a tensor of the model is not there, or in another shape.
    """
    there = shapes_on_disk(config)
    if not there:
        return
    sent = CheckpointNames(config).shapes
    wrong = sorted(name for name, shape in sent.items() if there.get(name) != shape)
    if wrong:
        raise UserError(
            f"model.path={config.path!r} has no {wrong[0]} of shape {list(sent[wrong[0]])} "
            f"({len(wrong)} tensors of the model are not there so), so vLLM could not be sent new "
            "weights; save the model with transformers' save_pretrained, or set "
            "actor_rollout_ref.rollout.name=hf"
        )


def names_on_disk(config: ModelConfig) -> set[str]:
    """Of the tensors in the files that transformers would load; none if there are none."""
    file = _first_file(config)
    if file is None:
        return set()
    if file.suffix == ".json":
        return set(json.loads(file.read_text())["weight_map"])
    return set(_shapes_in(file))


def shapes_on_disk(config: ModelConfig) -> Shapes:
    """As `names_on_disk`, with shapes; nothing of a checkpoint that is not in a folder here."""
    folder = Path(resolve_model_path(config.path, config.load_method))
    file = _first_file(config) if folder.is_dir() else None
    if file is None:
        return {}
    files = {file}
    if file.suffix == ".json":
        parts = json.loads(file.read_text())["weight_map"].values()
        files = {file.with_name(part) for part in parts}
    return {name: shape for part in sorted(files) for name, shape in _shapes_in(part).items()}


def _first_file(config: ModelConfig) -> Path | None:
    """The index of all files with weights, or the only one."""
    path = resolve_model_path(config.path, config.load_method)
    for name in FILES:
        found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            return Path(found)
    return None


def _shapes_in(file: Path) -> Shapes:
    if file.suffix != ".safetensors":
        tensors = torch.load(file, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with safe_open(file, framework="pt") as content:
        names = content.keys()
        return {name: tuple(content.get_slice(name).get_shape()) for name in names}


def _conversions(model: PreTrainedModel, names: set[str]) -> list[WeightTransform]:
    """Those with which transformers loads a checkpoint with tensors of these names; without
    names, those of a model that is saved."""
    conversions = get_model_conversion_mapping(model, add_legacy=bool(names))
    if not names:
        return [c for c in conversions if not isinstance(c, PrefixChange)]
    in_memory = model.state_dict()
    for name in sorted(names):
        rename_source_key(name, *_kinds(conversions), model.base_model_prefix, in_memory)
    return [conversion for conversion in conversions if conversion.was_used()]


def _kinds(
    conversions: list[WeightTransform],
) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    return renamings, [c for c in conversions if isinstance(c, WeightConverter)]
