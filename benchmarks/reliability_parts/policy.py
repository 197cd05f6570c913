"""A tiny policy on one rank of this process: trained, saved and loaded as the workers do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from verl.config.model import FSDPConfig, ModelConfig
from verl.config.optim import OptimConfig
from verl.workers.model_loading import load_causal_lm
from verl.workers.runtime import WorkerRuntime
from verl.workers.sharded_model import ShardedModel


class Policy:
    """A random Llama of two layers with a tied head; its folder is written by the constructor."""

    def __init__(self, folder: Path) -> None:
        size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        config = LlamaConfig(vocab_size=64, tie_word_embeddings=True, **size, **heads)
        LlamaForCausalLM(config).save_pretrained(folder)
        load = partial(load_causal_lm, ModelConfig(path=str(folder)))
        runtime = WorkerRuntime("cpu", seed=0, cpu_threads=1)
        self._sharded = ShardedModel(load, FSDPConfig(), runtime, OptimConfig(lr=1e-2), 10)
        self.save = self._sharded.save_checkpoint
        self.load = self._sharded.load_checkpoint

    def train_step(self) -> None:
        """One update on random tokens."""
        ids = torch.randint(3, 60, (3, 8))
        self._sharded.backward(self._sharded.model(input_ids=ids, labels=ids).loss)
        self._sharded.optimizer_step()
        self._sharded.step_lr()

    def tensors(self) -> Iterator[Tensor]:
        """Weights, state of the optimiser and of the schedule."""
        yield from self._sharded.full_state_dict().values()
        for state in self._sharded.optimizer.state.values():
            for value in state.values():
                yield value.full_tensor() if hasattr(value, "full_tensor") else value
        schedule = self._sharded.schedule
        yield torch.tensor([schedule.last_epoch, *schedule.get_last_lr()])
