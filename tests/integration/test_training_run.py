"""The trainer as a user runs it: real Ray, real ScienceWorld, a real model, real processes."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from verl.trainer.ppo.rollout_log import read_rollouts

from ..runs import REPO, SMALL, UNVALIDATED, command, environment, run
from ..waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SLOTS = 2
QUICKSTART = [
    *("--config-name", "quickstart"),
    *SMALL,
    f"env.pool.slots_per_worker={SLOTS}",
    "env.val.held_out.tasks=[find-living-thing]",
    "env.val.held_out.max_tasks=2",
]
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
# What must not depend on whether a run was interrupted. Times and memory do.
COMPARED = ("actor/", "critic/", "episode/success_rate", "epo/", "training/", "val/")


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run("main_ppo", *settings(folder, *overrides), cwd=folder.parent)


def settings(folder: Path, *overrides: str) -> list[str]:
    return [*QUICKSTART, f"trainer.default_local_dir={folder}", *overrides]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def of_step(folder: Path, step: int) -> dict[str, float]:
    """The tracked numbers of one training step that do not depend on the clock."""
    (row,) = [
        m for m in metrics(folder) if m["training/global_step"] == step and "actor/pg_loss" in m
    ]
    return {k: v for k, v in row.items() if k.startswith(COMPARED)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Three uninterrupted steps of GRPO with EPO, a checkpoint at step 2 and at the end."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = train(
        folder,
        "trainer.total_training_steps=3",
        "trainer.save_freq=2",
        "trainer.logger=[console,file,tensorboard,wandb]",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "console.txt").write_text(done.stderr + done.stdout)
    return folder


def test_a_run_leaves_everything_a_user_needs(finished):
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "run.log"):
        assert (finished / name).stat().st_size > 0, name
    assert list(finished.glob("**/*.png")), "no curves"
    assert (finished / "latest_checkpointed_iteration.txt").read_text().strip() == "3"
    assert sorted(p.name for p in finished.glob("global_step_*")) == [
        "global_step_2",
        "global_step_3",
    ]
    recorded = json.loads((finished / "environment.json").read_text())
    assert recorded["packages"]["torch"] and recorded["validation_sets"]["held_out"]["n"] == 2
    assert recorded["validation_sets"]["held_out"]["in_training"] == 0
    assert recorded["train_tasks"]["name"] == "L0_train" and recorded["train_tasks"]["hash"]
    assert yaml.safe_load((finished / "config.yaml").read_text())["epo"]["enable"] is True
    (wandb,) = finished.glob("**/*.wandb")  # W&B's record has the tasks' hash too
    assert recorded["train_tasks"]["hash"].encode() in wandb.read_bytes()
    files = sorted(path.name for path in (finished / "rollouts").iterdir())
    assert files == ["train_from_1.jsonl", "val_from_0.jsonl"]


def test_every_metric_is_in_the_docs(finished, undeclared_metrics):
    assert undeclared_metrics(finished / "metrics.jsonl") == []


def test_every_step_is_tracked_once_with_the_promised_metrics(finished):
    steps = [m["training/global_step"] for m in metrics(finished) if "actor/pg_loss" in m]
    assert steps == [1, 2, 3]
    names = set().union(*metrics(finished))
    for name in (
        "epo/beta",
        "epo/lower",
        "epo/upper",
        "epo/share_above",
        "epo/share_below",
        "epo/penalty",
        "epo/entropy_turn/0",
        "actor/grad_norm",
        "actor/lr",
        "episode/success_rate",
        "timing_s/collect",
        "timing_s/rollout",
        "training/rollout_probs_diff_std",
        "training/rollout_kl_k3",
        "training/rollout_ess",
        "training/weight_age",
        "timing_s/update_actor",
        "val/held_out/sampled/success_rate",
        "val/held_out/greedy/success_low",
        "perf/throughput",
    ):
        assert name in names, name


def test_tasks_are_loaded_while_the_step_before_trains(finished):
    ahead = [m["rollout/tasks_loaded_ahead"] for m in metrics(finished) if "actor/pg_loss" in m]
    assert ahead == [0, SLOTS, SLOTS]


def test_rollouts_tell_what_was_played(finished):
    played = list(read_rollouts(finished / "rollouts", "train"))
    assert [episode["step"] for episode in played] == [1] * 4 + [2] * 4 + [3] * 4  # 2 tasks twice
    assert played[0]["turns"] and {"success", "score"} <= set(played[0])
    parts = {episode["part"] for episode in read_rollouts(finished / "rollouts", "val")}
    assert parts == {"held_out_sampled", "held_out_greedy"}


def test_an_interrupted_run_continues_with_the_same_numbers(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "global_step_3")
    (folder / "latest_checkpointed_iteration.txt").write_text("2")
    done = train(folder, "trainer.total_training_steps=3", "trainer.save_freq=2")
    assert done.returncode == 0, done.stderr[-4000:]
    expected, resumed = of_step(finished, 3), of_step(folder, 3)
    assert resumed == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert played_texts(folder) == played_texts(finished)


def played_texts(folder: Path) -> list[tuple[int, str, list[str]]]:
    """Step, uid and replies of every training episode."""
    return [
        (episode["step"], episode["traj_uid"], [turn["response"] for turn in episode["turns"]])
        for episode in read_rollouts(folder / "rollouts", "train")
    ]


def test_a_killed_run_resumes_and_leaves_no_process(tmp_path):
    folder = tmp_path / "run"
    options = (*UNVALIDATED, "trainer.total_training_steps=4", "trainer.save_freq=1")
    process = subprocess.Popen(
        command("main_ppo", *settings(folder, *options)),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: (folder / "global_step_2").exists(), 300)
    names = {p: " ".join(p.cmdline()) for p in psutil.Process(process.pid).children(recursive=True)}
    assert any("environments.worker" in name for name in names.values())
    assert any("scienceworld" in name for name in names.values())  # its Java process
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Ray's own agents notice a minute later that their cluster is gone
    ours = [p for p, name in names.items() if not name.startswith(RAY_AGENTS)]
    wait_until(lambda: not any(is_alive(p) for p in ours))
    done = train(folder, *options)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [m["training/global_step"] for m in metrics(folder)] == [1, 2, 3, 4]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_evaluation_repeats_the_last_validation(finished):
    checkpoint = f"checkpoint={finished / 'global_step_3'}"
    done = run("main_eval", checkpoint, cwd=finished)
    assert done.returncode == 0, done.stderr[-4000:]
    (result,) = finished.glob("eval_*/eval.json")
    validated = {k: v for m in metrics(finished)[-2:] for k, v in m.items() if k.startswith("val/")}
    evaluation = json.loads(result.read_text())
    assert evaluation["metrics"] == pytest.approx(validated)
    recorded = json.loads((finished / "environment.json").read_text())
    assert evaluation["validation_sets"] == recorded["validation_sets"]
    assert "95% interval" in done.stderr + done.stdout


def test_an_export_is_a_plain_folder_of_the_trained_weights(finished, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = tmp_path / "exported"
    arguments = (f"checkpoint={finished / 'global_step_3'}", f"output={target}")
    done = run("main_export", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    trained = AutoModelForCausalLM.from_pretrained(target)
    start = AutoModelForCausalLM.from_pretrained(REPO / "examples" / "small_policy" / "model")
    assert AutoTokenizer.from_pretrained(target).chat_template
    moved = [
        not torch.equal(a, b) for a, b in zip(trained.parameters(), start.parameters(), strict=True)
    ]
    assert any(moved)


def test_ppo_with_critic_reference_and_turn_rows(tmp_path, undeclared_metrics):
    folder = tmp_path / "run"
    done = train(
        folder,
        *UNVALIDATED,
        "algo=ppo",
        "env.context.kind=turn",
        "trainer.total_training_steps=2",
        "actor_rollout_ref.actor.use_kl_loss=true",
        "algorithm.use_kl_in_reward=true",
        "trainer.critic_warmup=1",
        "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "critic.ppo_mini_batch_size=8",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = metrics(folder)
    assert "critic/vf_loss" in first and "actor/pg_loss" not in first  # critic warm-up
    assert "actor/kl_loss" in second and "actor/reward_kl_penalty" in second
    assert "epo/entropy" in second
    assert undeclared_metrics(folder / "metrics.jsonl") == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.totl_training_steps=3"], ["totl_training_steps", "total_training_steps"]),
        (["actor_rollout_ref.model.path=/no/such/model"], ["/no/such/model"]),
        (["env.env_name=sciworld/Nowhere"], ["sciworld/Nowhere", "sciworld/SciWorldEnv"]),
        (["env.train.name=L9_train"], ["L9_train"]),
        (["data.max_prompt_length=1001"], ["rows of 1025 tokens", "max_position_embeddings=1024"]),
        (["algorithm.adv_estimator=grop"], ["grop", "grpo"]),
        (["trainer.logger=[consol]"], ["consol", "console"]),
        (["trainer.n_gpus_per_node=4000"], ["4000"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, overrides, words):
    done = train(tmp_path / "run", *overrides)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "run").exists()
