"""Rollouts in few files: what is read back, what a resumed run forgets, what a full disk does."""

import math

from verl.trainer.ppo.rollout_log import RolloutLog, read_rollouts
from verl.utils.json_lines import to_line

# Every character that str.splitlines breaks at, but for the line feed; and half a surrogate pair.
BREAKS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj\n"
HALF = "\ud800"


class World:
    def record(self, trajectory):
        return {"observation": trajectory, "reward": math.nan}


def log_of(folder, **options) -> RolloutLog:
    return RolloutLog(str(folder), World(), **options)


def steps(folder, kind="train"):
    return [record["step"] for record in read_rollouts(folder, kind)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_episode_is_a_line_with_its_step_and_part(tmp_path):
    log = log_of(tmp_path)
    written = log.write("train", 1, [BREAKS, HALF])
    log.write("val", 0, ["v"], part="l1_greedy")
    assert list(read_rollouts(tmp_path, "train")) == [
        {"step": 1, "observation": BREAKS, "reward": None},
        {"step": 1, "observation": HALF, "reward": None},
    ]
    (shown,) = read_rollouts(tmp_path, "val")
    assert shown == {"step": 0, "part": "l1_greedy", "observation": "v", "reward": None}
    assert [record["observation"] for record in written] == [BREAKS, HALF]


def test_a_file_that_is_large_enough_is_followed_by_another(tmp_path):
    line = len(to_line({"step": 1, "observation": "x", "reward": None}))
    log = log_of(tmp_path, segment_bytes=4 * line)
    for step in (*range(1, 7), 10, 11):  # two episodes a step: a file is full after two steps
        log.write("train", step, ["x", "x"])
    assert names(tmp_path) == [f"train_from_{first}.jsonl" for first in (1, 10, 3, 5)]
    assert steps(tmp_path) == [step for step in (*range(1, 7), 10, 11) for _ in "ab"]


def test_a_resumed_run_forgets_what_it_plays_again(tmp_path):
    line = len(to_line({"step": 1, "observation": "x", "reward": None}))
    for restored in (5, 4, 3, 0):
        first = log_of(tmp_path / str(restored), segment_bytes=2 * line)
        for step in range(1, 7):  # files from 1, 3, 5
            first.write("train", step, ["x"])
            first.write("val", step, ["v"], part="p")
        second = log_of(tmp_path / str(restored), segment_bytes=2 * line)
        second.go_on_after(restored)
        assert steps(tmp_path / str(restored)) == list(range(1, restored + 1))
        second.write("train", restored + 1, ["y"])
        assert steps(tmp_path / str(restored)) == list(range(1, restored + 2))
        assert steps(tmp_path / str(restored), "val") == list(range(1, restored + 1))


def test_a_run_that_begins_anew_keeps_the_old_rollouts_aside(tmp_path):
    log_of(tmp_path).write("train", 1, ["old"])
    (tmp_path / "notes.jsonl").write_text("mine")
    log_of(tmp_path).write("train", 1, ["new"])
    assert [record["observation"] for record in read_rollouts(tmp_path, "train")] == ["new"]
    assert "old" in (tmp_path / "train_from_1.jsonl.previous").read_text()
    assert "notes.jsonl" in names(tmp_path)


def test_a_full_disk_ends_no_run_and_loses_no_episode(tmp_path, no_file_beyond, caplog):
    log = log_of(tmp_path, segment_bytes=1)
    with no_file_beyond(0):
        for step in (1, 2):
            log.write("train", step, ["x"])
    for step in (3, 4):
        log.write("train", step, ["x"])
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert len(caplog.messages) == 2  # that it is refused, that it is not any more


def test_no_folder_keeps_nothing():
    log = RolloutLog(None, World())
    log.go_on_after(3)
    (record,) = log.write("train", 4, ["x"])
    assert record["observation"] == "x"
