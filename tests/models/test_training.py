"""A mixture of experts in whole runs: what each engine sampled has the trainer's probabilities."""

from __future__ import annotations

import json

import pytest

from ..runs import LAKE, run
from .tiny import write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = [
    *LAKE,
    "env.pool.slots_per_worker=2",
    "actor_rollout_ref.actor.entropy_coeff=0.1",  # a gradient even if no game is won
]


@pytest.mark.parametrize("engine", ["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_qwen3_moe_learns_from_what_its_engine_sampled(tmp_path, engine):
    policy = write_tiny_model("qwen3_moe", tmp_path / "policy", max_position_embeddings=1024)
    done = run(
        "main_ppo",
        *SETTINGS,
        f"trainer.default_local_dir={tmp_path / 'run'}",
        f"actor_rollout_ref.model.path={policy}",
        f"actor_rollout_ref.rollout.name={engine}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "training/rollout_probs_diff_max" in line]
    assert len(steps) == 2
    for step in steps:
        assert step["training/rollout_probs_diff_max"] < 1e-3
        assert step["training/live_check_diff"] < 1e-3
        assert step["actor/grad_norm"] > 0
