"""Which type an export asks the actor to write. What it writes: `tests/models/test_export.py`."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import yaml

from verl.config.compose import compose_config, plain
from verl.trainer import main_export
from verl.trainer.checkpoint import CheckpointStore
from verl.utils.errors import UserError


@pytest.fixture
def checkpoint(tmp_path):
    """The first step of a run, as `checkpoint=` names it."""
    command = ["trainer.device=cpu", f"trainer.default_local_dir={tmp_path / 'run'}"]
    composed, config = compose_config(command, "quickstart")
    folder = CheckpointStore(config.trainer).save(1, {"step": 1}, lambda path: None)
    (folder.parent / "config.yaml").write_text(yaml.safe_dump(plain(composed)))
    return folder


@pytest.fixture
def exported(monkeypatch):
    """The calls that the actor has got, in place of Ray and its processes."""
    calls = []
    actor = SimpleNamespace(
        load_checkpoint=lambda path: calls.append(path),
        export_hf=lambda path, dtype: calls.append((path, dtype)),
    )
    monkeypatch.setattr(main_export, "ray_cluster", lambda options, processes: nullcontext())
    monkeypatch.setattr(main_export, "start_trainers", lambda *of_run: {"actor": actor})
    return calls


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        ([], None),  # the model's own
        (["dtype=auto"], None),
        (["dtype=bfloat16"], torch.bfloat16),
        (["dtype=float32"], torch.float32),
        (["dtype=float32", "dtype=auto"], None),  # the last one counts
    ],
)
def test_auto_is_the_models_own_type(checkpoint, exported, tmp_path, arguments, dtype):
    output = tmp_path / "out"
    main_export.main([f"checkpoint={checkpoint}", f"output={output}", *arguments])
    assert exported == [str(checkpoint / "actor"), (str(output), dtype)]


def test_a_type_that_is_none_is_refused_before_anything_starts(checkpoint, exported, tmp_path):
    with pytest.raises(UserError, match="dtype 'float8' is not supported; use one of"):
        main_export.main([f"checkpoint={checkpoint}", f"output={tmp_path / 'out'}", "dtype=float8"])
    assert exported == []
