"""docs/metrics.md is current, says everything once, and a name that it lacks is found."""

from __future__ import annotations

import json

from verl.trainer.metric_docs import PAGE, declared, page


def test_committed_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m verl.trainer.metric_docs`"


def test_every_metric_is_declared_once_and_whole():
    metrics = list(declared())
    names = [metric.name for metric in metrics]
    assert len(names) == len(set(names))
    for metric in metrics:
        assert metric.unit and metric.meaning, metric
        assert metric.reduction in ("mean", "sum", "max", "-"), metric


def test_a_name_that_the_page_lacks_is_found(tmp_path, undeclared_metrics):
    known = ["actor/grad_norm", "val/l0/sampled/success_rate/boil", "epo/lower_turn/3", "sft/lr"]
    known += ["critic/score/max", "timing_s/ref", "timing_s/episode/step"]
    unknown = ["actor/grad_norms", "critic/score/median", "epo/lower_turn/3/x", "val/l0/speed"]
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(dict.fromkeys([*known, *unknown], 1.0)))
    assert undeclared_metrics(file) == sorted(unknown)
