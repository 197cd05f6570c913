"""The scripts as a user starts them: what they print, and their exit codes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "examples" / "general_running_server.sh"
SCRIPTS = [
    *ROOT.glob("*.sh"),
    *(ROOT / "examples").rglob("*.sh"),
    ROOT / "tests" / "run.sh",
    ROOT / ".ci" / "run",
]
SCIWORLD_COMMAND = """
--environment sciworld --rl_algorithm "ppo" --seed 0 --lr 3e-6 --lr_warmup_steps_ratio 0.1
--min_lr_ratio 0.2 --warmup_style cosine --entropy_smooth True --enable_smooth_weights True
--entropy_smooth_mask_mode "token" --entropy_smooth_min_ratio 0 --entropy_smooth_max_ratio 2.0
--entropy_smooth_out_range_penalty 0.05 --model_path "/local_path/7b_model"
--model_load_method "local" --log_prob_micro_batch_size_per_gpu 8
--ppo_micro_batch_size_per_gpu 8 --ppo_mini_batch_size 64 --total_epochs 125
"""
ALFWORLD_COMMAND = """
--environment alfworld --rl_algorithm "ppo" --seed 1 --lr 5e-6 --lr_warmup_steps_ratio 0.1
--min_lr_ratio 0.2 --warmup_style cosine --entropy_smooth True --entropy_smooth_mask_mode "token"
--entropy_smooth_min_ratio 0 --entropy_smooth_max_ratio 2.0
--entropy_smooth_out_range_penalty 0.1 --model_path "/local_path/3b_model"
--model_load_method "local" --enable_smooth_weights True
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run in another folder, with this interpreter where the repository has no .venv."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_script_is_executable_bash(script, tmp_path):
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", script, cwd=tmp_path).stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            SCIWORLD_COMMAND,
            {
                "env.env_name": "sciworld/SciWorldEnv",
                "env.max_steps": 30,
                "epo.alpha": 0.05,
                "trainer.total_epochs": 125,
                "actor_rollout_ref.actor.optim.lr": 3e-6,
                "critic.optim.lr": 3e-6,
                "actor_rollout_ref.actor.ppo_mini_batch_size": 64,
                "actor_rollout_ref.model.path": "/local_path/7b_model",
            },
        ),
        (
            ALFWORLD_COMMAND,
            {
                "env.env_name": "alfworld/AlfredTWEnv",
                "env.max_steps": 50,
                "epo.alpha": 0.1,
                "trainer.seed": 1,
                "trainer.total_epochs": 150,
                "actor_rollout_ref.actor.optim.lr": 5e-6,
                "critic.model.path": "/local_path/3b_model",
            },
        ),
    ],
    ids=["sciworld", "alfworld"],
)
def test_published_commands_compose_with_epo_on(flags, expected, tmp_path):
    done = run("bash", LAUNCHER, *shlex.split(flags), "--dry_run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    expected |= {
        "algorithm.adv_estimator": "gae",
        "data.train_batch_size": 128,  # 16 tasks * 8, one episode each
        "env.rollout.n": 1,
        "epo.enable": True,
        "epo.schedule": "paper",
        "epo.kappa_l": 0.0,
        "epo.kappa_r": 2.0,
        "epo.gamma": 3.0,
        "epo.penalty": "relu",
        "epo.entropy_coeff": 0.001,
        "actor_rollout_ref.actor.entropy_coeff": 0.0,
        "actor_rollout_ref.actor.kl_loss_coef": 0.01,
        "actor_rollout_ref.actor.optim.warmup_style": "cosine",
        "actor_rollout_ref.rollout.val_kwargs.temperature": 0.4,
    }
    assert {key: OmegaConf.select(config, key) for key in expected} == expected
    assert list(tmp_path.iterdir()) == []  # a dry run leaves nothing behind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model_path m --sed 1", "unknown flag '--sed'; did you mean --seed?"),
        ("--model_path m --dry_run -- trainer.sed=1", "unknown key 'trainer.sed'"),
        ("--model_path m --group_size 1 --dry_run", "set env.rollout.n to at least 2"),
        (
            "--model_path /nowhere/model --n_gpus 1 --environment sciworld -- trainer.device=cpu",
            "/nowhere/model",
        ),
    ],
    ids=["flag", "key", "sizes", "model"],
)
def test_mistakes_end_with_code_2_and_one_sentence(arguments, message, tmp_path):
    done = run("bash", LAUNCHER, *shlex.split(arguments), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize("environment", ["sciworld", "alfworld"])
def test_run_scripts_compose(algorithm, environment, tmp_path):
    script = ROOT / "examples" / f"{algorithm}_trainer" / f"run_{environment}.sh"
    done = run("bash", script, "--dry_run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert config.env.env_name.startswith(environment)
    assert config.algorithm.adv_estimator == {"ppo": "gae", "grpo": "grpo"}[algorithm]
    assert config.epo.enable and config.epo.schedule == "paper"


@pytest.fixture
def clone(tmp_path):
    """The scripts with the set-up replaced by one that only notes what it was asked for."""
    root = tmp_path / "clone"
    root.mkdir()
    shutil.copytree(
        ROOT / "examples", root / "examples", ignore=shutil.ignore_patterns("small_policy")
    )
    for package in ("verl", "agent_system", "epo"):
        (root / package).symlink_to(ROOT / package)
    binaries = root / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for path, text in (
        (root / "examples" / "setup_env.sh", 'echo "setup $*" >&2'),
        (binaries / "alfworld-download", 'echo "download $*" >&2'),
        (binaries / "python", f'exec {sys.executable} "$@"'),
    ):
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "steps"),
    [("sciworld", []), ("alfworld", ["download --data-dir {data}"])],
)
def test_instructions_set_up_and_then_train(clone, monkeypatch, environment, steps):
    script = f"instruct_to_run_{environment}.sh"
    shutil.copy(ROOT / script, clone)
    data = clone / "games"
    monkeypatch.setenv("ALFWORLD_DATA", str(data))
    monkeypatch.setenv("EXTRAS", "flash-attn")
    monkeypatch.setenv("ALGO", "grpo")
    done = run("bash", clone / script, "org/model", "--seed", "4", "--dry_run", cwd=clone.parent)
    assert done.returncode == 0, done.stderr
    said = [f"setup {environment},flash-attn,vllm", *(step.format(data=data) for step in steps)]
    assert done.stderr.splitlines() == said
    config = OmegaConf.create(done.stdout)
    assert config.env.env_name.startswith(environment)
    assert config.actor_rollout_ref.rollout.name == "vllm"
    assert config.actor_rollout_ref.model.path == "org/model"
    assert (config.trainer.seed, config.algorithm.adv_estimator) == (4, "grpo")


@pytest.mark.slow
@pytest.mark.parametrize("present", ["logic/alfred.twl2", "generated.json"])
def test_games_that_are_there_are_not_downloaded(clone, monkeypatch, present):
    shutil.copy(ROOT / "instruct_to_run_alfworld.sh", clone)
    marker = clone / "games" / present
    marker.parent.mkdir(parents=True)
    marker.touch()
    monkeypatch.setenv("ALFWORLD_DATA", str(clone / "games"))
    monkeypatch.setenv("ENGINE", "hf")
    done = run("bash", clone / "instruct_to_run_alfworld.sh", "m", "--dry_run", cwd=clone.parent)
    assert (done.returncode, done.stderr) == (0, "setup alfworld\n")
    assert OmegaConf.create(done.stdout).actor_rollout_ref.rollout.name == "hf"


def test_a_failed_download_names_the_generator(clone, monkeypatch):
    shutil.copy(ROOT / "instruct_to_run_alfworld.sh", clone)
    (clone / ".venv" / "bin" / "alfworld-download").write_text("#!/usr/bin/env bash\nexit 1\n")
    monkeypatch.setenv("ALFWORLD_DATA", str(clone / "games"))
    done = run("bash", clone / "instruct_to_run_alfworld.sh", cwd=clone.parent)
    assert done.returncode == 2
    assert "env_package.alfworld.generate --out <folder>" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("arguments", "estimator"), [([], "gae"), (["grpo"], "grpo")])
def test_the_cpu_run_makes_games_and_then_trains(clone, arguments, estimator):
    python = clone / ".venv" / "bin" / "python"
    python.write_text('#!/usr/bin/env bash\necho "python $*" >&2\n')
    script = clone / "examples" / "alfworld_cpu.sh"
    done = run("env", "-u", "ALFWORLD_DATA", "bash", script, *arguments, "a.b=1", cwd=clone.parent)
    assert done.returncode == 0, done.stderr
    setup, games, training = done.stderr.splitlines()
    assert setup == "setup alfworld"
    assert f"alfworld.generate --out {clone}/runs/alfworld_games --games 60" in games
    assert "verl.trainer.main_ppo --config-name alfworld_small" in training
    assert training.endswith("a.b=1")
    algorithm = training.partition(" algo=")[2].split()[0]
    preset = OmegaConf.load(ROOT / "verl" / "trainer" / "config" / "algo" / f"{algorithm}.yaml")
    assert preset.algorithm.adv_estimator == estimator


def test_set_up_needs_a_recent_python(tmp_path):
    root = tmp_path / "clone"
    (root / "examples").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "setup_env.sh", root / "examples")
    shutil.copy(ROOT / "pyproject.toml", root)
    old = tmp_path / "old_python"
    old.write_text("#!/usr/bin/env bash\nexit 1\n")  # what a version check of an old Python gives
    old.chmod(0o755)
    done = run("env", f"PYTHON={old}", "bash", root / "examples" / "setup_env.sh", cwd=tmp_path)
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed" in done.stderr
    assert not (root / ".venv").exists()
