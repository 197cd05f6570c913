"""Cloning as a user runs it: real Ray, real processes, one rank and two."""

import json
import subprocess
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from ..runs import REPO, run

THINGS = ["table", "chair", "sink", "stove", "counter", "lighter", "painting"]


def clone(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    return run(
        "main_sft",
        *("--config-name", "sft_small_policy"),
        f"trainer.default_local_dir={folder}",
        *("model.path=small", "data.train_batch_size=3", "trainer.stop_after_epochs=2"),
        *overrides,
        cwd=REPO,
    )


@pytest.fixture(scope="module")
def games(tmp_path_factory) -> Path:
    """Seven conversations: with batches of three, two ranks need rows without content."""
    path = tmp_path_factory.mktemp("data") / "games.jsonl"
    rows = [
        [
            {"role": "user", "content": "kitchen : " + " , ".join(THINGS[: index + 1])},
            {"role": "assistant", "content": f"focus on {thing}"},
        ]
        for index, thing in enumerate(THINGS)
    ]
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in rows))
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_train_as_one_and_export_the_same_model(games, tmp_path, undeclared_metrics):
    losses, weights = [], []
    for ranks in (1, 2):
        folder = tmp_path / f"{ranks}_ranks"
        done = clone(folder, f"data.train_files=[{games}]", f"trainer.n_gpus_per_node={ranks}")
        assert done.returncode == 0, done.stderr[-4000:]
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["sft/loss"] for row in rows if "sft/loss" in row])
        assert undeclared_metrics(folder / "metrics.jsonl") == []
        recorded = json.loads((folder / "environment.json").read_text())
        assert recorded["packages"]["torch"] and recorded["device"] == "cpu"
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
        weights.append(model.get_input_embeddings().weight)
    assert len(losses[0]) == 6  # two epochs of ceil(7 / 3) batches
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert (weights[0] - weights[1]).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train_files=[none.jsonl]"], "error: the data file 'none.jsonl' does not exist"),
        (
            ["data.trian_files=[x]"],
            "error: unknown key 'data.trian_files'; did you mean 'data.train_files'?",
        ),
    ],
)
def test_a_mistake_ends_with_one_sentence_and_exit_code_2(tmp_path, overrides, message):
    done = clone(tmp_path / "run", *overrides)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1 and message in done.stderr
    assert "Traceback" not in done.stderr
