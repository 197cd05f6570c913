"""Tests that need what this machine lacks are skipped, with the reason. Random policies on disk.

Imports stay inside the fixtures: most tests need no transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

settings.register_profile("no_times", deadline=None)  # no test asserts a time
settings.load_profile("no_times")

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


def _missing(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "vllm": _missing("vllm"),
        "alfworld": _missing("alfworld"),
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def write_policy() -> Callable[..., str]:
    """Writes a random Llama of 2 layers with a tied head and a tokenizer: words w0, w1 (end), ..

    `initializer_range` is to be large: then its distributions are far from uniform, and a wrong
    weight or log-prob shows. `config`: what else `LlamaConfig` takes. Returns the folder.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    def write(
        folder: Path, *, vocab_size: int, dtype: torch.dtype = torch.float32, **config: Any
    ) -> str:
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                num_hidden_layers=2,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=1,
                pad_token_id=2,
                **config,
            )
        )
        words = {f"w{index}": index for index in range(vocab_size)}
        backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="w0", eos_token="w1", pad_token="w2"
        )
        tokenizer.chat_template = TEMPLATE
        model.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return write


@pytest.fixture
def undeclared_metrics() -> Callable[[Path], list[str]]:
    """The names in a metrics.jsonl that docs/metrics.md lacks."""
    from verl.trainer.metric_docs import declared

    patterns = [_name_pattern(metric.name) for metric in declared()]

    def undeclared(file: Path) -> list[str]:
        names = {name for line in file.read_text().splitlines() for name in json.loads(line)}
        names -= {"step"}  # the axis
        return [n for n in sorted(names) if not any(p.fullmatch(n) for p in patterns)]

    return undeclared


def _name_pattern(name: str) -> re.Pattern[str]:
    """`<a|b>` is one of those, `<turn>` any text without a slash."""
    parts = re.split(r"<([^>]*)>", name)
    for place, text in enumerate(parts):
        if place % 2 == 0:
            parts[place] = re.escape(text)
        else:
            parts[place] = f"(?:{text})" if "|" in text else "[^/]+"
    return re.compile("".join(parts))


@pytest.fixture
def no_file_beyond() -> Callable[[int], AbstractContextManager[None]]:
    """Within it this process's files grow up to so many bytes; a write takes what still fits."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def on_small_disk(tmp_path: Path) -> Callable[[str, str], str]:
    """Runs a Python script in an empty file system of that size (`64k`); returns what it prints."""
    mount = 'mount -t tmpfs -o size="$1" tmpfs "$2" && cd "$2"'
    unshared = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]

    def run(script: str, size: str) -> str:
        disk = tmp_path / "disk"
        disk.mkdir()
        arguments = ["sh", size, str(disk), sys.executable, script]
        if subprocess.run([*unshared, mount, *arguments], capture_output=True).returncode != 0:
            pytest.skip("this machine lets nobody mount a file system of his own")
        done = subprocess.run(
            [*unshared, f'{mount} && exec "$3" -c "$4"', *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run
