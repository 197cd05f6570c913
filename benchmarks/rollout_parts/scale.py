"""`scale`: what the loop and the driver cost, and whether episodes/s grow with the replicas."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import ray

from agent_system.adapters.rollout_worker import RolloutWorker
from agent_system.config import TaskSetConfig
from agent_system.types import Episode, SamplingParams
from rollout_parts.report import share, show
from rollout_parts.scripted import PACKAGE, ScriptedOptions, ScriptedPool
from rollout_parts.simulated import Latencies
from verl.config.compose import compose_config
from verl.config.plan import make_plan
from verl.config.root import PPOConfig
from verl.workers.rollout.rollout_workers import RolloutPlacement, RolloutWorkers

LATENCIES = Path(__file__).with_name("latencies.json")


class ScaleWorker(RolloutWorker):
    """The trainer's rollout worker with environments that need no process."""

    def _open_pool(self) -> ScriptedPool:
        pool = self._config.env.pool
        return ScriptedPool(ScriptedOptions(**self._config.env.options), pool.slots_per_worker)

    def stats(self) -> dict[str, float]:
        return {**super().stats(), "process/cpu_seconds": time.process_time()}


@dataclass(frozen=True)
class Load:
    """One measured rollout. CPU seconds: of the driver, and of all worker processes."""

    replicas: int
    episodes: int
    turns: int
    seconds: float
    driver_cpu_s: float
    workers_cpu_s: float
    driver_rss_gb: float

    @property
    def rate(self) -> float:
        """Episodes a second."""
        return self.episodes / self.seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--episodes", type=int, default=128, help="at once on each replica")
    parser.add_argument("--response-tokens", type=int, default=24, help="at most, a turn")
    parser.add_argument("--latencies", type=Path, default=LATENCIES, help="what calibrate wrote")
    parser.add_argument("--speed", type=float, default=8.0, help="times the measured engine")
    parser.add_argument("--repeats", type=int, default=1, help="medians of so many rollouts")


def run(options: argparse.Namespace) -> None:
    """Weak scaling: every replica plays `options.episodes` at once."""
    with tempfile.TemporaryDirectory() as folder, local_ray(max(options.replicas)):
        config = scale_config(options, Path(folder))
        loads = [measure(config, replicas, options) for replicas in options.replicas]
    first, last = loads[0], loads[-1]
    per_replica = first.rate / first.replicas
    show(
        ["replicas", "episodes at once", "seconds", "episodes/s", "of linear", "driver CPU",
         "driver memory, GB", "all workers' CPU, cores", "CPU a turn, ms"],
        [
            [load.replicas, load.episodes, load.seconds, load.rate,
             share(load.rate, per_replica * load.replicas), share(load.driver_cpu_s, load.seconds),
             load.driver_rss_gb, load.workers_cpu_s / load.seconds,
             1000 * (load.workers_cpu_s + load.driver_cpu_s) / load.turns]
            for load in loads
        ],
        [
            f"Goal: at least 85% of linear at {last.replicas} replicas; here "
            f"{share(last.rate, per_replica * last.replicas)}. Engine: {config_note(options)}",
        ],
    )  # fmt: skip


def config_note(options: argparse.Namespace) -> str:
    speed = "" if options.speed == 1.0 else f", {options.speed:g} times as fast"
    return f"{Latencies.read(options.latencies).measured_on}{speed}."


def scale_config(options: argparse.Namespace, folder: Path) -> PPOConfig:
    """SmolLM2's tokenizer and prompts of a language model, the simulated engine behind them."""
    measured = Latencies.read(options.latencies)
    engine_file = folder / "latencies.json"
    replace(
        measured,
        decode_ms=tuple(ms / options.speed for ms in measured.decode_ms),
        prefill_tokens_per_s=measured.prefill_tokens_per_s * options.speed,
    ).write(engine_file)
    _, config = compose_config(
        [
            "env=sciworld",
            "env.context.kind=trajectory",
            "env.max_steps=30",
            f"env.env_name='{PACKAGE.name}'",
            f"env.pool.slots_per_worker={options.episodes}",
            f"data.max_response_length={options.response_tokens}",
            "data.max_prompt_length=4096",
            "actor_rollout_ref.rollout.name=rollout_parts.simulated:build_simulated",
            f"actor_rollout_ref.rollout.max_num_seqs={options.episodes}",
            f"actor_rollout_ref.model.path='{engine_file}'",
            "actor_rollout_ref.model.tokenizer_path=smollm2",
            f"trainer.default_local_dir='{folder}'",
        ],
        "smollm2",
    )
    return replace(config, env=replace(config.env, options=asdict(ScriptedOptions())))


@contextmanager
def local_ray(replicas: int) -> Iterator[None]:
    ray.init(address="local", num_cpus=replicas + 1, include_dashboard=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def measure(config: PPOConfig, replicas: int, options: argparse.Namespace) -> Load:
    """The median of `options.repeats` rollouts by their seconds, after a short one."""
    group = RolloutWorkers(
        ScaleWorker, config, replace(make_plan(config), rollout_workers=replicas),
        [RolloutPlacement("SPREAD", 1, 0)] * replicas,
        {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    try:
        group.wait_until_started()
        warm_up = make_episodes(replicas, 1, "warm_up")
        group.collect(warm_up, SamplingParams(max_tokens=24), seed=0)
        episodes = make_episodes(replicas, options.episodes, "walk")
        loads = [
            collect(group, episodes, options.response_tokens, seed)
            for seed in range(options.repeats)
        ]
    finally:
        group.close()
    return sorted(loads, key=lambda load: load.seconds)[len(loads) // 2]


def make_episodes(replicas: int, per_replica: int, name: str) -> list[Episode]:
    """Groups of one episode. Dealt in turn, every replica gets the same mixture of lengths."""
    tasks = PACKAGE.bind({}).tasks(TaskSetConfig(name=name))
    return [
        Episode(tasks[i // replicas % len(tasks)], f"{name}-{i}", f"{name}-{i}/0")
        for i in range(replicas * per_replica)
    ]


def collect(group: RolloutWorkers, episodes: list[Episode], tokens: int, seed: int) -> Load:
    sampling = SamplingParams(max_tokens=tokens, stop=("</action>",))
    driver = psutil.Process()
    before_workers, before_driver = workers_cpu(group), cpu_seconds(driver)
    started = time.perf_counter()
    trajectories = group.collect(episodes, sampling, seed)
    seconds = time.perf_counter() - started
    driver_cpu_s = cpu_seconds(driver) - before_driver
    return Load(
        replicas=len(group),
        episodes=len(trajectories),
        turns=sum(trajectory.num_turns for trajectory in trajectories),
        seconds=seconds,
        driver_cpu_s=driver_cpu_s,
        workers_cpu_s=workers_cpu(group) - before_workers,
        driver_rss_gb=driver.memory_info().rss / 1e9,
    )


def workers_cpu(group: RolloutWorkers) -> float:
    return sum(stats["process/cpu_seconds"] for stats in group.stats())


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
