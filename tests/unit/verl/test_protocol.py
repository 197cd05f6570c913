"""DataProto, method by method."""

import sys
from subprocess import run

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from verl import DataProto
from verl.protocol import (
    pad_dataproto_to_divisor,
    unpad_dataproto,
)
from verl.protocol.merge import list_of_dict_to_dict_of_list


@pytest.fixture
def data() -> DataProto:
    return DataProto.from_dict(
        tensors={"obs": torch.tensor([[1, 2], [3, 4], [5, 6]])},
        non_tensors={"label": ["a", "b", "c"]},
        meta_info={"name": "test"},
    )


def rows(data: DataProto) -> list[tuple[int, str]]:
    return list(zip(data.batch["obs"][:, 0].tolist(), data.non_tensor_batch["label"], strict=True))


@pytest.mark.slow
def test_import_is_light():
    code = (
        "import verl, sys; sys.exit(any(m in sys.modules for m in ('ray','vllm','transformers')))"
    )
    assert run([sys.executable, "-c", code], check=False).returncode == 0


class TestBuilding:
    def test_columns_must_agree(self):
        with pytest.raises(AssertionError, match="differ in length"):
            DataProto.from_dict({"a": torch.zeros(3), "b": torch.zeros(4)})
        with pytest.raises(AssertionError, match="`t` has 2 rows"):
            DataProto.from_dict({"a": torch.zeros(3)}, {"t": ["x", "y"]})
        with pytest.raises(AssertionError, match="not an array"):
            DataProto(non_tensor_batch={"t": ["x"]})

    def test_one_batch_dimension(self):
        with pytest.raises(AssertionError, match="one batch dimension, not 2"):
            DataProto(TensorDict({"a": torch.zeros(2, 2)}, batch_size=[2, 2]))

    def test_from_single_dict_sorts_by_type_and_keeps_the_class(self):
        class Special(DataProto):
            pass

        data = Special.from_single_dict({"a": torch.zeros(2), "b": np.array(["x", "y"])})
        assert type(data) is Special and type(data[[0]]) is Special
        assert set(data.batch.keys()) == {"a"} and set(data.non_tensor_batch) == {"b"}
        with pytest.raises(ValueError, match="column `c` is a list"):
            DataProto.from_single_dict({"c": [1, 2]})

    @pytest.mark.parametrize("columns", [None, {}])
    def test_length_without_tensors(self, columns):
        assert len(DataProto(batch=None, non_tensor_batch=columns)) == 0
        assert len(DataProto.from_dict(non_tensors={"t": ["x", "y"]})) == 2


class TestRows:
    @pytest.mark.parametrize(
        "index",
        [
            [2, 0],
            np.array([2, 0]),
            torch.tensor([2, 0]),
        ],
    )
    def test_integer_index(self, data, index):
        assert rows(data[index]) == [(5, "c"), (1, "a")]

    @pytest.mark.parametrize(
        "mask",
        [
            [True, False, True],
            [np.True_, np.False_, np.True_],
            np.array([True, False, True]),
            torch.tensor([True, False, True]),
        ],
    )
    def test_boolean_mask(self, data, mask):
        picked = data[mask]
        assert rows(picked) == [(1, "a"), (5, "c")]
        assert picked.batch.batch_size == torch.Size([2])

    def test_slice_and_bad_index(self, data):
        assert rows(data[::2]) == [(1, "a"), (5, "c")]
        assert len(data[[]]) == 0
        with pytest.raises(TypeError, match="not str"):
            data["obs"]

    def test_a_slice_shares_memory_but_not_metadata(self, data):
        part = data[:2]
        part.batch["obs"][0, 0] = 9
        part.meta_info["name"] = "changed"
        assert data.batch["obs"][0, 0] == 9 and data.meta_info == {"name": "test"}

    def test_reorder_in_place(self, data):
        data.reorder(torch.tensor([2, 0, 1]))
        assert rows(data) == [(5, "c"), (1, "a"), (3, "b")]

    def test_repeat(self, data):
        assert rows(data.repeat(2)) == [(1, "a"), (1, "a"), (3, "b"), (3, "b"), (5, "c"), (5, "c")]
        assert rows(data.repeat(2, interleave=False)) == rows(data) * 2

    def test_chunk_must_divide(self, data):
        assert [rows(part) for part in data.chunk(3)] == [[row] for row in rows(data)]
        with pytest.raises(AssertionError, match="3 rows do not split into 2 equal chunks"):
            data.chunk(2)

    def test_split_leaves_a_rest(self, data):
        assert [len(part) for part in data.split(2)] == [2, 1]
        assert [len(part) for part in data.split(5)] == [3]


class TestConcat:
    def test_rows_of_all_parts(self, data):
        assert rows(DataProto.concat([data, data[:1]])) == [*rows(data), (1, "a")]

    def test_columns_must_be_the_same(self, data):
        with pytest.raises(AssertionError, match="different keys"):
            DataProto.concat([data, data.select(non_tensor_batch_keys=[])])

    def test_metrics_become_lists_in_worker_order(self):
        reports = [{"loss": 0.5}, [{"loss": 0.6, "acc": 1.0}], {"loss": [0.7, 0.8]}]
        parts = [
            DataProto.from_dict({"a": torch.zeros(1)}, meta_info={"metrics": r, "k": 1})
            for r in reports
        ]
        silent = DataProto.from_dict({"a": torch.zeros(1)}, meta_info={"only": "here"})
        merged = DataProto.concat([silent, *parts]).meta_info
        assert merged == {
            "only": "here",
            "k": 1,
            "metrics": {"loss": [0.5, 0.6, 0.7, 0.8], "acc": [1.0]},
        }

    def test_conflicting_metadata_is_refused(self, data):
        other = data.select()
        other.meta_info["name"] = "other"
        with pytest.raises(AssertionError, match="Conflicting values for meta_info key 'name'"):
            DataProto.concat([data, other])


class TestColumns:
    def test_select(self, data):
        picked = data.select(batch_keys=["obs"], non_tensor_batch_keys=[], meta_info_keys=[])
        assert set(picked.batch.keys()) == {"obs"} and picked.non_tensor_batch == {}
        assert picked.meta_info == {}
        copied = data.select(deepcopy=True)
        copied.batch["obs"][0, 0] = 9
        assert data.batch["obs"][0, 0] == 1

    def test_pop_moves(self, data):
        popped = data.pop(["obs"], ["label"], ["name"])
        assert rows(popped) == [(1, "a"), (3, "b"), (5, "c")] and popped.meta_info == {
            "name": "test"
        }
        assert not list(data.batch.keys()) and not data.non_tensor_batch and not data.meta_info
        with pytest.raises(KeyError, match="obs"):
            data.pop(["obs"])

    def test_union(self, data):
        other = DataProto.from_dict({"act": torch.zeros(3)}, {"t": [1, 2, 3]}, {"more": 1})
        assert data.union(other) is data
        assert set(data.batch.keys()) == {"obs", "act"}
        assert set(data.non_tensor_batch) == {"label", "t"}
        assert data.meta_info == {"name": "test", "more": 1}

    @pytest.mark.parametrize(
        "other",
        [
            DataProto.from_dict({"obs": torch.zeros(3, 2, dtype=torch.int64)}),
            DataProto.from_dict({"act": torch.zeros(4)}),
            DataProto.from_dict(non_tensors={"label": ["a", "b", "z"]}),
            DataProto.from_dict(non_tensors={"more": ["a", "b"]}),
            DataProto.from_dict({"act": torch.zeros(3)}, meta_info={"name": "other"}),
        ],
    )
    def test_union_refuses_conflicts(self, data, other):
        with pytest.raises(AssertionError):
            data.union(other)


class TestPadding:
    def test_pad_goes_round_the_rows(self, data):
        # 3 rows to 7: a b c | a b c | a
        padded, pad_size = pad_dataproto_to_divisor(data, 7)
        assert pad_size == 4
        assert rows(padded) == rows(data) * 2 + [(1, "a")]
        assert rows(unpad_dataproto(padded, pad_size)) == rows(data)

    def test_nothing_to_pad(self, data, caplog):
        assert pad_dataproto_to_divisor(data, 3) == (data, 0)
        empty = data[:0]
        assert pad_dataproto_to_divisor(empty, 2)[1] == 0
        assert "empty batch" in caplog.text


class TestIterator:
    def test_epochs_and_order(self, data):
        labels = [
            part.non_tensor_batch["label"].tolist() for part in data.make_iterator(1, epochs=2)
        ]
        assert labels == [["a"], ["b"], ["c"]] * 2

    def test_seed_fixes_the_shuffle(self):
        data = DataProto.from_dict({"a": torch.arange(12)}, meta_info={"k": 1})

        def order(seed: int) -> list:
            parts = data.make_iterator(4, 1, seed=seed, dataloader_kwargs={"shuffle": True})
            return [part.batch["a"].tolist() for part in parts]

        assert order(1) == order(1) != order(2)
        assert sorted(i for part in order(1) for i in part) == list(range(12))
        assert next(data.make_iterator(4, 1)).meta_info == {"k": 1}

    def test_mini_batch_must_divide(self, data):
        with pytest.raises(AssertionError, match="mini_batch_size=2 must divide the 3 rows"):
            data.make_iterator(2, epochs=1)


def test_rows_to_columns():
    assert list_of_dict_to_dict_of_list([{"a": 1}, {"a": 2}]) == {"a": [1, 2]}
    assert list_of_dict_to_dict_of_list([]) == {}
    with pytest.raises(AssertionError, match="different keys"):
        list_of_dict_to_dict_of_list([{"a": 1}, {"b": 2}])
