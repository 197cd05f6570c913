"""Complete or absent: files, folders, checkpoints and the pointer to the newest."""

import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.utils.atomic import (
    LATEST_FILE,
    atomic_directory,
    atomic_write_json,
    atomic_write_text,
    checkpoints,
    latest_first,
    prune,
    read_latest,
    sweep,
    write_latest,
)


def names(folder):
    return sorted(child.name for child in folder.iterdir())


def make_checkpoints(folder, *steps):
    for step in steps:
        with atomic_directory(folder / f"global_step_{step}") as target:
            (target / "model.bin").write_text(str(step))


def test_text_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "note.txt"
    atomic_write_text(path, "früher")
    atomic_write_text(path, "später\n")
    assert path.read_text(encoding="utf-8") == "später\n"
    assert names(path.parent) == ["note.txt"]


def test_files_have_the_permissions_of_any_other_file(tmp_path):
    atomic_write_text(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("a", "b")}
    assert len(modes) == 1


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "note.txt"
    atomic_write_text(path, "old")

    def no_space(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_json_round_trip_and_refusal(tmp_path):
    path = tmp_path / "state.json"
    atomic_write_json(path, {"a": [1, 2.5, None, "ä"]})
    with pytest.raises(TypeError):
        atomic_write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, 2.5, None, "ä"]}
    assert names(tmp_path) == ["state.json"]


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "runs" / "global_step_1"
    with atomic_directory(target) as folder:
        (folder / "actor").mkdir()
        (folder / "actor" / "model.bin").write_text("weights")
        assert not target.exists()
        assert checkpoints(target.parent) == {}
    assert (target / "actor" / "model.bin").read_text() == "weights"
    assert names(target.parent) == ["global_step_1"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_no_folder_and_keeps_the_old_one(tmp_path, error):
    make_checkpoints(tmp_path, 1)
    for step in (1, 2):
        with pytest.raises(error), atomic_directory(tmp_path / f"global_step_{step}") as folder:
            (folder / "model.bin").write_text("half")
            raise error
    assert names(tmp_path) == ["global_step_1"]
    assert (tmp_path / "global_step_1" / "model.bin").read_text() == "1"


def test_an_existing_folder_is_replaced_whole(tmp_path):
    make_checkpoints(tmp_path, 1)
    with atomic_directory(tmp_path / "global_step_1") as folder:
        (folder / "other.bin").write_text("new")
    assert names(tmp_path) == ["global_step_1"]
    assert names(tmp_path / "global_step_1") == ["other.bin"]


def test_pointer(tmp_path):
    assert read_latest(tmp_path) is None
    write_latest(tmp_path, 12)
    assert (tmp_path / LATEST_FILE).read_text() == "12"
    assert read_latest(tmp_path) == 12


@pytest.mark.parametrize(
    "content",
    [b"", b"twelve", b"-3", b"1.5", "\N{SUPERSCRIPT TWO}".encode(), b"\xff\xfe", b"9" * 5000],
)
def test_a_damaged_pointer_names_nothing(tmp_path, content):
    make_checkpoints(tmp_path, 3)
    (tmp_path / LATEST_FILE).write_bytes(content)
    assert read_latest(tmp_path) is None
    assert latest_first(tmp_path) == [tmp_path / "global_step_3"]


def test_a_run_goes_on_from_the_pointers_checkpoint_or_else_the_newest(tmp_path):
    assert latest_first(tmp_path / "absent") == latest_first(tmp_path) == []
    make_checkpoints(tmp_path, 2, 3, 10)
    write_latest(tmp_path, 3)
    assert [path.name for path in latest_first(tmp_path)] == [
        "global_step_3",
        "global_step_10",
        "global_step_2",
    ]


@pytest.mark.parametrize("pointer", [None, "7", "nonsense"])
def test_without_a_good_pointer_the_newest_comes_first(tmp_path, caplog, pointer):
    make_checkpoints(tmp_path, 2, 10)  # 10 after 2, although "10" < "2" as text
    (tmp_path / "global_step_11.bak").mkdir()
    (tmp_path / "global_step_012").mkdir()
    if pointer is not None:
        (tmp_path / LATEST_FILE).write_text(pointer)
    assert latest_first(tmp_path)[0] == tmp_path / "global_step_10"
    assert "the newest is step 10" in caplog.text


def test_prune_keeps_the_newest_and_the_pointed_to(tmp_path):
    make_checkpoints(tmp_path, 1, 2, 9, 10, 11)
    write_latest(tmp_path, 1)
    (tmp_path / "config.yaml").write_text("")
    prune(tmp_path, keep=2)
    assert names(tmp_path) == [
        "config.yaml",
        "global_step_1",
        "global_step_10",
        "global_step_11",
        LATEST_FILE,
    ]


def test_what_a_crash_left_is_swept_up(tmp_path):
    make_checkpoints(tmp_path, 1)
    write_latest(tmp_path, 1)
    (tmp_path / ".unfinished-global_step_2-0a" / "actor").mkdir(parents=True)
    (tmp_path / ".unfinished-metrics.jsonl-0b").write_text("{")
    (tmp_path / ".unfinished-link").symlink_to(tmp_path / "global_step_1")
    sweep(tmp_path)
    assert names(tmp_path) == ["global_step_1", LATEST_FILE]
    assert names(tmp_path / "global_step_1") == ["model.bin"]


@pytest.mark.parametrize("keep", [0, -1])
def test_prune_never_deletes_everything(tmp_path, keep):
    make_checkpoints(tmp_path, 1)
    with pytest.raises(ValueError, match=f"keep={keep} would delete the newest.*at least 1"):
        prune(tmp_path, keep)
    assert names(tmp_path) == ["global_step_1"]


def test_an_interrupted_prune_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    make_checkpoints(tmp_path, 1, 2)

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("verl.utils.atomic.shutil.rmtree", killed)
        prune(tmp_path, keep=1)
    assert list(checkpoints(tmp_path)) == [2]
    sweep(tmp_path)
    assert names(tmp_path) == ["global_step_2"]


@given(steps=st.sets(st.integers(0, 2000), min_size=1, max_size=8), keep=st.integers(1, 9))
def test_prune_keeps_exactly_the_newest(tmp_path_factory, steps, keep):
    folder = tmp_path_factory.mktemp("run")
    for step in steps:
        (folder / f"global_step_{step}").mkdir()
    prune(folder, keep)
    assert list(checkpoints(folder)) == sorted(steps)[-keep:]
