"""Trainers and engines of a run on GPUs, without environments: what the tests here share."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import ray
import torch
from ray import cloudpickle

from agent_system.types import SamplingParams
from verl import DataProto
from verl.algorithms.aggregation import loss_normalizers
from verl.algorithms.entropy_control import StepContext
from verl.config.compose import compose_config
from verl.config.machine import check_machine
from verl.config.plan import RunPlan, make_plan
from verl.config.root import PPOConfig
from verl.trainer.ppo.cluster import Workers, process_count, start_workers
from verl.trainer.session import ray_cluster
from verl.workers.rollout.base import Generation
from verl.workers.rollout.engines import build_engine
from verl.workers.update_context import UpdateContext

# Ray's workers cannot import a test's module by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PROMPT = list(range(10, 26))
RESPONSE = 12
ROWS = 4


class TrainingWorker:
    """A rollout worker without environments."""

    def __init__(self, config: PPOConfig, plan: RunPlan, rank: int) -> None:
        self._engine = build_engine(config.actor_rollout_ref, plan.engine)

    def start(self) -> None:
        self._engine.start()

    def update_weights(self, update: Any) -> None:
        self._engine.load_weights(update)

    def transfer(self, stage: str, payload: Any) -> bool:
        return self._engine.transfer(stage, payload)

    def sleep(self) -> None:
        self._engine.sleep()

    def greedy(self) -> Generation:
        sampling = SamplingParams(max_tokens=RESPONSE, temperature=0.0)
        return asyncio.run(self._engine.generate(PROMPT, sampling, trajectory_id="t"))

    def cancel(self) -> None:
        """Nothing runs between calls."""

    def close(self) -> None:
        self._engine.close()


def gpu_config(policy_path: str, *overrides: str) -> PPOConfig:
    return compose_config(
        [
            f"actor_rollout_ref.model.path={policy_path}",
            "actor_rollout_ref.rollout.name=vllm",
            "actor_rollout_ref.rollout.gpu_memory_utilization=0.3",
            "actor_rollout_ref.rollout.enforce_eager=true",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
            "actor_rollout_ref.actor.optim.lr=0.01",
            "actor_rollout_ref.rollout.max_model_len=256",
            "data.max_prompt_length=128",
            "data.max_response_length=128",
            "trainer.device=cuda",
            *overrides,
        ],
        "ppo_trainer",
    )[1]


@contextmanager
def gpu_run(config: PPOConfig) -> Iterator[Workers]:
    """Checked, started and ended as the trainer does it."""
    plan = make_plan(config)
    check_machine(config, plan)
    world: Any = SimpleNamespace(worker_class=TrainingWorker)
    with (
        ray_cluster(config.ray_kwargs.ray_init, process_count(config, plan)),
        closing(start_workers(config, plan, world, None, total_steps=10)) as workers,
    ):
        yield workers


def greedy(workers: Workers) -> list[Generation]:
    """What each engine says to the same prompt."""
    return ray.get([worker.greedy.remote() for worker in workers.rollouts.workers])


def rows_of(token_ids: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Equal rows of the prompt and this response, padded on the right."""
    ids = torch.full((ROWS, len(PROMPT) + RESPONSE), 2)
    ids[:, : len(PROMPT) + len(token_ids)] = torch.tensor([*PROMPT, *token_ids])
    mask = (torch.arange(RESPONSE) < len(token_ids)).long().expand(ROWS, RESPONSE)
    seen = torch.cat([torch.ones(ROWS, len(PROMPT), dtype=torch.long), mask], dim=-1)
    return {"input_ids": ids, "attention_mask": seen, "response_mask": mask}


def trainer_log_probs(workers: Workers, generation: Generation) -> torch.Tensor:
    data = DataProto.from_dict(rows_of(generation.token_ids))
    log_probs = workers.actor.compute_log_prob(data).batch["old_log_probs"]
    return log_probs[0, : len(generation.token_ids)]


def train(workers: Workers, generation: Generation) -> None:
    """One large step away from this response."""
    rows = rows_of(generation.token_ids)
    rows |= dict(workers.actor.compute_log_prob(DataProto.from_dict(rows)).batch.items())
    rows["advantages"] = -torch.ones(ROWS, RESPONSE)
    context = UpdateContext(StepContext(0, 10), **loss_normalizers(rows["response_mask"]))
    workers.actor.update_actor(DataProto.from_dict(rows), context)


def assert_in_sync(workers: Workers, version: int) -> list[Generation]:
    """Every engine samples by the trainer's weights of now. Returns what they said."""
    generations = greedy(workers)
    for generation in generations:
        assert generation.weight_version == version
        ours = trainer_log_probs(workers, generation)
        # bfloat16 in two implementations: 0.04 on average and 0.1 at most were measured
        torch.testing.assert_close(
            torch.tensor(generation.log_probs), ours, atol=0.15, rtol=0, check_dtype=False
        )
    assert len({generation.token_ids for generation in generations}) == 1
    return generations
