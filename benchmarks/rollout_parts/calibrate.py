"""`calibrate`: the latencies of a real engine, for the simulated one."""

from __future__ import annotations

import argparse
import datetime
import random
import statistics
import time
from pathlib import Path

from agent_system.types import SamplingParams
from rollout_parts.report import machine, show
from rollout_parts.session import (
    Session,
    add_engine_arguments,
    generate_all,
    make_config,
    open_model,
    open_session,
)
from rollout_parts.simulated import Latencies
from verl.config.plan import make_plan
from verl.workers.model_loading import load_tokenizer

# After random tokens, and as hot as vLLM allows, the end token practically never comes.
TEMPERATURE = 2.0
PROMPT_TOKENS = 64
PREFILLED_PROMPTS, PREFILLED_TOKENS = 8, 512
SHORT = 4  # tokens; a response of that and a long one differ by decoding alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser, seqs=128, layers=0)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 4, 16, 32, 64, 128])
    parser.add_argument("--steps", type=int, default=12, help="decoding steps of a measurement")
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many")
    parser.add_argument("--output", type=Path, help="write the latencies there")


def run(options: argparse.Namespace) -> None:
    lengths = ["data.max_prompt_length=960", "data.max_response_length=64"]
    with (
        open_model(options) as model,
        open_session(config := make_config(options, model, lengths)) as session,
    ):
        probe = Probe(session, options)
        probe.seconds(2, PROMPT_TOKENS, SHORT)  # warm up
        prefill_rate = (
            PREFILLED_PROMPTS
            * PREFILLED_TOKENS
            / probe.median(PREFILLED_PROMPTS, PREFILLED_TOKENS, 1)
        )
        decode_ms = [1000 * probe.step_seconds(together) for together in options.together]
    engine = make_plan(config).engine.name
    measured = Latencies(
        tuple(options.together),
        tuple(round(ms, 2) for ms in decode_ms),
        round(prefill_rate, 1),
        f"{options.model}, {options.dtype}, engine {engine}, {machine()}, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
    )
    if options.output is not None:
        measured.write(options.output)
    show(
        ["requests together", "ms a decoding step", "tokens/s"],
        [
            [together, ms, 1000 * together / ms]
            for together, ms in zip(options.together, measured.decode_ms, strict=True)
        ],
        [f"Prefill: {prefill_rate:,.0f} tokens/s. {measured.measured_on}."],
    )


class Probe:
    """Times batches of random prompts."""

    def __init__(self, session: Session, options: argparse.Namespace) -> None:
        self._session = session
        tokenizer = load_tokenizer(session.config.actor_rollout_ref.model)
        self._vocabulary = range(len(tokenizer))
        self._options = options
        self._random = random.Random(0)
        self._batches = 0

    def step_seconds(self, together: int) -> float:
        """One decoding step of so many requests: a long batch less a short one."""
        steps = self._options.steps
        longer = self.median(together, PROMPT_TOKENS, SHORT + steps)
        return (longer - self.median(together, PROMPT_TOKENS, SHORT)) / steps

    def median(self, together: int, prompt: int, response: int) -> float:
        repeats = range(self._options.repeats)
        return statistics.median(self.seconds(together, prompt, response) for _ in repeats)

    def seconds(self, together: int, prompt: int, response: int) -> float:
        """Prompts and responses of so many tokens, `together` of them at once."""
        self._batches += 1
        ids = [self._random.choices(self._vocabulary, k=prompt) for _ in range(together)]
        sampling = SamplingParams(temperature=TEMPERATURE, max_tokens=response, seed=self._batches)
        name = f"batch {self._batches}"
        started = time.perf_counter()
        self._session.run(generate_all(self._session.engine, ids, sampling, name))
        return time.perf_counter() - started
