"""Real backends in a temporary folder; resuming; and backends that fail."""

import errno
import json
import logging
import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch
import wandb
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from verl.utils import json_lines, tracker_backends
from verl.utils.errors import UserError
from verl.utils.json_lines import JsonLinesFile, drop_records_after, read_records
from verl.utils.tracking import Tracking

METRICS = {
    "training/global_step": 1,
    "episode/success_rate": 0.25,
    "episode/reward/mean": np.float32(2.5),
    "actor/grad_norm": torch.tensor(1.5),
    "actor/pg_loss": -0.0123456,
    "timing_s/step": 33.14,
    "val/l1/sampled/success_rate": 0.42,
    "val/l1/sampled/success_low": 0.338,
    "val/l1/sampled/success_high": 0.506,
    "val/l1/sampled/n": 128.0,
    "val/l1/sampled/score": 55.125,
    "val/l1/sampled/success_rate/find-plant": 0.1,
}


@pytest.fixture(autouse=True)
def wandb_stays_offline(monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")


def tracking(run_dir, *backends, **resume):
    return Tracking("project", "experiment", backends, {"data": {"seed": 3}}, run_dir, **resume)


def test_unknown_backend_names_the_choices(tmp_path):
    with pytest.raises(UserError, match=r"=tensorbord .*console, file, tensorboard, wandb"):
        tracking(tmp_path, "console", "tensorbord")
    assert list(tmp_path.iterdir()) == []


class Memory:
    """A backend of one's own, which keeps what it is given."""

    def __init__(self, run, state):
        self.run, self.seen = run, list(state.get("seen", []))

    @classmethod
    def create(cls, run, state):
        return cls(run, state)

    def log(self, metrics, step):
        self.seen.append(step)

    def log_generations(self, records, step):
        self.seen.append(records)

    def state_dict(self):
        return {"seen": self.seen}

    def finish(self):
        pass


def test_a_backend_of_ones_own_goes_on_from_its_state_under_its_import_path(tmp_path):
    path = f"{__name__}:Memory"
    first = tracking(tmp_path, "file", path)
    first.log({"x": 1}, 1)
    first.log_generations([{"task": "a"}], 1)
    state = first.state_dict()
    assert state == {"file": {}, path: {"seen": [1, [{"task": "a"}]]}}
    second = tracking(tmp_path, path, resume_ids=state, resume_step=1)
    second.log({"x": 2}, 2)
    assert second.state_dict()[path] == {"seen": [1, [{"task": "a"}], 2]}


@pytest.mark.parametrize(
    ("path", "message"),
    [("no_such_package:Mine", "cannot load"), ("math:floor", r"no create\(run, state\); name a")],
)
def test_an_import_path_without_a_backend_is_refused(tmp_path, path, message):
    with pytest.raises(UserError, match=message):
        tracking(tmp_path, "file", path)
    assert list(tmp_path.iterdir()) == []


def test_one_backend_may_be_given_by_name(tmp_path):
    assert Tracking("p", "e", "file", run_dir=tmp_path).backends == ["file"]


def test_console_shows_the_key_numbers_and_each_validation(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        tracking(tmp_path, "console").log(METRICS, step=1)
    assert caplog.messages == [
        "step 1 | success 0.25 | reward 2.5 | pg loss -0.0123 | grad norm 1.5 | 33.1 s",
        "step 1 | val l1 sampled: success 42.0% [33.8, 50.6], n 128, score 55.1",
    ]


def test_console_prefers_the_entropy_of_the_rollout(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        tracking(tmp_path, "console").log({"actor/entropy": 0.5, "epo/entropy_step": 0.75}, step=1)
        tracking(tmp_path, "console").log({"actor/entropy": 0.5}, step=2)
        tracking(tmp_path, "console").log({"perf/throughput": 9.0}, step=3)
    assert caplog.messages == ["step 1 | entropy 0.75", "step 2 | entropy 0.5"]


def test_file_has_a_line_a_step_at_once(tmp_path):
    tracker = tracking(tmp_path, "file")
    tracker.log(METRICS, step=1)
    tracker.log({"bad": float("nan"), "note": "ü", "worse": -math.inf}, step=2)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {"step": 1, **METRICS, "actor/grad_norm": 1.5}
    assert lines[1] == '{"step": 2, "bad": null, "note": "ü", "worse": null}'


def test_generations_file(tmp_path):
    tracker = tracking(tmp_path, "file", "console")
    tracker.log_generations([{"task": "a", "turns": [1, 2]}, {"task": "b"}], step=4)
    tracker.log_generations([], step=5)
    assert read_records(tmp_path / "generations.jsonl") == [
        {"task": "a", "turns": [1, 2], "step": 4},
        {"task": "b", "step": 4},
    ]


def test_a_resumed_run_repeats_no_step(tmp_path):
    first = tracking(tmp_path, "file")
    for step in range(1, 6):
        first.log({"run": 1}, step)
        first.log_generations([{"run": 1}], step)
    state = first.state_dict()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "ru')  # killed while it wrote

    second = tracking(tmp_path, "file", resume_ids=state, resume_step=3)
    for step in range(4, 6):
        second.log({"run": 2}, step)
    records = read_records(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["run"]) for r in records] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert [r["step"] for r in read_records(tmp_path / "generations.jsonl")] == [1, 2, 3]


def test_a_new_run_keeps_the_files_of_the_old_one_aside(tmp_path):
    tracking(tmp_path, "file").log({"run": 1}, 1)
    tracking(tmp_path, "file").log({"run": 2}, 1)
    assert [r["run"] for r in read_records(tmp_path / "metrics.jsonl")] == [2]
    assert [r["run"] for r in read_records(tmp_path / "metrics.jsonl.previous")] == [1]


def test_resume_ids_need_the_step(tmp_path):
    with pytest.raises(ValueError, match="resume_step; pass the step"):
        tracking(tmp_path, "file", resume_ids={})


def test_tensorboard(tmp_path):
    first = tracking(tmp_path, "tensorboard")
    for step in (1, 2, 3):
        first.log({"actor/pg_loss": 0.5 * step, "note": "text"}, step)
    first.log_generations([{"task": "boil"}], 3)
    first.finish()
    second = tracking(tmp_path, "tensorboard", resume_ids={}, resume_step=1)
    second.log({"actor/pg_loss": 9.0}, 2)
    second.finish()

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("actor/pg_loss")]
    assert points == [(1, 0.5), (2, 9.0)]  # the steps after the checkpoint are purged
    assert events.Tags()["scalars"] == ["actor/pg_loss"]


def wandb_records(folder):
    """The transaction log of an offline run: LevelDB's log format after a header of 7 bytes."""
    (path,) = folder.glob("*.wandb")
    data, position, message = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield Record.FromString(message)
            message = b""


def wandb_history(folder):
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {(item.key or ".".join(item.nested_key)): item for item in record.history.item}
            yield {name: json.loads(item.value_json) for name, item in items.items()}


def test_wandb_offline(tmp_path):
    first = tracking(tmp_path, "wandb")
    assert first.backends == ["wandb"]
    for step in (1, 2, 3):
        first.log({"actor/pg_loss": 0.5 * step}, step)
    first.log_generations([{"task": "boil", "turns": [1]}, {"task": "melt", "extra": None}], 3)
    state = json.loads(json.dumps(first.state_dict()))
    first.finish()
    (first_folder,) = (tmp_path / "wandb").glob("offline-run-*")

    second = tracking(tmp_path, "wandb", resume_ids=state, resume_step=1)
    second.log({"actor/pg_loss": 9.0}, 2)  # wandb's own step could not go back
    second.finish()
    wandb.teardown()  # `finish` does not wait for its process to write the end of the files
    assert second.state_dict()["wandb"] == state["wandb"]  # the same run goes on
    folders = set((tmp_path / "wandb").glob("offline-run-*"))
    (second_folder,) = folders - {first_folder}

    history = list(wandb_history(first_folder))
    points = [(row["training/global_step"], row.get("actor/pg_loss")) for row in history]
    assert points == [(1, 0.5), (2, 1.0), (3, 1.5), (3, None)]
    assert history[-1]["val/generations.nrows"] == 2
    resumed = [
        (r["training/global_step"], r["actor/pg_loss"]) for r in wandb_history(second_folder)
    ]
    assert resumed == [(2, 9.0)]
    metrics = [r.metric for r in wandb_records(first_folder) if r.HasField("metric")]
    axes = {(metric.name or metric.glob_name): metric.step_metric for metric in metrics}
    assert axes == {"training/global_step": "", "*": "training/global_step"}
    (run,) = [r.run for r in wandb_records(first_folder) if r.HasField("run")]
    assert (run.project, run.display_name) == ("project", "experiment")
    assert {u.key: u.value_json for u in run.config.update}["data"] == '{"seed":3}'


class Broken:
    """A backend that fails where it is told to; it counts its calls."""

    fails_at = ""
    calls = 0

    @classmethod
    def create(cls, run, state):
        cls.step("create")
        return cls()

    @classmethod
    def step(cls, name):
        cls.calls += 1
        if cls.fails_at == name:
            raise ConnectionError(f"{name}: no route to host")

    def log(self, metrics, step):
        self.step("log")

    def log_generations(self, records, step):
        self.step("log_generations")

    def state_dict(self):
        return {"id": "abc"}

    def finish(self):
        self.step("finish")


@pytest.mark.parametrize("fails_at", ["create", "log", "log_generations", "finish"])
def test_a_failing_backend_is_dropped_with_one_warning(tmp_path, monkeypatch, caplog, fails_at):
    broken = type("Broken", (Broken,), {"fails_at": fails_at})
    monkeypatch.setitem(tracker_backends.TRACKERS, "broken", broken)
    tracker = tracking(tmp_path, "broken", "file")
    for step in (1, 2):
        tracker.log({"x": step}, step)
        tracker.log_generations([{"x": step}], step)
    tracker.finish()
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "'broken' is off" in warnings[0]
    assert f"{fails_at}: no route to host" in warnings[0]
    assert [r["x"] for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2]
    # nothing is called after the failure: create | log | log_generations | ... both rounds, finish
    assert broken.calls == {"create": 1, "log": 2, "log_generations": 3, "finish": 6}[fails_at]


def test_a_dropped_backend_keeps_its_id_for_the_next_resume(tmp_path, monkeypatch):
    monkeypatch.setitem(
        tracker_backends.TRACKERS, "broken", type("B", (Broken,), {"fails_at": "create"})
    )
    tracker = tracking(tmp_path, "broken", resume_ids={"broken": {"id": "abc"}}, resume_step=1)
    assert tracker.backends == []
    assert tracker.state_dict() == {"broken": {"id": "abc"}}


def test_what_is_no_scalar_is_left_out_once_said(tmp_path, caplog):
    tracker = tracking(tmp_path, "file", "tensorboard")
    for step in (1, 2):
        tracker.log({"a": torch.ones(3), "b": None, "c": np.array([2.0]), "d": [1]}, step)
    assert tracker.backends == ["file", "tensorboard"]
    assert [r for r in read_records(tmp_path / "metrics.jsonl")] == [
        {"step": 1, "c": 2.0},
        {"step": 2, "c": 2.0},
    ]
    assert [message.split("'")[1] for message in caplog.messages] == ["a", "b", "d"]
    tracker.finish()


def test_the_file_catches_up_with_a_disk_that_was_full(tmp_path, no_file_beyond):
    tracker = tracking(tmp_path, "file")
    with no_file_beyond(30):
        for step in (1, 2, 3):
            tracker.log({"x": step}, step)
            tracker.log_generations([{"x": step}], step)
    tracker.log({"x": 4}, 4)
    tracker.finish()
    tracker.check_complete()
    assert [r["x"] for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [r["x"] for r in read_records(tmp_path / "generations.jsonl")] == [1, 2, 3]


def test_what_a_full_disk_never_took_is_told_at_the_end(tmp_path, no_file_beyond):
    tracker = tracking(tmp_path, "file")
    with no_file_beyond(30):  # a line is 20 bytes
        for step in (1, 2, 3):
            tracker.log({"x": step}, step)
        tracker.finish()
    assert tracker.backends == []
    with pytest.raises(OSError, match=r"metrics.jsonl lacks 2 lines that it had no room") as caught:
        tracker.check_complete()
    assert caught.value.errno == errno.ENOSPC


def test_finish_twice_is_harmless(tmp_path, caplog):
    tracker = tracking(tmp_path, "file", "tensorboard")
    tracker.finish()
    tracker.finish()
    assert not caplog.messages


values = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
records = st.lists(st.dictionaries(st.text(), values, max_size=3), max_size=6)


@given(records, st.integers(-1, 6), st.sampled_from([1, 7, 1 << 16]))
def test_json_lines_round_trip_and_drop(tmp_path_factory, drawn, last, block):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    file = JsonLinesFile(path)
    drawn = [{**record, "step": i} for i, record in enumerate(drawn)]
    for record in drawn:
        file.append(record)
    file.close()
    expected = [
        {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in record.items()}
        for record in drawn
    ]
    assert read_records(path) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "BLOCK", block)
        drop_records_after(path, last)
    assert read_records(path) == [record for record in expected if record["step"] <= last]


def test_what_is_kept_is_neither_read_nor_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = b"no record\n" * 100_000 + b'{"step": 1}\n'
    path.write_bytes(kept + b'{"step": 2}\n{"step": 3')
    before = path.stat().st_ino
    tracemalloc.start()
    drop_records_after(path, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.read_bytes() == kept and path.stat().st_ino == before
    assert peak < 4 * json_lines.BLOCK  # of 1 MB


def test_a_whole_line_without_its_line_feed_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    drop_records_after(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_reading_a_damaged_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    drop_records_after(path, 3)
    assert not path.exists()
    path.write_bytes(b'{"step": 1}\n[2]\n\n{"nostep": 1}\n\xff\xfe\n{"step": 2}\n{"st')
    assert read_records(path) == [{"step": 1}, {"step": 2}]
