"""Checkpoints of a run: complete or absent, found by the resume mode, the newest kept."""

import os
import re
from datetime import date

import pytest
import torch

from verl.config.model import ModelConfig
from verl.config.trainer import RunConfig
from verl.trainer.checkpoint import (
    DRIVER_FILE,
    CheckpointStore,
    check_has_critic,
    date_on_resume,
    load_driver_state,
)
from verl.trainer.main_eval import split_checkpoint
from verl.utils.errors import UserError


def store(folder, **options) -> CheckpointStore:
    return CheckpointStore(RunConfig(default_local_dir=str(folder), **options))


def write_weights(folder) -> None:
    (folder / "actor").mkdir()


def test_a_saved_state_comes_back_as_it_was(tmp_path):
    state = {"step": 3, "world": {"drawn": [1, 2]}, "plugin": {"past": (0.5, 0.25)}, "tracker": {}}
    store(tmp_path).save(3, state, write_weights)
    found = store(tmp_path).find()
    assert found.name == "global_step_3" and (found / "actor").is_dir()
    assert load_driver_state(found) == state


def test_a_failing_save_leaves_the_previous_checkpoint_in_charge(tmp_path):
    store(tmp_path).save(1, {"step": 1, "tracker": {}}, write_weights)

    def fail(folder):
        write_weights(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store(tmp_path).save(2, {"step": 2, "tracker": {}}, fail)
    assert store(tmp_path).find().name == "global_step_1"
    assert not (tmp_path / "global_step_2").exists()


ON_A_FULL_DISK = """
from pathlib import Path
import torch
from verl.config.trainer import RunConfig
from verl.trainer.checkpoint import CheckpointStore, going_on_without_room
from verl.utils.errors import UserError

store = CheckpointStore(RunConfig(default_local_dir="run"))
def save(step, size):
    def workers(folder):
        torch.save(torch.zeros(size, dtype=torch.uint8), folder / "weights")
    try:
        store.save(step, {"step": step}, workers)
    except OSError as error:
        print(error)
    print(sorted(path.name for path in Path("run").iterdir()), store.find().name)

save(1, 900_000)
save(2, 1_800_000)
Path("run/rollouts").write_bytes(bytes(600_000))
save(3, 900_000)
try:
    store.check_room_at_start(lambda: 0)
except UserError as error:
    print(error)
Path("run/rollouts").unlink()
save(4, 900_000)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_newest_checkpoint_and_no_litter(on_small_disk):
    lines = on_small_disk(ON_A_FULL_DISK, "2200k").splitlines()
    latest = "latest_checkpointed_iteration.txt"
    stands = f"['global_step_1', '{latest}'] global_step_1"
    beside = f"['global_step_1', '{latest}', 'rollouts'] global_step_1"
    both = f"['global_step_1', 'global_step_4', '{latest}'] global_step_4"
    begun, refused, at_start = lines[1], lines[3], lines[5]
    assert [lines[i] for i in (0, 2, 4, 6)] == [stands, stands, beside, both]
    assert begun == "the disk is full: the checkpoint of step 2 was not finished"
    assert re.fullmatch(
        r"the checkpoint of step 3 needs 0.9 MB, and .*/run has 0.7 MB", refused[:-5]
    )
    assert "takes about 0.9 MB" in at_start and at_start.endswith("on another disk")


def test_only_the_newest_are_kept(tmp_path):
    kept = store(tmp_path, max_actor_ckpt_to_keep=2)
    for step in (1, 2, 3):
        kept.save(step, {"step": step, "tracker": {}}, write_weights)
    assert sorted(p.name for p in tmp_path.glob("global_step_*")) == [
        "global_step_2",
        "global_step_3",
    ]


def test_the_resume_mode_decides_what_is_found(tmp_path):
    store(tmp_path).save(1, {"step": 1, "tracker": {}}, write_weights)
    chosen = store(tmp_path).save(2, {"step": 2, "tracker": {}}, write_weights)
    assert store(tmp_path, resume_mode="disable").find() is None
    assert store(tmp_path / "other").find() is None
    by_path = store(tmp_path / "other", resume_mode="resume_path", resume_from_path=str(chosen))
    assert by_path.find() == chosen


def test_a_run_with_a_critic_does_not_resume_from_one_without(tmp_path):
    checkpoint = store(tmp_path).save(1, {"step": 1, "tracker": {}}, write_weights)
    with pytest.raises(UserError, match=r"had no critic.*another trainer.experiment_name"):
        check_has_critic(checkpoint)
    (checkpoint / "critic").mkdir()
    check_has_critic(checkpoint)


@pytest.mark.parametrize("path", [None, "no/such/folder"])
def test_a_path_that_is_no_checkpoint_is_refused(tmp_path, path):
    with pytest.raises(UserError, match=r"driver\.pt"):
        store(tmp_path, resume_mode="resume_path", resume_from_path=path).find()


def test_an_evaluation_wants_exactly_one_checkpoint(tmp_path):
    folder = store(tmp_path).save(1, {"step": 1, "tracker": {}}, write_weights)
    assert split_checkpoint([f"checkpoint={folder}", "a=b"]) == (folder, ["a=b"])
    with pytest.raises(UserError, match="exactly one"):
        split_checkpoint(["a=b"])


def test_a_resumed_run_keeps_the_day_of_its_start(tmp_path):
    store(tmp_path).save(1, {"step": 1, "tracker": {}, "chat_date": "2026-01-31"}, write_weights)
    checkpoint = store(tmp_path).find()
    assert date_on_resume(ModelConfig(path="m"), checkpoint) == "2026-01-31"
    chosen = ModelConfig(path="m", chat_template_date="2025-12-24")
    assert date_on_resume(chosen, checkpoint) == "2025-12-24"
    store(tmp_path).save(
        2, {"step": 2, "tracker": {}}, write_weights
    )  # as before there was such a day
    assert date_on_resume(ModelConfig(path="m"), store(tmp_path).find()) == date.today().isoformat()


class Evil:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_in_the_drivers_state_is_not_executed(tmp_path):
    folder = store(tmp_path).save(1, {"step": 1, "tracker": {}}, write_weights)
    torch.save({"step": 1, "tracker": {}, "more": Evil(tmp_path / "trace")}, folder / DRIVER_FILE)
    with pytest.raises(UserError, match=r"driver\.pt is damaged, or holds more than tensors"):
        load_driver_state(folder)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"step": "many", "tracker": {}}, "no step of a run"),
        ({"step": 1}, "KeyError: 'tracker'"),
        ([1, 2], "TypeError"),
        ({"step": 1, "tracker": {}, "chat_date": [7]}, "chat_date=.7. is no date"),
    ],
)
def test_the_state_of_something_else_is_refused_in_a_sentence(tmp_path, state, told):
    folder = store(tmp_path).save(1, state, write_weights)
    with pytest.raises(UserError, match=f"cannot resume from .*{told}.*another checkpoint"):
        date_on_resume(ModelConfig(path="m"), folder)
