"""Log-prob pass and update of the policy at full size: speed, share of peak, memory, cost of EPO.

python benchmarks/policy_update.py 1.5b --tokens 4096 16384 --output runs/bench/1.5b.json
python benchmarks/policy_update.py table runs/bench/*.json

Qwen2.5's shapes with random weights, so that nothing has to be fetched; a size is one process,
because what it cannot hold ends it.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config
from update_parts import mini_batch

from epo.config import EPOConfig
from epo.plugin import build
from verl.config.actor import ActorConfig
from verl.config.model import FSDPConfig, MicroBatchConfig
from verl.config.optim import OptimConfig
from verl.config.plan import resolve_device
from verl.utils.atomic import atomic_write_json
from verl.utils.logging import setup_logging
from verl.workers.actor.dp_actor import DataParallelPPOActor
from verl.workers.architecture import attention_kernel
from verl.workers.runtime import WorkerRuntime
from verl.workers.sharded_model import ShardedModel

logger = logging.getLogger("policy_update")

ROW, PROMPT, TURN = 2048, 512, 128  # tokens; half of a turn's are sampled
REPEATS = 3
BYTES_A_PARAMETER = 16  # float32: value, gradient, two Adam moments
SHAPES = {
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024,
    },
    "0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
    },
}  # fmt: skip


def main() -> None:
    setup_logging()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=[*SHAPES, "table"])
    parser.add_argument("files", nargs="*", type=Path, help="table: what to print")
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096, 16384])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    if options.shape == "table":
        show([row for file in options.files for row in json.loads(file.read_text())])
        return
    rows: list[dict[str, Any]] = []
    for row in measure(options):
        rows.append(row)
        if options.output is not None:
            atomic_write_json(options.output, rows)
    show(rows)


def measure(options: argparse.Namespace):
    """One row a number of tokens, as soon as it is known."""
    device = resolve_device(options.device)
    shape = Qwen2Config(**{"vocab_size": 151_936, "max_position_embeddings": 32_768}
                        | SHAPES[options.shape])  # fmt: skip
    peak = matmul_flops(device)
    offload = device == "cuda" and needs_offload(shape)
    sharded = build_policy(shape, device, options.gradient_checkpointing, offload)
    for tokens in options.tokens:
        row = {
            "model": options.shape,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "torch": torch.__version__,
            "tokens": tokens,
            "checkpointing": options.gradient_checkpointing,
            "optimizer_offload": offload,
            "matmul_tflops": peak / 1e12,
        }
        try:
            yield row | measure_tokens(sharded, shape, tokens, peak)
        except torch.OutOfMemoryError:
            yield row | {"out_of_memory": True}


def measure_tokens(
    sharded: ShardedModel, shape: Qwen2Config, tokens: int, peak: float
) -> dict[str, float]:
    length = min(ROW, tokens)
    rows = tokens // length
    prompt = length * PROMPT // ROW
    batch, context = mini_batch(
        rows, prompt, length - prompt, max(2, length * TURN // ROW), shape.vocab_size
    )
    config = ActorConfig(use_dynamic_bsz=True, ppo_max_token_len_per_gpu=tokens)
    plain, with_epo = (
        DataParallelPPOActor(config, sharded, temperature=1.0, regularizer=regularizer)
        for regularizer in (None, build(EPOConfig(enable=True)).regularizer)
    )
    by_tokens = MicroBatchConfig(use_dynamic_bsz=True, max_token_len_per_gpu=tokens)

    def log_prob() -> None:
        plain.compute_log_prob(batch, by_tokens)

    def update() -> None:
        plain.update_policy(batch, context)

    def update_with_epo() -> None:
        with_epo.update_policy(batch, context)

    update(), update_with_epo(), log_prob()  # warm up
    log_prob_s, log_prob_gib = timed(log_prob, sharded.device)
    update_s, update_gib = timed(update, sharded.device)
    pairs = [
        (seconds(update_with_epo, sharded.device), seconds(update, sharded.device))
        for _ in range(REPEATS)
    ]
    forward = forward_flops(shape, rows, length, int(batch["response_mask"].sum()))
    return {
        "active": int(batch["response_mask"].sum()),
        "log_prob_s": log_prob_s,
        "log_prob_gib": log_prob_gib,
        "log_prob_share": forward / log_prob_s / peak,
        "update_s": update_s,
        "update_gib": update_gib,
        "update_tflops": 3 * forward / update_s / 1e12,
        "update_share": 3 * forward / update_s / peak,
        "epo_ratio": statistics.median(epo / off for epo, off in pairs),
    }


def build_policy(
    shape: Qwen2Config, device: str, checkpointing: bool, offload: bool
) -> ShardedModel:
    """Random weights, made where they will be: the CPU need not hold a large model."""

    def load(dtype: torch.dtype, *, device: str, empty: bool) -> PreTrainedModel:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                shape, dtype=dtype, attn_implementation=attention_kernel("auto", device, shape)
            )
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        return model

    runtime = WorkerRuntime(device, cpu_threads=torch.get_num_threads())
    fsdp = FSDPConfig(optimizer_offload=offload)
    return ShardedModel(load, fsdp, runtime, OptimConfig(lr=1e-6), total_steps=100)


def needs_offload(shape: Qwen2Config) -> bool:
    """Whether the optimiser's state has to leave the GPU between updates."""
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(shape).num_parameters()
    return parameters * BYTES_A_PARAMETER > 0.95 * torch.cuda.get_device_properties(0).total_memory


def forward_flops(shape: Qwen2Config, rows: int, length: int, active: int) -> float:
    """Of the matrix products of one forward: layers, causal attention, head on active tokens."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    head = hidden // shape.num_attention_heads
    keys = shape.num_key_value_heads * head
    weights = hidden * (2 * hidden + 2 * keys) + 3 * hidden * inner
    attention = 2 * rows * length**2 * hidden  # scores and values, the lower triangle of each
    layers = shape.num_hidden_layers * (2 * rows * length * weights + attention)
    return layers + 2 * active * hidden * shape.vocab_size


def matmul_flops(device: str, size: int = 8192) -> float:
    """Of a large product in the precision of training: the peak that shares are of."""
    size, dtype = (size, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    runs = [seconds(lambda: left @ right, torch.device(device)) for _ in range(13)]
    return 2 * size**3 / statistics.median(runs[3:])


def timed(work: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Median seconds, and the peak memory in GiB: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took = statistics.median(seconds(work, device) for _ in range(REPEATS))
    if device.type == "cuda":
        return took, torch.cuda.max_memory_allocated() / 2**30
    return took, psutil.Process().memory_info().rss / 2**30


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def show(rows: list[dict[str, Any]]) -> None:
    """A Markdown table. Shares are of the matrix product measured in the same process."""
    lines = [
        "| model | tokens | log-prob, tokens/s | share of peak | GiB "
        "| update, tokens/s | TFLOP/s | share of peak | GiB | with EPO |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        name = row["model"] + " (recomputing)" * row["checkpointing"]
        name += " (optimiser on the CPU)" * row["optimizer_offload"]
        if "out_of_memory" in row:
            lines.append(f"| {name} | {row['tokens']:,} |" + " out of memory |" + " - |" * 7)
            continue
        lines.append(
            f"| {name} | {row['tokens']:,} | {row['tokens'] / row['log_prob_s']:,.0f} "
            f"| {row['log_prob_share']:.0%} | {row['log_prob_gib']:.1f} "
            f"| {row['tokens'] / row['update_s']:,.0f} | {row['update_tflops']:.0f} "
            f"| {row['update_share']:.0%} | {row['update_gib']:.1f} | {row['epo_ratio']:.3f} |"
        )
    machines = {(row["device"], row["torch"], round(row["matmul_tflops"], 1)) for row in rows}
    for device, version, peak in sorted(machines):
        lines.append(f"\n{device}, PyTorch {version}, {peak} TFLOP/s in a matrix product")
    logger.info("\n%s", "\n".join(lines))


if __name__ == "__main__":
    main()
