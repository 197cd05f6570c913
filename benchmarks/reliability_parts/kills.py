"""Kills processes of small real runs at random moments, starts what ended again, and compares the
numbers of all steps with those of a run that nobody disturbed."""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from rollout_parts.report import Cell, markdown, show

from reliability_parts.real_run import EVENTS, Event, Outcome, TrainingRun

# What must not depend on what happened. Times and memory do.
COMPARED = ("actor/", "critic/", "episode/", "epo/", "training/")
RELATIVE, ABSOLUTE = 1e-4, 1e-5
SETTINGS = [
    "--config-name",
    "custom_env",
    "data.train_batch_size=2",
    "env.pool.slots_per_worker=2",
    "trainer.save_freq=2",
    "trainer.max_actor_ckpt_to_keep=2",
    "trainer.val_after_train=false",
    "trainer.stall_warning_s=5",
    "trainer.stall_limit_s=10",
]
STEPS_BETWEEN = 3
WITHIN_STEP_S = 2.0


@dataclass(frozen=True)
class Setup:
    """A kind of run. With `async_steps=1` the step after a resume is on-policy, so that only its
    steps can be compared with an undisturbed run."""

    ranks: int
    async_steps: int

    @property
    def name(self) -> str:
        return f"{self.ranks} ranks, async_steps={self.async_steps}"

    def run(self, folder: Path, steps: int) -> TrainingRun:
        own = [f"trainer.n_gpus_per_node={self.ranks}", f"trainer.async_steps={self.async_steps}"]
        length = f"trainer.total_training_steps={steps}"
        return TrainingRun(folder, [*SETTINGS, *own, length])


SETUPS = [Setup(ranks, async_steps) for ranks in (1, 2) for async_steps in (0, 1)]


@dataclass(frozen=True)
class Chain:
    """A run that was disturbed, to its end."""

    outcomes: list[Outcome]
    code: int  # of its last start
    missing: list[int]  # steps
    doubled: list[int]
    different: list[str]  # `step name` of the numbers beyond the tolerance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=20, help="in all runs together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the order")


def run(options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    events = rng.sample(EVENTS, len(EVENTS))
    shares: dict[Setup, list[Event]] = defaultdict(list)
    for setup, event in zip(cycle(SETUPS), islice(cycle(events), options.events), strict=False):
        shares[setup].append(event)
    with tempfile.TemporaryDirectory() as root:
        chains = {
            setup: chain(setup, share, Path(root) / str(number), rng)
            for number, (setup, share) in enumerate(shares.items())
        }
    outcomes = [outcome for chain in chains.values() for outcome in chain.outcomes]
    runs = [*chain_rows(chains)]
    rows = [*outcome_rows(outcomes)]
    show([*rows[0]], [[*row.values()] for row in rows], [table_of(runs)])


def chain(
    setup: Setup,
    events: Sequence[Event],
    root: Path,
    rng: random.Random,
    steps_between: int = STEPS_BETWEEN,
) -> Chain:
    """Let every event happen to one run, which is started again whenever it has ended.

    `steps_between`: an event comes at most so many steps after the one before.
    """
    steps = (steps_between + 3) * len(events) + steps_between
    calm = setup.run(root / "calm", steps)
    calm.start()
    try:
        assert calm.finish() == 0, calm.console()
    finally:
        calm.end()
    hit, outcomes = setup.run(root / "hit", steps), []
    hit.start()
    try:
        for event in events:
            if not hit.wait_for_step(hit.steps() + rng.randint(1, steps_between)):
                hit.start()
                hit.wait_for_step(hit.steps() + 1)
            time.sleep(rng.uniform(0, WITHIN_STEP_S))
            outcomes.append(hit.suffer(event))
            sys.stderr.write(f"{setup.name}: {outcomes[-1]}\n")
        if hit.process.poll() not in (None, 0):
            hit.start()
        code = hit.finish()
    finally:
        hit.end()
    found = [int(record["step"]) for record in hit.records()]
    return Chain(
        outcomes,
        code,
        missing=[step for step in range(1, steps + 1) if step not in found],
        doubled=sorted({step for step in found if found.count(step) > 1}),
        different=[] if setup.async_steps else [*differences(calm, hit)],
    )


def differences(calm: TrainingRun, hit: TrainingRun) -> Iterator[str]:
    expected = {record["step"]: record for record in calm.records()}
    for record in hit.records():
        for name, value in expected[record["step"]].items():
            if name.startswith(COMPARED) and not _close(value, record.get(name, math.nan)):
                yield f"{record['step']} {name}"


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def outcome_rows(outcomes: Sequence[Outcome]) -> Iterator[dict[str, Cell]]:
    """Of each kind of event."""
    for event in EVENTS:
        of_kind = [outcome for outcome in outcomes if outcome.event is event]
        if of_kind:
            ended = [outcome for outcome in of_kind if outcome.code]
            yield {
                "event": event.name,
                "times": len(of_kind),
                "went on": len(of_kind) - len(ended),
                "exit codes": ", ".join(sorted({str(o.code) for o in ended})) or "-",
                "ended within, s": _longest([o.ended_s for o in ended]),
                "all gone after, s": _longest([o.gone_s for o in ended]),
                "NOT AS PROMISED": sum(not outcome.as_promised for outcome in of_kind),
            }


def chain_rows(chains: dict[Setup, Chain]) -> Iterator[dict[str, Cell]]:
    for setup, of_setup in chains.items():
        compared = "-" if setup.async_steps else len(of_setup.different)
        yield {
            "run": setup.name,
            "events": len(of_setup.outcomes),
            "exit code at the end": of_setup.code,
            "steps missing": len(of_setup.missing),
            "steps doubled": len(of_setup.doubled),
            "numbers that differ": compared,
        }


def table_of(rows: Sequence[dict[str, Cell]]) -> str:
    return markdown([*rows[0]], [[*row.values()] for row in rows])


def _longest(seconds: Sequence[float]) -> Cell:
    return round(max(seconds), 1) if seconds else "-"
