"""Measures vLLM against the trainer for every architecture and adds what was found.

    python -m tests.models.measure_vllm [type ...]     all types that the trainer computes right

Runs after `tests.models.measure`, in a process of its own: see `ForkedEngine`.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import vllm  # noqa: F401  before it is forked
from tqdm import tqdm
from transformers.utils import logging as transformers_logging
from vllm.entrypoints.llm import LLM  # noqa: F401

from verl.workers.model_support import measured

from .conformance import judged, wrong_in_vllm
from .measure import write
from .tiny import write_tiny_model
from .vllm_process import ForkedEngine

SECONDS = 300  # for one type


def main(names: list[str]) -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    results = dict(measured())
    for name in tqdm(names or [n for n, s in results.items() if s.trainer is None], unit="type"):
        reason = measure(name)
        tqdm.write(f"{name}: {reason}", file=sys.stderr)
        results[name] = replace(results[name], vllm=reason)
        write(results)


def measure(name: str) -> str | None:
    """In a process of its own: vLLM changes classes of transformers, and may take its process
    down."""
    context = get_context("fork")
    result, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(name, sender))
    process.start()
    sender.close()
    try:
        return result.recv() if result.poll(SECONDS) else f"took more than {SECONDS} s"
    except EOFError:
        return "ends the process"
    finally:
        process.kill()
        process.join()


def _measure(name: str, sender: Any) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_tiny_model(name, Path(scratch, "model"))
        reason = judged(_wrong, folder)
        if reason is not None:  # the engine tells what it was in its own process
            reason = reason.replace("ends with RuntimeError: ", "ends with ", 1)
            reason = reason.replace(str(folder), "the model")
        sender.send(reason)


def _wrong(folder: Path) -> str | None:
    engine = ForkedEngine(folder)
    try:
        engine.start()
        return wrong_in_vllm(engine, folder)
    finally:
        engine.close()


if __name__ == "__main__":
    main(sys.argv[1:])
