"""A damaged checkpoint is named and not loaded; a save that is killed leaves whole ones only."""

import os
import signal
import sys

import pytest

from verl.config.trainer import RunConfig
from verl.trainer.checkpoint import CheckpointStore, check_whole, load_driver_state
from verl.utils.errors import UserError
from verl.utils.manifest import MANIFEST, find_damage


def store(folder, **options) -> CheckpointStore:
    return CheckpointStore(RunConfig(default_local_dir=str(folder), **options))


def save(folder, step, **options):
    def write_weights(target):
        (target / "actor").mkdir()
        (target / "actor" / "weights").write_text(f"weights of {step}")

    return store(folder, **options).save(step, {"step": step, "tracker": {}}, write_weights)


@pytest.fixture
def saved(tmp_path):
    """The checkpoints of steps 1, 2 and 3."""
    return [save(tmp_path, step) for step in (1, 2, 3)]


def damage(checkpoint):
    (checkpoint / "actor" / "weights").write_text("weights of 9")


def test_the_newest_whole_one_is_taken_instead_and_this_is_said(tmp_path, saved, caplog):
    damage(saved[2])
    assert store(tmp_path).find() == saved[1]
    told = caplog.text
    assert "global_step_3 is damaged (actor/weights has another content" in told
    assert f"going on from {saved[1]}" in told


def test_when_none_is_whole_the_run_does_not_start_afresh(tmp_path, saved):
    for checkpoint in saved:
        damage(checkpoint)
    with pytest.raises(UserError, match=r"is whole: global_step_3.*global_step_1.*start afresh"):
        store(tmp_path).find()


def test_a_named_one_that_is_damaged_is_refused(tmp_path, saved):
    (saved[1] / "driver.pt").unlink()
    named = store(tmp_path, resume_mode="resume_path", resume_from_path=str(saved[1]))
    with pytest.raises(UserError, match=r"global_step_2 is damaged: driver\.pt is missing") as told:
        named.find()
    assert "global_step_3, global_step_1" in str(told.value)


def test_two_checkpoints_that_were_exchanged_are_found(tmp_path, saved):
    saved[0].rename(tmp_path / "aside")
    saved[2].rename(saved[0])
    (tmp_path / "aside").rename(saved[2])
    assert store(tmp_path).find() == saved[1]


def test_a_copy_may_have_any_name(tmp_path, saved):
    copy = saved[2].rename(tmp_path / "best")
    check_whole(copy)
    (copy / "driver.pt").unlink()
    with pytest.raises(UserError, match="best is damaged"):
        check_whole(copy)


def test_a_checkpoint_of_an_earlier_version_is_taken_with_a_warning(tmp_path, saved, caplog):
    (saved[2] / MANIFEST).unlink()
    assert store(tmp_path).find() == saved[2]
    assert "nobody can tell whether it is whole" in caplog.text
    (saved[2] / "driver.pt").unlink()
    assert store(tmp_path).find() == saved[1]


def kill_oneself_at(moment):
    """SIGKILL for this process when it touches files for the `moment`-th time from now."""
    left = moment

    def count(event, _):
        nonlocal left
        if event in {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir"}:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def killed_while_saving(folder, moment) -> bool:
    """A child process saves step 2 and keeps that alone; whether it was killed at the moment."""
    child = os.fork()
    if child == 0:
        kill_oneself_at(moment)
        save(folder, 2, max_actor_ckpt_to_keep=1)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_save_that_is_killed_at_any_moment_leaves_whole_checkpoints_only(tmp_path):
    moment, killed, steps = 0, True, []
    while killed:
        moment += 1
        folder = tmp_path / str(moment)
        save(folder, 1)
        killed = killed_while_saving(folder, moment)
        for checkpoint in folder.glob("global_step_*"):
            assert find_damage(checkpoint, step=int(checkpoint.name[-1])) is None
        found = store(folder).find()
        assert found is not None
        steps.append(load_driver_state(found)["step"])
    assert steps == sorted(steps) and steps[0] == 1 and steps[-1] == 2
    assert moment > 20  # every way through the save was tried
