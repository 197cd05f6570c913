"""The packed and trimmed forward against a row-by-row one. R 5 rows, P 7, T 6."""

import pytest
import torch

from verl.config.model import ModelConfig
from verl.workers.forward import active_logits, forward_inputs, policy_forward, value_forward
from verl.workers.model_loading import load_causal_lm, load_value_model

PROMPTS, RESPONSES = [7, 3, 5, 1, 2], [2, 6, 4, 5, 1]
P, T = 7, 6


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_causal_lm(ModelConfig(path=tiny_model_path), torch.float32).eval()


@pytest.fixture
def batch():
    """Left-padded prompts, right-padded responses, random ids in the padding, a hole in a mask."""
    torch.manual_seed(0)
    rows = len(PROMPTS)
    attention = torch.zeros(rows, P + T, dtype=torch.long)
    response = torch.zeros(rows, T, dtype=torch.long)
    for row, (prompt, length) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        attention[row, P - prompt : P + length] = 1
        response[row, :length] = 1
    response[1, 2:4] = 0  # an observation within the response
    ids = torch.randint(3, 60, (rows, P + T))
    return {"input_ids": ids, "attention_mask": attention, "response_mask": response}


def naive(model, batch, temperature):
    """One row at a time, no padding, all logits."""
    log_probs = torch.zeros(batch["response_mask"].shape)
    entropys = torch.zeros_like(log_probs)
    for row, (prompt, length) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        ids = batch["input_ids"][row, P - prompt : P + length]
        logits = model(ids[None]).logits[0, prompt - 1 : -1]
        log_p = torch.log_softmax(logits / temperature, dim=-1)
        mask = batch["response_mask"][row, :length]
        log_probs[row, :length] = log_p.gather(-1, ids[prompt:, None]).squeeze(-1) * mask
        entropys[row, :length] = -(log_p.exp() * log_p).sum(-1) * mask
    return log_probs, entropys


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_prob_and_entropy_equal_a_naive_forward(model, batch, packed, temperature):
    with torch.no_grad():
        got = policy_forward(model, forward_inputs(batch, packed=packed), temperature)
        want = naive(model, batch, temperature)
    torch.testing.assert_close(got.log_prob_N, want[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(got.entropy_N, want[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_equal_a_naive_forward(model, batch, packed):
    parameters = list(model.parameters())

    def gradients(log_prob, entropy):
        return torch.autograd.grad((log_prob.sin() + entropy.cos()).sum(), parameters)

    got = gradients(*policy_forward(model, forward_inputs(batch, packed=packed), 1.0))
    for value, expected in zip(got, gradients(*naive(model, batch, 1.0)), strict=True):
        torch.testing.assert_close(value, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_padding_never_matters(model, batch, packed):
    with torch.no_grad():
        want = policy_forward(model, forward_inputs(batch, packed=packed), 1.0)
        batch["input_ids"][batch["attention_mask"] == 0] = 9
        wider = {
            "input_ids": torch.nn.functional.pad(batch["input_ids"], (11, 0), value=5),
            "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (11, 0)),
            "response_mask": batch["response_mask"],
        }
        got = policy_forward(model, forward_inputs(wider, packed=packed), 1.0)
    assert torch.equal(got.log_prob_N, want.log_prob_N)
    assert torch.equal(got.entropy_N, want.entropy_N)


@pytest.mark.parametrize("packed", [False, True])
def test_the_model_sees_no_more_than_the_longest_row(batch, packed):
    ids = forward_inputs(batch, packed=packed).model_inputs["input_ids"]
    # rows are 9, 9, 9, 6 and 3 tokens long: 36 together, the longest 9
    assert ids.shape == ((1, 36) if packed else (5, 9))


def test_the_head_sees_active_positions_only(model, batch):
    shapes = []
    handle = model.lm_head.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape))
    )
    with torch.no_grad():
        active_logits(model, forward_inputs(batch, packed=False))
    handle.remove()
    assert shapes == [(16, 60)]  # 2 + (6 - 2) + 4 + 5 + 1 active tokens


@pytest.mark.parametrize("packed", [False, True])
def test_no_rows_still_run_forward_and_backward(model, batch, packed):
    empty = {name: column[:0] for name, column in batch.items()}
    result = policy_forward(model, forward_inputs(empty, packed=packed), 1.0)
    assert result.log_prob_N.shape == (0, T)
    gradients = torch.autograd.grad(result.log_prob_N.sum(), list(model.parameters()))
    assert all(not gradient.any() for gradient in gradients)


def test_gradient_checkpointing_changes_nothing(tiny_model_path, batch):
    def gradients(**options):
        config = ModelConfig(path=tiny_model_path, **options)
        model = load_causal_lm(config, torch.float32).train()
        result = policy_forward(model, forward_inputs(batch, packed=False), 1.0)
        return torch.autograd.grad(result.log_prob_N.sum(), list(model.parameters()))

    plain, checkpointed = gradients(), gradients(enable_gradient_checkpointing=True)
    for value, expected in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)


def test_fresh_adapters_change_nothing_and_alone_are_trained(tiny_model_path, model, batch):
    adapted = load_causal_lm(ModelConfig(path=tiny_model_path, lora_rank=2), torch.float32)
    inputs = forward_inputs(batch, packed=False)
    got = policy_forward(adapted, inputs, 1.0)
    want = policy_forward(model, inputs, 1.0)
    torch.testing.assert_close(got.log_prob_N, want.log_prob_N, atol=1e-6, rtol=0)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)


def test_values_are_those_of_the_state_before_each_token(tiny_model_path, batch):
    model = load_value_model(ModelConfig(path=tiny_model_path), torch.float32).eval()
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    with torch.no_grad():
        got = value_forward(model, forward_inputs(batch, packed=False))
        prompt, length = PROMPTS[3], RESPONSES[3]
        ids = batch["input_ids"][3, P - prompt : P + length]
        want = model(ids[None]).logits[0, prompt - 1 : -1, 0]
    torch.testing.assert_close(got[3, :length], want, atol=1e-5, rtol=1e-5)
    assert not got[3, length:].any()
