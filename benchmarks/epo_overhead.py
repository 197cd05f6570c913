"""What EPO adds to the training phase: actor updates with and without it, in turn, in one run.

python benchmarks/epo_overhead.py [--pairs 15] [--vocab 16384]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tensordict import TensorDict
from transformers import LlamaConfig, LlamaForCausalLM
from update_parts import mini_batch

from epo.config import EPOConfig
from epo.plugin import build
from verl.algorithms.entropy_control import EntropyRegularizer
from verl.config.actor import ActorConfig
from verl.config.model import FSDPConfig, ModelConfig
from verl.config.optim import OptimConfig
from verl.utils.logging import setup_logging
from verl.workers.actor.dp_actor import DataParallelPPOActor
from verl.workers.model_loading import load_causal_lm
from verl.workers.runtime import WorkerRuntime
from verl.workers.sharded_model import ShardedModel
from verl.workers.update_context import UpdateContext

logger = logging.getLogger("epo_overhead")

ROWS, PROMPT, RESPONSE, TURN = 16, 48, 120, 12


def actor(path: str, regularizer: EntropyRegularizer | None) -> DataParallelPPOActor:
    config = ActorConfig(optim=OptimConfig(lr=1e-5))
    engine = ShardedModel(
        lambda dtype, **where: load_causal_lm(ModelConfig(path=path), dtype, **where),
        FSDPConfig(),
        WorkerRuntime("cpu"),
        config.optim,
        total_steps=100,
    )
    return DataParallelPPOActor(config, engine, temperature=1.0, regularizer=regularizer)


def seconds(trained: DataParallelPPOActor, batch: tuple[TensorDict, UpdateContext]) -> float:
    """CPU seconds: unlike the wall clock they do not count what else the machine does."""
    start = time.process_time()
    trained.update_policy(*batch)
    return time.process_time() - start


def main() -> None:
    setup_logging()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--vocab", type=int, default=16384)
    options = parser.parse_args()
    shape = LlamaConfig(
        vocab_size=options.vocab, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "model")
        LlamaForCausalLM(shape).save_pretrained(path)
        plain, with_epo = actor(path, None), actor(path, build(EPOConfig(enable=True)).regularizer)
    batch = mini_batch(ROWS, PROMPT, RESPONSE, TURN, options.vocab)
    seconds(plain, batch), seconds(with_epo, batch)  # warm up
    pairs = [(seconds(with_epo, batch), seconds(plain, batch)) for _ in range(options.pairs)]
    ratios = sorted(epo / off for epo, off in pairs)
    logger.info(
        "update with EPO / without, %d pairs, vocabulary %d: median %.3f (%.3f to %.3f); "
        "without: median %.2f CPU seconds",
        len(pairs), options.vocab, statistics.median(ratios), ratios[0], ratios[-1],
        statistics.median(off for _, off in pairs),
    )  # fmt: skip


if __name__ == "__main__":
    main()
