"""docs/extending.md as it stands: its files, its settings, one training from another folder."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from verl.trainer.checkpoint import load_driver_state

from ..runs import REPO, run

PAGE = (REPO / "docs/extending.md").read_text(encoding="utf-8")
FILES = re.findall(r"```python\n# (my_agent/\w+\.py)\n(.*?)```", PAGE, re.DOTALL)
SETTINGS = [
    line
    for block in re.findall(r"^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if re.match(r"[\w.]+=", line)
]


def write_package(folder: Path) -> None:
    for name, code in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    (folder / "my_agent/__init__.py").touch()


def run_training(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The page's command: only this repository is on PYTHONPATH, the user's folder is the cwd."""
    arguments = ("--config-name", "custom_env", "trainer.default_local_dir=run", *SETTINGS)
    return run("main_ppo", *arguments, *overrides, cwd=folder)


def test_the_page_has_a_setting_for_every_file():
    chosen = {name for setting in SETTINGS for name in re.findall(r"my_agent\.(\w+):", setting)}
    assert chosen == {Path(name).stem for name, _ in FILES}


@pytest.mark.slow
def test_a_mistake_in_ones_own_options_is_refused_before_anything_starts(tmp_path):
    write_package(tmp_path)
    done = run_training(tmp_path, "algorithm.entropy_control.options.flor=1")
    assert done.returncode != 0
    assert "unknown key 'algorithm.entropy_control.options.flor'; did you mean 'floor'?" in (
        done.stdout + done.stderr
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_uses_every_part_of_the_users_own_package(tmp_path):
    write_package(tmp_path)
    done = run_training(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "run"
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if "actor/pg_loss" in step]
    assert [step["step"] for step in steps] == [1, 2]

    # environment: its episodes end with the first command
    assert all(step["episode/length/mean"] == 1.0 for step in steps)
    assert '"task": "Lights"' in next((folder / "rollouts").rglob("*.jsonl")).read_text()
    # entropy control: no entropy lies further below the floor than 0.8 nats
    assert all(0.0 < step["entropy_floor/below"] <= 0.8 for step in steps)
    # tracker: a row a step, and its state in the checkpoint under the name it was given
    rows = (folder / "success.csv").read_text().splitlines()
    assert rows == [f"{step['step']},{step['episode/success_rate']}" for step in steps]
    state = load_driver_state(folder / "global_step_2")["tracker"]
    assert state["my_agent.csv_tracker:CsvTracker"] == {"rows": 2}
    # estimator: somebody is the best and nobody is below 0 (GRPO's advantages add up to 0)
    assert all(step["critic/advantages/max"] == 1.0 for step in steps)
    assert all(step["critic/advantages/min"] in (0.0, 1.0) for step in steps)
    # loss: its own metric
    assert all(step["likelihood/nll"] > 0.0 for step in steps)
    # schedule: the second of two steps has half of the rate
    assert steps[1]["actor/lr"] == steps[0]["actor/lr"] / 2
    # engine: four tokens are the most it answers, and it hands the live check on
    assert all(step["training/live_check_diff"] < 0.01 for step in steps)
    assert all(step["response_length/max"] <= 4 for step in steps)
