"""Series, figures and the summary out of `metrics.jsonl`, complete, partial and empty."""

import json

import numpy as np
import pytest
from PIL import Image

from verl.utils.report import summary_text, write_report
from verl.utils.report.figures import (
    entropy_figure,
    optimisation_figure,
    success_figure,
    timing_figure,
)
from verl.utils.report.run_metrics import RunMetrics


def validation(step, rate, low, high, mode="sampled", n=96.0):
    prefix = f"val/l1/{mode}"
    return {
        "step": step,
        f"{prefix}/success_rate": rate,
        f"{prefix}/success_low": low,
        f"{prefix}/success_high": high,
        f"{prefix}/n": n,
        f"{prefix}/success_rate/find-plant": 0.0,
    }


def training(step, **more):
    return {
        "step": step,
        "training/global_step": step,
        "episode/success_rate": step / 10,
        "episode/reward/mean": float(step),
        "actor/grad_norm": 1.0,
        "actor/ppo_kl": 0.01,
        "epo/entropy_step": 0.5,
        "epo/entropy_turn/0": 0.6,
        "epo/entropy_turn/2": 0.4,
        "epo/reference": 0.5,
        "epo/lower": 0.25,
        "epo/upper": 0.75,
        "timing_s/collect": 6.0,
        "timing_s/rollout": 8.0,  # in the background: no time of the step
        "timing_s/update_actor": 3.0,
        "timing_s/step": 10.0,
        "timing_s/episode/env": 99.0,
        **more,
    }


COMPLETE = [
    validation(0, 1 / 3, 0.247, 0.432),
    training(1),
    training(2, **{"timing_s/validate": 5.0}),
    validation(2, 0.75, 0.655, 0.826),
]


def write(run_dir, records):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (run_dir / "metrics.jsonl").write_text(lines)


def test_series_skip_gaps_nulls_and_text():
    metrics = RunMetrics(
        [{"step": 3, "a": 1.0}, {"step": 1, "a": 2}, {"step": 2, "a": None, "b": "x"}]
    )
    assert metrics.steps == [1, 2, 3]
    series = metrics.series("a")
    assert (series.steps.tolist(), series.values.tolist()) == ([1, 3], [2.0, 1.0])
    assert len(metrics.series("b").steps) == len(metrics.series("absent").steps) == 0
    assert metrics.series("absent", "a").values.tolist() == [2.0, 1.0]
    np.testing.assert_array_equal(metrics.at("a", np.array([1, 2, 9])), [2.0, np.nan, np.nan])


def test_lines_of_one_step_are_merged():
    metrics = RunMetrics([{"step": 1, "a": 1.0}, {"step": 1, "b": 2.0}, {"step": 1, "a": 3.0}])
    assert metrics.series("a").values.tolist() == [3.0]
    assert metrics.series("b").values.tolist() == [2.0]


def test_validations_are_found_by_set_and_mode():
    greedy = validation(2, 0.9, 0.8, 0.95, mode="greedy")
    found = RunMetrics([*COMPLETE, greedy]).validations()
    assert [(v.task_set, v.mode) for v in found] == [("l1", "greedy"), ("l1", "sampled")]
    assert found[1].steps.tolist() == [0, 2]
    assert found[1].low.tolist() == [0.247, 0.655]


def test_phase_seconds():
    steps, phases = RunMetrics(COMPLETE).phase_seconds()
    assert steps.tolist() == [1, 2]
    # other = step 10 - (collect 6 + update_actor 3); validate runs outside of step
    assert {phase: seconds.tolist() for phase, seconds in phases.items()} == {
        "collect": [6.0, 6.0],
        "update_actor": [3.0, 3.0],
        "validate": [0.0, 5.0],
        "other": [1.0, 1.0],
    }
    assert list(phases) == ["collect", "update_actor", "validate", "other"]  # largest first


@pytest.mark.slow
def test_report_writes_pictures(tmp_path):
    write(tmp_path, COMPLETE)
    written = write_report(tmp_path)
    names = ["success.png", "entropy.png", "timing.png", "optimisation.png"]
    assert [path.name for path in written] == names
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == sorted(names)
    for path in written:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape[1] > 800
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10  # not a blank page


@pytest.mark.parametrize(
    "content", [None, "", "\n", '{"step": 0, "x": null}\n', '{"step": 1, "tor']
)
def test_an_empty_run_gives_no_figure_but_a_summary(tmp_path, caplog, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert write_report(tmp_path) == []
    assert "nothing to draw" in caplog.text
    assert summary_text(tmp_path).count("not measured") == 2


@pytest.mark.parametrize(
    ("record", "drawn"),
    [
        (validation(0, 0.5, 0.4, 0.6), {"success"}),
        ({"step": 0, "val/l1/greedy/success_rate": 0.5}, {"success"}),  # without an interval
        ({"step": 1, "episode/success_rate": 0.5}, {"success"}),
        ({"step": 1, "actor/entropy": 0.5}, {"entropy"}),  # EPO is off
        ({"step": 1, "epo/entropy_step": 0.5, "epo/entropy_turn/3": 0.5}, {"entropy"}),  # step 0
        ({"step": 1, "timing_s/collect": 2.0}, {"timing"}),
        ({"step": 1, "timing_s/step": 2.0}, {"timing"}),
        ({"step": 1, "critic/grad_norm": 2.0}, {"optimisation"}),
    ],
)
def test_each_figure_needs_only_its_own_numbers(tmp_path, record, drawn):
    write(tmp_path, [record])
    assert {path.stem for path in write_report(tmp_path)} == drawn


def test_every_axis_is_labelled():
    metrics = RunMetrics(COMPLETE)
    for draw in (success_figure, entropy_figure, timing_figure, optimisation_figure):
        for axes in draw(metrics).axes:
            assert axes.get_ylabel()
            assert axes.get_xlabel() == "training step" or axes.get_label() == "<colorbar>"


def test_success_figure_shows_the_interval():
    (axes,) = success_figure(RunMetrics(COMPLETE)).axes
    (container,) = axes.containers
    bars = [segment[:, 1].tolist() for segment in container[2][0].get_segments()]
    assert bars == [pytest.approx([0.247, 0.432]), pytest.approx([0.655, 0.826])]


def test_entropy_map_leaves_unplayed_turns_empty():
    figure = entropy_figure(RunMetrics(COMPLETE))
    image = figure.axes[1].images[0].get_array()
    # turns 0 and 2 at steps 1 and 2; nobody played turn 1
    expected = np.array([[0.6, 0.6], [np.nan, np.nan], [0.4, 0.4]])
    np.testing.assert_array_equal(image.filled(np.nan), expected)


def test_timing_figure_stacks_to_the_whole():
    (axes,) = timing_figure(RunMetrics(COMPLETE)).axes
    tops = [patch.get_y() + patch.get_height() for bar in axes.containers for patch in bar]
    assert max(tops) == pytest.approx(15.0)  # step 2: 10 s and 5 s of validation
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    # of 25 s: 5 validate, 2 other, 6 update_actor, 12 collect
    assert labels == ["validate (20%)", "other (8%)", "update_actor (24%)", "collect (48%)"]


def test_summary(tmp_path):
    write(tmp_path, COMPLETE)
    (tmp_path / "report").mkdir()
    lines = [line.strip() for line in summary_text(tmp_path).splitlines()]
    assert lines[0] == f"Run {tmp_path}: steps 0 to 2"
    before, after = "33.3% [24.7, 43.2] (n 96, step 0)", "75.0% [65.5, 82.6] (n 96, step 2)"
    assert f"l1 sampled: {before} -> {after}" in lines
    # (0.1 + 0.2) / 2 at both ends of a run of two steps
    assert "training: 15.0% -> 15.0% (mean of the first and last 2 steps)" in lines
    assert "Time: 0 min 25 s in 2 steps, 12.5 s a step" in lines
    assert "collect        48.0%      6.00 s a step" in lines
    assert f"metrics: {tmp_path / 'metrics.jsonl'}" in lines
    assert f"figures: {tmp_path / 'report'}" in lines


def test_summary_says_when_a_change_is_within_the_noise(tmp_path):
    write(tmp_path, [validation(0, 0.5, 0.4, 0.6), validation(9, 0.55, 0.45, 0.65)])
    assert "(n 96, step 9); the intervals overlap" in summary_text(tmp_path)


def test_summary_tells_episodes_from_tasks(tmp_path):
    repeated = validation(9, 0.5, 0.3, 0.7, n=320.0) | {"val/l1/sampled/tasks": 20.0}
    write(tmp_path, [repeated])
    assert "50.0% [30.0, 70.0] (n 320 of 20 tasks, step 9)" in summary_text(tmp_path)


def test_a_crash_while_drawing_leaves_the_old_picture(tmp_path, monkeypatch):
    write(tmp_path, COMPLETE)
    old = {path: path.read_bytes() for path in write_report(tmp_path)}
    write(tmp_path, COMPLETE[:2])

    def no_space(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("verl.utils.atomic.os.fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "report").iterdir()} == old
