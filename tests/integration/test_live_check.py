"""The live check in real runs: one whose engine's weights were scrambled by hand stops."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest

from verl.config.compose import compose_config
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.trainer.run import load_world, training_run

from ..random_policy import write_random_llama
from ..runs import LAKE, Lines, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DIFF = "training/live_check_diff"
SETTINGS = [
    *LAKE,
    "env.pool.slots_per_worker=1",  # one after the other: the last digits depend on the company
]
# An engine of one's own around a built-in one. From version 1 on, two tensors lose their order.
SCRAMBLED = """
import dataclasses
from verl.workers.rollout.hf_rollout import build_hf_rollout
from verl.workers.rollout.vllm_rollout.engine import build_vllm_rollout

SCRAMBLED = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight")


class Scrambled:
    def __init__(self, engine):
        self.engine = engine

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def load_weights(self, update):
        if update.version > 0:
            tensors = dict(update.tensors)
            for name in SCRAMBLED:
                dtype, shape, content = tensors[name]
                rows = content.reshape(shape[0], -1)
                tensors[name] = dtype, shape, rows[::-1].copy().reshape(-1)
            update = dataclasses.replace(update, tensors=tensors)
        self.engine.load_weights(update)


def hf(config, plan):
    return Scrambled(build_hf_rollout(config, plan))


def vllm(config, plan):
    return Scrambled(build_vllm_rollout(config, plan))
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    return write_random_llama(tmp_path_factory.mktemp("policy"))


def settings(folder: Path, policy: str, engine: str) -> list[str]:
    return [
        *SETTINGS,
        f"trainer.default_local_dir={folder}",
        f"actor_rollout_ref.model.path={policy}",
        f"actor_rollout_ref.rollout.name={engine}",
    ]


@pytest.mark.parametrize(
    ("engine", "cause"),
    [
        (
            "hf",
            "the engine does not hold these tensors as they were sent: "
            "model.layers.0.self_attn.q_proj.weight, model.layers.1.mlp.up_proj.weight;",
        ),
        pytest.param(
            "vllm",
            "they agreed at step 0, so new weights do not reach the engine;",
            marks=pytest.mark.vllm,
        ),
    ],
)
def test_scrambled_weights_stop_the_run_with_one_sentence(tmp_path, policy, engine, cause):
    (tmp_path / "scrambled.py").write_text(SCRAMBLED)
    arguments = settings(tmp_path / "run", policy, f"scrambled:{engine}")
    done = run("main_ppo", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr[-4000:]
    error = done.stderr[done.stderr.index("error: ") :]
    assert (
        f"after the weight sync of step 1 the engine of rollout worker 0 (scrambled:{engine})"
        in error
    )
    assert cause in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("engine", "overrides"),
    [
        ("hf", ["trainer.n_gpus_per_node=2"]),
        (
            "hf",
            [
                "actor_rollout_ref.model.lora_rank=4",
                "trainer.async_steps=1",
                "trainer.total_training_steps=3",  # the engines are given weights before 1 and 2
                "algorithm.rollout_correction=token_tis",
            ],
        ),
        pytest.param("vllm", [], marks=pytest.mark.vllm),
        pytest.param(
            "vllm",
            ["actor_rollout_ref.model.lora_rank=4"],
            marks=[pytest.mark.vllm, pytest.mark.long],
        ),
    ],
    ids=["hf on two ranks", "hf, LoRA, one step ahead", "vllm", "vllm, adapters"],
)
def test_the_check_changes_no_number_of_a_run(tmp_path, policy, engine, overrides):
    """Off and on, from the same weights: all numbers but times are equal to the last digit."""
    arguments = [*settings(tmp_path / "run", policy, engine), *overrides]
    _, config = compose_config(arguments, "ppo_trainer")
    with training_run(config, {}) as trainer:
        trainer.workers.actor.save_checkpoint(str(tmp_path / "untrained"))
        off, on = (fitted(trainer, tmp_path / "untrained", enable) for enable in (False, True))
    checks = [line.pop(DIFF) for line in on if DIFF in line]
    assert len(checks) == 2 and all(0 <= diff < 1e-3 for diff in checks)
    assert [without_times(line) for line in on] == [without_times(line) for line in off]


def fitted(trainer, checkpoint: Path, enable: bool) -> list[dict[str, float]]:
    """The lines of a whole run from the checkpoint's weights, with the workers of `trainer`."""
    trainer.workers.actor.load_checkpoint(str(checkpoint))
    config = deepcopy(trainer.config)
    config.actor_rollout_ref.rollout.live_check.enable = enable
    config.trainer.default_local_dir = str(checkpoint.parent / str(enable))
    lines = Lines()
    world = load_world(config)
    RayPPOTrainer(config, trainer.plan, world, trainer.workers, None, lines).fit()
    return lines.steps


def without_times(line: dict[str, float]) -> dict[str, float]:
    timed = ("timing_", "perf/", "rollout/engine_idle_share", "rollout/tokens_per_second")
    return {name: value for name, value in line.items() if not name.startswith(timed)}
