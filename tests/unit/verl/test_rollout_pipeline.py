"""Rollouts on demand and one step ahead: the order of calls, errors, checkpoints, the last step.

The trainer is the real one; its workers and its world are recorders.
"""

import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from verl import DataProto
from verl.config.algorithm import AlgorithmConfig, DataConfig
from verl.config.plan import make_plan
from verl.config.root import PPOConfig
from verl.config.trainer import RunConfig
from verl.trainer.checkpoint import load_driver_state
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.trainer.ppo.rollout_pipeline import RolloutPipeline
from verl.utils.metrics import Mean
from verl.workers.interfaces import TaskSet

PATIENCE = 20  # seconds; a test that waits so long has failed


class World:
    """Task i is the integer i; every task is played by `n` episodes."""

    def __init__(self):
        self.drawn = 0

    def train_episodes(self, count, group_size):
        first, self.drawn = self.drawn, self.drawn + count
        return [f"task-{i}/{m}" for i in range(first, self.drawn) for m in range(group_size)]

    def validation_sets(self):
        return [TaskSet("held_out", [], "hash")]

    def sampling(self, mode):
        return mode

    def to_data_proto(self, trajectories):
        rows = len(trajectories)
        ones = torch.ones(rows, 2)
        return DataProto.from_single_dict(
            {
                "input_ids": torch.ones(rows, 3, dtype=torch.long),
                "attention_mask": torch.ones(rows, 3, dtype=torch.long),
                "response_mask": ones.long(),
                "turn_ids": torch.zeros(rows, 2, dtype=torch.long),
                "rollout_log_probs": -ones,
                "token_level_scores": torch.arange(rows)[:, None] * ones,
                "invalid_action_mask": 0 * ones,
                "uid": np.array([t.split("/")[0] for t, _ in trajectories], dtype=object),
                "traj_uid": np.array([t for t, _ in trajectories], dtype=object),
                "turn": np.zeros(rows, dtype=np.int64),
                "weight_version": np.array([version for _, version in trajectories]),
            }
        )

    def metrics(self, trajectories):
        return {"episode/first_task": float(trajectories[0][0].split("/")[0].split("-")[1])}

    def record(self, trajectory):
        return {}

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


class Engines:
    """A trajectory is (episode, version of the weights). `gate(step)` runs while it plays."""

    def __init__(self, events, gate=lambda step: None):
        self.events, self.gate, self.version, self.calls = events, gate, None, 0

    def collect(self, episodes, sampling, seed, on_trajectory):
        self.events.append(f"collect {seed}")
        version = self.version
        self.gate(seed)
        self.events.append(f"collected {seed}")
        return [(episode, version) for episode in episodes]

    def metrics(self):
        self.calls += 1
        return {"rollout/requests": float(self.calls)}

    def sleep(self):
        self.events.append("sleep")

    def load_ahead(self, episodes):
        self.events.append(f"load {episodes[0]}")


class Actor:
    world_size = 1

    def __init__(self, events):
        self.events = events

    def compute_log_prob(self, batch):
        mask = batch.batch["response_mask"].float()
        return DataProto.from_dict({"old_log_probs": -0.5 * mask, "entropys": mask})

    def update_actor(self, batch, context):
        self.events.append("update")
        return [{"actor/pg_loss": Mean(0.0)}]

    def step_lr(self):
        return [0.1]

    def save_checkpoint(self, path):
        self.events.append("save")

    def load_checkpoint(self, path):
        self.events.append("load")


class Tracker:
    def __init__(self):
        self.lines = []

    def log(self, metrics, step):
        self.lines.append(metrics)

    def log_generations(self, records, step):
        pass

    def state_dict(self):
        return {}


def make_trainer(
    folder, *, async_steps, gate=lambda step: None, checkpoint=None, **run
) -> RayPPOTrainer:
    """`trainer.events` is what happened, in order. A seed is its step: the run's seed is 0."""
    events = []
    run = {"total_training_steps": 3, "val_before_train": False, "val_after_train": False} | run
    config = PPOConfig(
        env=SimpleNamespace(rollout=SimpleNamespace(n=2)),
        algorithm=AlgorithmConfig(rollout_correction="token_tis"),
        data=DataConfig(train_batch_size=1),
        trainer=RunConfig(
            async_steps=async_steps,
            default_local_dir=str(folder),
            rollout_data_dir=None,
            **run,
        ),
    )
    engines = Engines(events, gate)
    workers = SimpleNamespace(actor=Actor(events), critic=None, rollouts=engines)
    trainer = RayPPOTrainer(
        config, make_plan(config), World(), workers, None, Tracker(), checkpoint
    )
    trainer.events = events

    def sync():
        events.append(f"sync {trainer.step}")
        engines.version = trainer.step

    def play_validation(keep):
        events.append("validate")
        return {}

    trainer.sync_weights, trainer.validator.run = sync, play_validation
    return trainer


def tracked(trainer, name) -> list[float]:
    return [line[name] for line in trainer.tracker.lines if name in line]


def happened(trainer) -> list[str]:
    """Events without the ends of rollouts: those of a thread come at any time."""
    return [event for event in trainer.events if not event.startswith("collected")]


def test_on_policy_order(tmp_path):
    trainer = make_trainer(tmp_path, async_steps=0)
    trainer.fit()
    expected = ["sync 0"]
    for k in range(3):
        ahead = [f"load task-{k + 1}/0"] if k < 2 else []  # while the step trains
        expected += [f"collect {k}", f"collected {k}", "sleep", *ahead, "update", f"sync {k + 1}"]
    assert trainer.events == [*expected, "save"]
    assert tracked(trainer, "training/weight_age") == [0, 0, 0]
    assert tracked(trainer, "episode/first_task") == [0, 1, 2]


@pytest.mark.parametrize("async_steps", [0, 1])
def test_the_line_of_the_last_validation_does_not_hide_the_time_of_its_step(tmp_path, async_steps):
    trainer = make_trainer(tmp_path, async_steps=async_steps, val_after_train=True)
    trainer.fit()
    *steps, validation = trainer.tracker.lines
    assert all("timing_s/collect" in line for line in steps)
    assert "timing_s/validate" in validation and "timing_s/collect" not in validation


def test_one_step_ahead_the_rollout_runs_while_the_step_trains(tmp_path):
    trained = [threading.Event() for _ in range(3)]

    def gate(step):
        # the rollout of step k ends only after step k-1 has trained: without overlap it never does
        assert step == 0 or trained[step - 1].wait(PATIENCE)

    trainer = make_trainer(tmp_path, async_steps=1, gate=gate)
    update = trainer.workers.actor.update_actor

    def update_and_tell(batch, context):
        trained[trainer.step].set()
        return update(batch, context)

    trainer.workers.actor.update_actor = update_and_tell
    trainer.fit()
    # "sync 0" once: the first rollout found the engines with the present weights
    assert [event for event in happened(trainer) if "sync" in event] == ["sync 0", "sync 1"]
    assert [event for event in trainer.events if "collected" in event] == [
        "collected 0",
        "collected 1",
        "collected 2",
    ]
    assert "sleep" not in trainer.events
    assert tracked(trainer, "training/weight_age") == [0, 1, 1]
    assert tracked(trainer, "episode/first_task") == [0, 1, 2]
    # rollout log-prob -1, trainer's -0.5: ratio e^0.5 = 1.65 at every token
    assert tracked(trainer, "training/rollout_correction_clipped") == [0, 0, 0]


def test_weights_are_never_changed_under_a_running_rollout(tmp_path):
    trainer = make_trainer(tmp_path, async_steps=1, total_training_steps=4, test_freq=2)
    trainer.fit()
    playing = False
    for event in trainer.events:
        if event.startswith(("sync", "validate")):
            assert not playing, trainer.events
        if event.startswith("collect "):
            playing = True
        if event.startswith("collected"):
            playing = False


def test_nothing_is_played_that_nobody_trains_on(tmp_path):
    trainer = make_trainer(tmp_path, async_steps=1, total_training_steps=1)
    trainer.fit()
    assert trainer.events == ["sync 0", "collect 0", "collected 0", "update", "save"]
    assert trainer.world.drawn == 1


@pytest.mark.parametrize("async_steps", [0, 1])
def test_validation_sees_the_newest_weights_and_keeps_the_pending_rollout(tmp_path, async_steps):
    trainer = make_trainer(tmp_path, async_steps=async_steps, test_freq=2, val_after_train=True)
    trainer.fit()
    synced = None
    validated_with = []
    for event in trainer.events:
        if event.startswith("sync"):
            synced = event
        if event == "validate":
            validated_with.append(synced)
    assert validated_with == ["sync 2", "sync 3"]
    assert tracked(trainer, "episode/first_task") == [0, 1, 2]
    # the third rollout was started before validation; its weights are those of before update 2
    assert tracked(trainer, "training/weight_age") == ([0, 1, 1] if async_steps else [0, 0, 0])
    # the engines' counters of a validation (calls 3 or 4, and the last) belong to no step
    assert len(tracked(trainer, "rollout/requests")) == 3
    assert trainer.workers.rollouts.calls == 5


@pytest.mark.parametrize("async_steps", [0, 1])
def test_a_resumed_run_plays_every_task_once(tmp_path, async_steps):
    first = make_trainer(tmp_path, async_steps=async_steps, save_freq=2, total_training_steps=4)
    first.refresh_engines()
    first.train_step()
    first.train_step()
    # task 2 is drawn, and loaded or being played, but nobody has trained on it
    assert first.world.drawn == 3
    state = load_driver_state(tmp_path / "global_step_2")
    assert state["world"] == {"drawn": 2}

    resumed = make_trainer(
        tmp_path,
        async_steps=async_steps,
        total_training_steps=4,
        checkpoint=tmp_path / "global_step_2",
    )
    (tmp_path / "global_step_2" / "actor").mkdir()
    resumed.fit()
    assert tracked(resumed, "episode/first_task") == [2, 3]
    assert tracked(resumed, "training/weight_age") == [0, async_steps]  # at first on-policy
    seeds = [event for event in resumed.events if event.startswith("collect ")]
    assert seeds == ["collect 2", "collect 3"]


def test_an_error_of_the_background_reaches_the_trainer(tmp_path):
    def gate(step):
        if step == 1:
            raise ConnectionError("the engine is gone")

    trainer = make_trainer(tmp_path, async_steps=1, gate=gate)
    with pytest.raises(ConnectionError, match="the engine is gone"):
        trainer.fit()
    assert trainer.step == 1  # the first step was trained and tracked
    assert tracked(trainer, "episode/first_task") == [0]


def test_the_time_of_the_rollout_is_not_the_time_of_waiting(tmp_path):
    pause = threading.Event()

    def gate(step):
        pause.wait(0.2)

    trainer = make_trainer(tmp_path, async_steps=1, gate=gate, total_training_steps=2)
    update = trainer.workers.actor.update_actor

    def slow_update(batch, context):
        if trainer.step == 0:
            trainer.pipeline.wait()  # as if training took longer than the rollout
        return update(batch, context)

    trainer.workers.actor.update_actor = slow_update
    trainer.fit()
    assert min(tracked(trainer, "timing_s/rollout")) >= 0.2
    first, second = tracked(trainer, "timing_s/collect")
    assert first >= 0.2 and second < 0.1


def test_only_one_rollout_is_started_at_a_time(tmp_path):
    trainer = make_trainer(tmp_path, async_steps=1)
    trainer.pipeline.start(0)
    with pytest.raises(RuntimeError, match="pending already"):
        trainer.pipeline.start(1)
    assert len(trainer.pipeline.take(0).trajectories) == 2


@pytest.mark.parametrize("async_steps", [0, 1])
def test_a_rollout_that_is_interrupted_counts_for_nothing_in_a_checkpoint(tmp_path, async_steps):
    def interrupt(step):
        if step == 1:
            raise KeyboardInterrupt

    trainer = make_trainer(tmp_path, async_steps=async_steps, gate=interrupt)
    trainer.refresh_engines()
    trainer.train_step()
    with pytest.raises(KeyboardInterrupt):
        trainer.train_step()
    assert trainer.world.drawn == 2
    assert trainer.state_dict()["world"] == {"drawn": 1}


def test_uncorrected_old_rollouts_are_warned_of_once(tmp_path, caplog):
    trainer = make_trainer(tmp_path, async_steps=1)
    assert "nothing corrects it" not in caplog.text
    config = PPOConfig(
        env=trainer.config.env, trainer=RunConfig(async_steps=1, default_local_dir=str(tmp_path))
    )
    RayPPOTrainer(config, make_plan(config), World(), trainer.workers, None, Tracker())
    assert caplog.text.count("nothing corrects it") == 1


@pytest.mark.slow
def test_a_rollout_without_end_does_not_keep_the_process_alive():
    script = (
        "import threading\n"
        "from verl.trainer.ppo.rollout_pipeline import run_in_thread\n"
        "run_in_thread(threading.Event().wait, 'stuck')\n"
        "raise SystemExit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert done.returncode == 3


def test_a_pipeline_alone_hands_out_the_tasks_in_order(tmp_path):
    trainer = make_trainer(tmp_path, async_steps=1)
    pipeline = RolloutPipeline(trainer.config, World(), trainer.workers.rollouts)
    pipeline.start(0)
    pipeline.wait()
    assert pipeline.world_state() == {"drawn": 0}  # played, but not taken
    assert pipeline.take(0).trajectories[0][0] == "task-0/0"
    assert pipeline.world_state() == {"drawn": 1}
    pipeline.load_ahead()
    assert pipeline.world_state() == {"drawn": 1}  # loaded, but not played
    pipeline.wait()
    assert pipeline.take(1).trajectories[0][0] == "task-1/0"
    assert pipeline.take(2).trajectories[0][0] == "task-2/0"
