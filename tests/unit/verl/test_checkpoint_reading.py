"""A checkpoint of somebody else: nothing of it is executed, and one sentence says why."""

import os
import pickle
from functools import partial

import pytest
import torch

from verl.config.model import FSDPConfig, ModelConfig
from verl.config.optim import OptimConfig
from verl.utils.errors import UserError
from verl.workers.model_loading import load_causal_lm
from verl.workers.sharded_model import ShardedModel

ENTRY = "schedule.last_epoch"


class Evil:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def engine(tiny_model_path, single_rank):
    load = partial(load_causal_lm, ModelConfig(path=tiny_model_path))
    return ShardedModel(load, FSDPConfig(), single_rank, OptimConfig(lr=1e-2), total_steps=10)


def table_of(checkpoint):
    return pickle.loads((checkpoint / ".metadata").read_bytes())


def with_entry(checkpoint, value):
    """`value` in the place of the checkpoint's entry."""
    table, shard = table_of(checkpoint), checkpoint / "__0_0.distcp"
    (info,) = (info for index, info in table.storage_data.items() if index.fqn == ENTRY)
    info.offset = shard.stat().st_size
    with shard.open("ab") as file:
        torch.save(value, file)
    info.length = shard.stat().st_size - info.offset
    (checkpoint / ".metadata").write_bytes(pickle.dumps(table))


def evil_table(checkpoint, evil):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(evil))


def evil_table_with_all_that_is_right(checkpoint, evil):
    table = table_of(checkpoint)
    table.planner_data = {"more": evil}
    evil_table(checkpoint, table)


def evil_random_state(checkpoint, evil):
    torch.save({"cpu": torch.get_rng_state(), "more": evil}, checkpoint / "random_state_rank_0.pt")


@pytest.mark.parametrize(
    "plant", [evil_table, evil_table_with_all_that_is_right, with_entry, evil_random_state]
)
def test_code_in_a_checkpoint_is_not_executed(engine, tmp_path, plant):
    checkpoint, trace = tmp_path / "actor", tmp_path / "trace"
    engine.save_checkpoint(checkpoint)
    plant(checkpoint, Evil(trace))
    with pytest.raises(UserError, match=r"cannot resume from .*(posix.mkdir|holds more).* one of"):
        engine.load_checkpoint(checkpoint)
    assert not trace.exists()


def test_an_entry_is_read_from_the_checkpoint_alone(engine, tmp_path):
    checkpoint = tmp_path / "actor"
    engine.save_checkpoint(checkpoint)
    (checkpoint / "__0_0.distcp").rename(tmp_path / "elsewhere")
    table = table_of(checkpoint)
    for info in table.storage_data.values():
        info.relative_path = "../elsewhere"
    evil_table(checkpoint, table)
    with pytest.raises(UserError, match="leads out of the checkpoint"):
        engine.load_checkpoint(checkpoint)


def test_a_value_of_another_kind_is_refused_in_a_sentence(engine, tmp_path):
    engine.save_checkpoint(tmp_path / "actor")
    with_entry(tmp_path / "actor", "many")
    with pytest.raises(UserError, match="cannot resume from") as caught:
        engine.load_checkpoint(tmp_path / "actor")
    assert "\n" not in str(caught.value)


def test_plain_values_of_an_entry_are_taken(engine, tmp_path):
    engine.save_checkpoint(tmp_path / "actor")
    with_entry(tmp_path / "actor", 7)
    engine.load_checkpoint(tmp_path / "actor")
    assert engine.schedule.last_epoch == 7
