"""Random overrides, through all that a run checks before it starts Ray: each is accepted or refused
in one short sentence."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from rollout_parts.report import show

from verl.config.compose import compose_config, plain, ppo_keys
from verl.trainer import run as trainer_run
from verl.utils.errors import UserError

BASE = ("algo=grpo", "algo=ppo", "epo=sciworld")
ALWAYS = (
    "env=frozen_lake",
    "actor_rollout_ref.model.path=small",
    "trainer.default_local_dir=run",
    "trainer.device=cpu",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "critic.ppo_mini_batch_size=16",
    "data.max_prompt_length=480",
    "data.max_response_length=32",
    "env.action_format.kind=plain",
)
GROUPS = ("env", "algo", "epo")
NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1", "0.5", "1e18", "-1e9", "1e-320", "9" * 400)
TEXTS = ("null", "true", "''", "auto", "x" * 5000, "../../../x", "a:b", "no.such:thing", "\u202ex")
SHAPES = ("[]", "{}", "[1,2]", "{a: 1}", "[nan]", "[[", "${x}", "'${oc.env:HOME}'", "@#!", "a b")
VALUES = (*NUMBERS, *TEXTS, *SHAPES)

ACCEPTED, REFUSED = "accepted", "refused in a sentence"
UNREADABLE, RAISED = "REFUSED UNREADABLY", "OTHER EXCEPTION"
OUTCOMES = (ACCEPTED, REFUSED, UNREADABLE, RAISED)
LONGEST = 1000  # characters of a sentence


class Reached(Exception):
    """Everything is checked: Ray would be started."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        counted, examples = measure(Path(folder), options.cases, options.seed)
    rows = [[kind, sum(c.values()), *(c[name] for name in OUTCOMES)] for kind, c in counted.items()]
    show(("overrides", "cases", *OUTCOMES), rows, examples)


def measure(folder: Path, cases: int, seed: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Outcomes by the number of overrides, and the overrides of a few that must not be.

    Works in a folder deep below `folder`: what is accepted writes there.
    """
    rng = random.Random(seed)
    keys = [*ppo_keys().walk(), *GROUPS]
    counted = {f"{number}": Counter[str]() for number in (1, 2, 3)}
    examples: list[str] = []
    deep = folder / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(deep)
    try:
        for _ in range(cases):
            number = rng.choice(list(counted))
            chosen = [(rng.choice(keys), rng.choice(VALUES)) for _ in range(int(number))]
            overrides = [f"{key.replace('<name>', 'test')}={value}" for key, value in chosen]
            outcome, words = outcome_of([*ALWAYS, rng.choice(BASE), *overrides])
            counted[number][outcome] += 1
            shutil.rmtree("run", ignore_errors=True)
            if outcome in (UNREADABLE, RAISED):
                shown = ", ".join(override[:80] for override in overrides)
                examples.append(f"{outcome}: {shown}: {words[:200]}")
    finally:
        os.chdir(before)
    return counted, examples[:10]


def outcome_of(overrides: Sequence[str]) -> tuple[str, str]:
    """What comes of a command with these overrides, and its words."""
    with patch.object(trainer_run, "run_session", side_effect=Reached):
        try:
            composed, config = compose_config(list(overrides))
            with trainer_run.training_run(config, plain(composed)):
                raise AssertionError("nothing was started")
        except Reached:
            return ACCEPTED, ""
        except UserError as error:
            words = str(error)
            readable = len(words) <= LONGEST and words.isprintable()
            return REFUSED if readable else UNREADABLE, words
        except Exception as error:
            return RAISED, f"{type(error).__name__}: {error}"
