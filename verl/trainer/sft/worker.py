"""One rank of behaviour cloning: a sharded model with a weighted log-likelihood loss.

Shapes: B rows of a micro-batch, S tokens.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from verl.config.sft import SFTConfig, SFTModelConfig
from verl.protocol import DataProto
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.sft.batches import BatchSums
from verl.utils.logging import setup_logging
from verl.utils.metrics import reduced
from verl.workers.architecture import attention_kernel, without_chance
from verl.workers.forward import ForwardInputs, active_logits, policy_statistics
from verl.workers.fsdp_workers import TrainingWorker
from verl.workers.model_loading import load_architecture, load_causal_lm
from verl.workers.model_support import packs_rows
from verl.workers.passes import LossOutput, MicroBatch, learn, micro_batches, sum_over_ranks
from verl.workers.runtime import WorkerRuntime
from verl.workers.sharded_model import ShardedModel
from verl.workers.weight_sync.source import export

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    (
        "sft/loss",
        "nats",
        "mean",
        "weighted mean of -log p over the tokens of the batch, smoothed labels included",
    ),
    (
        "sft/reply_loss",
        "nats",
        "mean",
        "the same over the tokens of replies alone, without smoothing",
    ),
    ("sft/lr", "1", "-", "learning rate of the step"),
)


class SFTWorker(TrainingWorker):
    """Minimises sum(weight * -log p(token)) / sum(weight) over the batch that all ranks share."""

    def __init__(self, config: SFTConfig, runtime: WorkerRuntime) -> None:
        super().__init__()
        setup_logging(worker=self.rank)
        self._config = config
        self._runtime = runtime
        self._packed = packs_rows(config.model, runtime.device)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self, total_steps: int) -> None:
        """Build the model. `total_steps`: optimiser steps that the schedule plans for.

        Raises:
            UserError: the model is missing, or a setting of the optimiser is no good.
        """
        config = self._config
        load = load_random_lm if config.model.init == "random" else load_causal_lm
        self._sharded = ShardedModel(
            partial(load, config.model),
            config.fsdp_config,
            self._runtime,
            config.optim,
            total_steps,
        )

    @register(dispatch_mode=Dispatch.DP_COMPUTE_METRIC)
    def update(self, batch: DataProto, sums: BatchSums) -> dict[str, float]:
        """One optimiser step. Metrics of the whole batch, equal on all ranks."""
        config = self._config.data.micro_batch
        loss_of = partial(self._loss, sums=sums)
        metrics = learn(self._sharded, batch.batch, config, self._packed, loss_of, "sft")
        return reduced([metrics]) | {"sft/lr": self._sharded.step_lr()}

    @register(dispatch_mode=Dispatch.DP_COMPUTE_METRIC)
    def evaluate(self, batch: DataProto, sums: BatchSums) -> dict[str, float]:
        """The losses of `update` without learning."""
        self._sharded.model.eval()
        totals: Counter[str] = Counter()
        config = self._config.data.micro_batch
        with torch.no_grad():
            for micro in micro_batches(self._sharded, batch.batch, config, self._packed):
                totals.update(self._loss(micro, sums).metrics)
        return sum_over_ranks(totals, self._sharded)

    def _loss(self, micro: MicroBatch, sums: BatchSums) -> LossOutput:
        weight_BS: Tensor = micro.columns["loss_weight"]
        logits_NV = active_logits(self._sharded.model, micro.inputs)
        log_prob_BS = policy_statistics(logits_NV, micro.inputs, temperature=1.0).log_prob_N
        learned_BS = self._smoothed(log_prob_BS, logits_NV, micro.inputs)
        loss = -(weight_BS * learned_BS).sum() / sums.weight
        reply_sum = -log_prob_BS.detach()[weight_BS == 1].sum()
        metrics = {
            "sft/loss": loss.item(),
            "sft/reply_loss": reply_sum.item() / max(sums.reply_tokens, 1),
        }
        return LossOutput(loss, metrics)

    def _smoothed(self, log_prob_BS: Tensor, logits_NV: Tensor, inputs: ForwardInputs) -> Tensor:
        """Label smoothing (arXiv 1512.00567): the target keeps 1 - s, the vocabulary shares s.

        With log p_v = z_v - log Z the mean of log p over the vocabulary is log p_y - z_y + mean z.
        """
        share = self._config.data.label_smoothing
        if share == 0:
            return log_prob_BS
        target_logit_N = logits_NV.gather(-1, inputs.target_N[:, None]).squeeze(-1)
        excess_BS = inputs.to_rows((target_logit_N - logits_NV.mean(-1)).float())
        return log_prob_BS - share * excess_BS

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export_hf(self, path: str) -> None:
        """Write the merged model and its tokenizer as a Hugging Face folder."""
        export(self._sharded, self._config.model, Path(path))


def load_random_lm(
    config: SFTModelConfig, dtype: torch.dtype, *, device: str = "cpu", empty: bool = False
) -> PreTrainedModel:
    """The architecture of `config.path` with weights drawn by torch's seed.

    Raises:
        UserError: there is no usable config.json.
    """
    if empty:
        return load_causal_lm(config, dtype, device=device, empty=True)
    architecture = without_chance(load_architecture(config))
    kernel = attention_kernel(config.attn_implementation, device, architecture)
    return AutoModelForCausalLM.from_config(architecture, dtype=dtype, attn_implementation=kernel)
