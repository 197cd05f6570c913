"""A tiny random policy on disk, and a process group of one rank.

Imports stay inside the fixtures: most tests here need neither transformers nor a process group.
"""

from __future__ import annotations

import logging

import pytest

TINY_VOCABULARY = 60


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory, write_policy) -> str:
    """Grouped key-value heads; words w0..w59."""
    return write_policy(
        tmp_path_factory.mktemp("tiny_policy"),
        vocab_size=TINY_VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )


@pytest.fixture
def single_rank(monkeypatch: pytest.MonkeyPatch):
    """A process group of this process alone, for the duration of a test; its WorkerRuntime."""
    import torch
    import torch.distributed as dist

    from verl.workers.process_group import join_process_group
    from verl.workers.runtime import WorkerRuntime

    monkeypatch.delenv("RANK", raising=False)
    runtime = WorkerRuntime("cpu", seed=0, cpu_threads=torch.get_num_threads())
    join_process_group(runtime)
    yield runtime
    dist.destroy_process_group()


@pytest.fixture
def restored_logging():
    """What a test changes of the root logger is undone after it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
