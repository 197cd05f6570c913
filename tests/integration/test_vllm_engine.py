"""The vLLM engine, for real, against transformers on the same ids."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoTokenizer

from agent_system.types import SamplingParams
from verl.config.actor import ActorRolloutRefConfig
from verl.config.model import ModelConfig
from verl.config.plan import EnginePlan
from verl.utils.errors import UserError
from verl.workers.model_loading import load_causal_lm
from verl.workers.rollout.base import EngineDiedError, RolloutEngine
from verl.workers.rollout.engines import build_engine
from verl.workers.rollout.vllm_rollout.arguments import engine_args
from verl.workers.weight_sync import (
    LoraAdapter,
    WeightUpdate,
    checksum,
    lora_adapters,
    merge_lora,
    pack_weights,
)

from ..random_policy import write_random_llama
from ..waiting import until, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

MAX_LEN = 320
TOLERANCE = 2e-4  # float32 sums in another order
END = 4


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_random_llama(
        tmp_path_factory.mktemp("policy"),
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
    )


@pytest.fixture
def model(model_path):
    return load_causal_lm(ModelConfig(path=model_path), torch.float32).eval()


@pytest.fixture(scope="module")
def shared_engine(model_path):
    """When it is closed, none of its temporary files is left."""
    folder = tempfile.mkdtemp(dir="/tmp")  # short enough for its sockets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", folder)
        with running_engine(ModelConfig(path=model_path)) as engine:
            assert list(Path(folder).glob(".verl-*/*"))
            yield engine
        assert [name for name in os.listdir(folder) if not name.startswith("torchinductor")] == []
    shutil.rmtree(folder)


@pytest.fixture
def engine(shared_engine, model):
    """With the model's weights as version 0 and an empty prefix cache."""
    shared_engine.load_weights(update(model, version=0))
    return shared_engine


@contextmanager
def running_engine(model: ModelConfig, **rollout) -> Iterator[RolloutEngine]:
    config = ActorRolloutRefConfig(model=model)
    config.rollout = replace(
        config.rollout, name="vllm", max_num_seqs=16, cpu_kv_cache_gb=0.25, **rollout
    )
    adapters = model.lora_rank > 0
    plan = EnginePlan("vllm", "cpu", torch.float32, MAX_LEN, takes_adapters=adapters)
    engine = build_engine(config, plan)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def update(model, version, checked=False):
    """All weights of a model; a tied head comes under the name of the embedding."""
    tensors = pack_weights({name: p.detach() for name, p in model.named_parameters()})
    return WeightUpdate(version, tensors, checksum=checksum(tensors) if checked else None)


def perturbed(model, seed=1):
    """Another model of the same shape."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def prompt(seed, length=40):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 200, (length,), generator=generator).tolist()


def generate(engine, *prompts, **sampling):
    """One response to each prompt, sampled concurrently; seeds are the prompts' places."""
    settings = {"max_tokens": 24, **sampling}

    async def all_of_them():
        return await asyncio.gather(
            *(
                engine.generate(ids, SamplingParams(**{"seed": i, **settings}), trajectory_id="t")
                for i, ids in enumerate(prompts)
            )
        )

    return asyncio.run(all_of_them())


@torch.no_grad()
def log_probs_of(model, ids, response, temperature):
    logits = model(torch.tensor([[*ids, *response]])).logits[0, len(ids) - 1 : -1]
    log_probs = (logits / temperature).log_softmax(-1)
    return log_probs.gather(1, torch.tensor(response)[:, None])[:, 0]


def assert_sampled_from(model, prompts, generations, temperature=1.0):
    for ids, generation in zip(prompts, generations, strict=True):
        expected = log_probs_of(model, ids, generation.token_ids, temperature)
        torch.testing.assert_close(
            torch.tensor(generation.log_probs), expected, atol=TOLERANCE, rtol=0
        )


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_log_probs_of_concurrent_requests_equal_transformers(engine, model, temperature):
    prompts = [prompt(seed, length=20 + 11 * seed) for seed in range(16)]
    generations = generate(engine, *prompts, temperature=temperature)
    assert all(len(g.log_probs) == len(g.token_ids) > 0 for g in generations)
    assert_sampled_from(model, prompts, generations, temperature)


def test_greedy_equals_transformers(engine, model):
    ids = prompt(0)
    (generation,) = generate(engine, ids, temperature=0.0)
    naive = model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=24, pad_token_id=END
    )
    assert list(generation.token_ids) == naive[0, len(ids) :].tolist()
    assert_sampled_from(model, [ids], [generation])


def test_a_seed_repeats_whatever_runs_beside_it(engine):
    (alone,) = generate(engine, prompt(0), seed=11)
    among_others = generate(engine, *(prompt(seed) for seed in range(16)), seed=11)
    (other_seed,) = generate(engine, prompt(0), seed=12)
    assert among_others[0].token_ids == alone.token_ids != other_seed.token_ids


def test_ends_with_the_token_that_completes_a_stop_string(engine, model_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    (free,) = generate(engine, prompt(3), seed=5, max_tokens=60)
    text = tokenizer.decode(free.token_ids[:20])
    stop = text[-3:]
    length = next(n for n in range(1, 61) if stop in tokenizer.decode(free.token_ids[:n]))
    (stopped,) = generate(engine, prompt(3), seed=5, max_tokens=60, stop=(stop,))
    assert stopped.token_ids == free.token_ids[:length]
    assert stopped.log_probs == pytest.approx(free.log_probs[:length], abs=TOLERANCE)
    assert stopped.finish_reason == "stop"


def test_goes_on_after_a_stop_string_within_the_reasoning(engine, model, model_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    prompts = [prompt(seed) for seed in range(4)]
    free = generate(engine, *prompts, temperature=0.0, max_tokens=60)
    stop = tuple("eaot")
    assert all(set(stop) & set(tokenizer.decode(one.token_ids[:20])) for one in free)
    cut = generate(engine, *prompts, temperature=0.0, max_tokens=60, stop=stop)
    assert all(len(one.token_ids) < 20 for one in cut)
    inside = {"max_tokens": 60, "stop": stop, "in_reasoning": True}
    whole = generate(engine, *prompts, temperature=0.0, **inside)
    assert [one.token_ids for one in whole] == [one.token_ids for one in free]
    assert [one.finish_reason for one in whole] == [one.finish_reason for one in free]
    sampled = generate(engine, *prompts, **inside)
    again = generate(engine, *prompts, **inside)
    assert [one.token_ids for one in sampled] == [one.token_ids for one in again]
    assert all(len(one.token_ids) == 60 or one.token_ids[-1] == END for one in sampled)
    assert_sampled_from(model, prompts, sampled)


def test_ends_with_the_end_token_or_where_the_room_ends(engine):
    ends = generate(engine, *(prompt(seed) for seed in range(16)), max_tokens=250)
    stopped = [generation for generation in ends if generation.finish_reason == "stop"]
    assert stopped
    assert all(generation.token_ids[-1] == END for generation in stopped)
    (clipped,) = generate(engine, prompt(0, MAX_LEN - 3), seed=1)
    assert (len(clipped.token_ids), clipped.finish_reason) == (3, "length")


def test_refuses_what_leaves_nothing_to_generate(engine):
    for ids in ([], prompt(0, MAX_LEN)):
        with pytest.raises(ValueError, match="leave nothing to generate"):
            generate(engine, ids)


def assert_scores(engine, model, rows):
    for row, scored in zip(rows, engine.score(rows), strict=True):
        expected = log_probs_of(model, row[:1], row[1:], temperature=1.0)
        torch.testing.assert_close(torch.tensor(scored), expected, atol=TOLERANCE, rtol=0)


def test_rows_are_scored_as_transformers_does_and_nothing_else_notices(engine, model):
    rows = [prompt(seed, length) for seed, length in enumerate((100, 33, 2, 64))]
    before = engine.stats()
    assert_scores(engine, model, rows)
    assert engine.stats() == before
    generate(engine, rows[0], temperature=0.7)
    # nothing of the row that was scored is found in the cache
    assert engine.stats()["prefilled_tokens"] - before["prefilled_tokens"] == len(rows[0])
    assert_scores(engine, model, rows)
    engine.load_weights(update(perturbed(model), version=1))
    assert_scores(engine, model, rows)


def test_a_prompt_that_continues_costs_its_new_tokens(engine):
    before = engine.stats()
    ids, lengths = prompt(0, 70), []
    for turn in range(4):
        (generation,) = generate(engine, ids, seed=turn)
        lengths.append(len(ids))
        ids = [*ids, *generation.token_ids, *prompt(turn, 20)]
    gained = {name: value - before[name] for name, value in engine.stats().items()}
    assert gained["prefilled_tokens"] + gained["cache_hit_tokens"] == sum(lengths)
    # of each earlier prompt all but the last, incomplete block of 32 tokens is found again
    assert gained["cache_hit_tokens"] >= sum(length - 32 for length in lengths[:-1])


def test_new_weights_take_the_place_of_the_old(engine, model):
    ids = prompt(0, 100)
    (old,) = generate(engine, ids)
    hits = engine.stats()["cache_hit_tokens"]
    engine.load_weights(update(perturbed(model), version=3, checked=True))
    (new,) = generate(engine, ids)
    assert (old.weight_version, new.weight_version) == (0, 3)
    assert engine.stats()["cache_hit_tokens"] == hits
    assert_sampled_from(model, [ids], [new])
    assert new.log_probs != pytest.approx(old.log_probs, abs=0.01)


def test_running_requests_finish_with_the_old_weights(engine, model):
    """And those that waited for a place among the 16 are sampled from the new ones."""
    prompts = [prompt(seed) for seed in range(20)]
    old_model = load_causal_lm(ModelConfig(path=engine._arguments["model"]), torch.float32).eval()
    change = update(perturbed(model), version=1)

    async def load_amid():
        requests = [
            asyncio.ensure_future(
                engine.generate(ids, SamplingParams(seed=i, max_tokens=270), trajectory_id="t")
            )
            for i, ids in enumerate(prompts)
        ]
        await until(lambda: engine._llm.get_num_unfinished_requests() == 20)
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.load_weights, change)
        return await asyncio.gather(*requests)

    models = {0: old_model, 1: model}
    for ids, generation in zip(prompts, asyncio.run(load_amid()), strict=True):
        assert_sampled_from(models[generation.weight_version], [ids], [generation])


def test_weights_that_do_not_fit_are_refused_and_the_old_stay(engine, model):
    good = dict(update(model, 1).tensors)
    name = "model.layers.0.mlp.up_proj.weight"
    dtype, shape, content = good[name]
    missing = {key: value for key, value in good.items() if key != name}
    (before,) = generate(engine, prompt(0))
    for bad, reason in (
        (missing, "missing.*up_proj"),
        ({**good, "model.stranger": good[name]}, "unknown.*stranger"),
        ({**good, name: (dtype, shape[::-1], content)}, "has shape"),
    ):
        with pytest.raises(ValueError, match=reason):
            engine.load_weights(WeightUpdate(1, bad))
    (after,) = generate(engine, prompt(0))
    assert after.token_ids == before.token_ids
    assert after.weight_version == 0


def test_weights_that_changed_on_the_way_are_refused_and_the_old_stay(engine, model):
    (before,) = generate(engine, prompt(0))
    sent = update(perturbed(model), version=1, checked=True)
    with pytest.raises(RuntimeError, match="did not arrive"):
        engine.load_weights(replace(sent, checksum=sent.checksum ^ 1))
    (after,) = generate(engine, prompt(0))
    assert (after.token_ids, after.weight_version) == (before.token_ids, 0)


def test_updates_leave_no_files(engine, model):
    before = set(Path("/dev/shm").glob("rollout_weights_*"))
    engine.load_weights(update(model, version=1))
    assert set(Path("/dev/shm").glob("rollout_weights_*")) <= before


def test_a_cancelled_request_is_aborted(engine):
    async def cancel_amid():
        request = asyncio.ensure_future(
            engine.generate(prompt(0), SamplingParams(seed=0, max_tokens=270), trajectory_id="t")
        )
        await until(engine._llm.get_num_unfinished_requests)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await until(lambda: not engine._llm.get_num_unfinished_requests())

    before = engine.stats()["generated_tokens"]
    asyncio.run(cancel_amid())
    assert engine.stats()["generated_tokens"] == before
    assert len(generate(engine, prompt(0))) == 1


def test_a_head_size_without_a_kernel_is_refused_before_the_start():
    with (
        pytest.raises(UserError, match=r"'small' has attention heads of size 16.*rollout.name=hf"),
        running_engine(ModelConfig(path="small")),
    ):
        pass


def test_every_argument_is_one_of_vllms(model_path):
    from vllm.engine.arg_utils import AsyncEngineArgs

    config = ActorRolloutRefConfig(model=ModelConfig(path=model_path, lora_rank=8))
    known = {field.name for field in fields(AsyncEngineArgs)}
    on_cpu = EnginePlan("vllm", "cpu", torch.float32, MAX_LEN, takes_adapters=True)
    on_gpu = replace(on_cpu, device="cuda", dtype=torch.bfloat16, transport="nccl")
    for plan in (on_cpu, on_gpu):
        assert set(engine_args(config, plan)) <= known


def test_adapters_are_synced_as_adapters(model_path):
    config = ModelConfig(path=model_path, lora_rank=4, lora_alpha=8)
    policy = load_causal_lm(config, torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    merged = load_causal_lm(ModelConfig(path=model_path), torch.float32).eval()
    prompts = [prompt(seed) for seed in range(4)]
    kind = LoraAdapter(rank=4, alpha=8)
    with running_engine(config) as engine:
        assert_sampled_from(merged, prompts, generate(engine, *prompts))  # none yet: the base
        for version, factor in ((1, 1.0), (2, -2.0)):
            scaled = {
                name: tensor * factor if ".lora_B." in name else tensor
                for name, tensor in policy.state_dict().items()
            }
            adapters = pack_weights(lora_adapters(scaled))
            engine.load_weights(WeightUpdate(version, adapters, kind, checksum(adapters)))
            structure = load_causal_lm(config, torch.float32, empty=True)
            merged.load_state_dict(merge_lora(structure, scaled))
            generations = generate(engine, *prompts)
            assert {generation.weight_version for generation in generations} == {version}
            assert_sampled_from(merged, prompts, generations)
            assert_scores(engine, merged, prompts)
        with pytest.raises(ValueError, match="missing"):
            engine.load_weights(WeightUpdate(3, dict(list(adapters.items())[1:]), kind))


def test_two_processes_of_one_engine(model_path, model):
    """Tensor parallel 2, and nothing of it is left after close."""
    prompts = [prompt(seed) for seed in range(4)]
    with running_engine(ModelConfig(path=model_path), tensor_model_parallel_size=2) as engine:
        assert_sampled_from(model, prompts, generate(engine, *prompts))
        engine.load_weights(update(perturbed(model), version=1, checked=True))
        assert_sampled_from(model, prompts, generate(engine, *prompts))
        assert_scores(engine, model, prompts)
        processes = processes_of(engine)
        assert len(processes) == 3
    assert_end(processes)


def test_a_killed_engine_fails_every_request(model_path, model):
    with running_engine(ModelConfig(path=model_path)) as engine:
        processes = processes_of(engine)

        def kill():
            wait_until(engine._llm.get_num_unfinished_requests)
            os.kill(engine._process.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        started = time.monotonic()
        with pytest.raises(EngineDiedError):
            generate(engine, *(prompt(seed) for seed in range(16)), max_tokens=270)
        killer.join()
        with pytest.raises(EngineDiedError):
            generate(engine, prompt(0))
        with pytest.raises(EngineDiedError):
            engine.load_weights(update(model, version=1))
        assert time.monotonic() - started < 10
    assert_end(processes)
    with pytest.raises(RuntimeError, match="closed"):
        generate(engine, prompt(0))


def processes_of(engine) -> list[psutil.Process]:
    """vLLM's scheduling process and its workers."""
    scheduler = psutil.Process(engine._process.pid)
    return [scheduler, *scheduler.children()]


def assert_end(processes):
    """Zombies wait for this process alone; `wait` collects them."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
