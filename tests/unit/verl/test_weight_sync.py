"""Weights as bytes and back, and adapters merged into their base."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from verl.config.model import ModelConfig
from verl.workers.model_loading import load_causal_lm
from verl.workers.weight_sync import load_packed_weights, merge_lora, pack_weights, source


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False)
        self.second = nn.Linear(3, 4, bias=False)
        self.second.weight = self.first.weight
        self.bias = nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_exact(dtype):
    source, target = Tied().to(dtype), Tied().to(dtype)
    weights = pickle.loads(pickle.dumps(pack_weights(source.state_dict())))
    del weights["second.weight"]  # one name of a tied weight is enough
    for _, _, content in weights.values():
        content.flags.writeable = False  # as the object store hands it out
    address = target.first.weight.data_ptr()
    load_packed_weights(target, weights)
    assert torch.equal(target.first.weight, source.first.weight)
    assert target.second.weight.data_ptr() == target.first.weight.data_ptr() == address


def test_the_targets_dtype_is_kept():
    source, target = Tied(), Tied().bfloat16()
    load_packed_weights(target, pack_weights(source.state_dict()))
    assert target.first.weight.dtype == torch.bfloat16
    assert torch.equal(target.first.weight, source.first.weight.bfloat16())


def test_what_does_not_fit_is_refused_before_anything_is_copied():
    model = Tied()
    before = model.first.weight.clone()
    good = dict(pack_weights(Tied().state_dict()))
    wrong_shape = {**good, "bias": ("float32", (3,), good["bias"][2])}
    for weights, message in (
        ({"first.weight": good["first.weight"]}, "missing \\['bias'\\]"),
        ({**good, "third": good["bias"]}, "unknown \\['third'\\]"),
        (wrong_shape, "bias has shape \\(3,\\), the engine's model expects \\(2,\\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load_packed_weights(model, weights)
    assert torch.equal(model.first.weight, before)


def test_merged_adapters_equal_the_library(tiny_model_path):
    config = ModelConfig(path=tiny_model_path, lora_rank=3, lora_alpha=6)
    model = load_causal_lm(config, torch.float32)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            nn.init.normal_(parameter)
    merged = merge_lora(load_causal_lm(config, torch.float32, empty=True), model.state_dict())
    want = model.merge_and_unload().state_dict()
    assert merged.keys() == want.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, want[name], atol=1e-5, rtol=1e-5)


def test_merging_twice_takes_the_weights_of_each_time(tiny_model_path, monkeypatch):
    config = ModelConfig(path=tiny_model_path, lora_rank=2)
    models = [load_causal_lm(config, torch.float32) for _ in range(2)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                nn.init.normal_(parameter)
    gathered = iter(models)
    sharded = SimpleNamespace(rank=0, full_state_dict=lambda: next(gathered).state_dict())
    built = []
    structure = load_causal_lm(config, torch.float32, empty=True)
    monkeypatch.setattr(source, "load_causal_lm", lambda *a, **k: built.append(1) or structure)
    merged_weights = source.MergedWeights(sharded, config)
    for model in models:
        merged = merged_weights()
        assert all(parameter.is_meta for parameter in structure.parameters())
        want = model.merge_and_unload().state_dict()
        torch.testing.assert_close(merged, dict(want), atol=1e-5, rtol=1e-5)
    assert len(built) == 1
