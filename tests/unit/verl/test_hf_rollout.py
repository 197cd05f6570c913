"""The transformers engine against naive generation and the training forward."""

import asyncio
import threading
from dataclasses import replace

import pytest
import torch

from agent_system.types import SamplingParams
from verl.config.actor import ActorRolloutRefConfig, RolloutConfig
from verl.config.model import ModelConfig
from verl.config.plan import EnginePlan
from verl.utils.errors import UserError
from verl.workers.forward import forward_inputs, policy_forward
from verl.workers.model_loading import load_causal_lm, load_tokenizer
from verl.workers.rollout import batcher
from verl.workers.rollout.base import EngineDiedError
from verl.workers.rollout.engines import build_engine
from verl.workers.weight_sync import WeightUpdate, pack_weights

from ...waiting import until

MAX_LEN = 200
PLAN = EnginePlan("hf", "cpu", torch.float32, MAX_LEN)


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_causal_lm(ModelConfig(path=tiny_model_path), torch.float32).eval()


@pytest.fixture
def engine(tiny_model_path):
    engine = make_engine(tiny_model_path)
    yield engine
    engine.close()


def make_engine(path, rows=8):
    engine = build_engine(make_config(path, rows), PLAN)
    engine.start()
    return engine


def make_config(path, rows):
    rollout = RolloutConfig(name="hf", max_num_seqs=rows)
    return ActorRolloutRefConfig(model=ModelConfig(path=path), rollout=rollout)


def prompt(seed, length):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 60, (length,), generator=generator).tolist()


def generate(engine, ids, trajectory_id="t", **sampling):
    return asyncio.run(
        engine.generate(ids, SamplingParams(**sampling), trajectory_id=trajectory_id)
    )


async def play(engine, index, turns=4, reuse=True, **sampling):
    """A conversation: each prompt is the last one, its response and an observation."""
    ids, played = prompt(index, 5 + 3 * index), []
    for turn in range(turns):
        settings = SamplingParams(max_tokens=6 + index, seed=100 * index + turn, **sampling)
        name = f"{index}" if reuse else f"{index}.{turn}"
        out = await engine.generate(ids, settings, trajectory_id=name)
        played.append((ids, out))
        ids = [*ids, *out.token_ids, *prompt(1000 + turn, 3)]
    engine.release(f"{index}")
    return played


def naive_greedy(model, ids, count):
    """Best token after best token, the whole text computed anew for each."""
    ids = torch.tensor([ids])
    with torch.no_grad():
        for _ in range(count):
            best = model(ids).logits[:, -1].argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, best], dim=-1)
    return tuple(ids[0, -count:].tolist())


def play_all(engine, count=6, **options):
    async def run():
        return await asyncio.gather(*[play(engine, index, **options) for index in range(count)])

    return asyncio.run(run())


def tokens(conversations):
    return [[out.token_ids for _, out in played] for played in conversations]


@pytest.mark.parametrize("rows", [3, 8], ids=["rows are short", "rows for all"])
def test_greedy_equals_naive_generation(tiny_model_path, model, rows):
    engine = make_engine(tiny_model_path, rows)
    for played in play_all(engine, temperature=0.0):
        for ids, out in played:
            assert out.token_ids == naive_greedy(model, ids, len(out.token_ids))
    engine.close()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_equal_the_training_forward(engine, model, temperature):
    for played in play_all(engine, temperature=temperature, top_p=0.9):
        for ids, out in played:
            count = len(out.token_ids)
            row = torch.tensor([[*ids, *out.token_ids]])
            batch = {
                "input_ids": row,
                "attention_mask": torch.ones_like(row),
                "response_mask": torch.ones(1, count, dtype=torch.long),
            }
            with torch.no_grad():
                want = policy_forward(model, forward_inputs(batch, packed=False), temperature)
            got = torch.tensor(out.log_probs)
            torch.testing.assert_close(got, want.log_prob_N[0], atol=1e-4, rtol=0)


def test_greedy_log_probs_are_of_temperature_one(engine, model):
    out = generate(engine, prompt(0, 9), temperature=0.0, max_tokens=1)
    with torch.no_grad():
        log_p = model(torch.tensor([prompt(0, 9)])).logits[0, -1].log_softmax(-1)
    assert out.log_probs[0] == pytest.approx(log_p.max().item(), abs=1e-5)


def test_a_kept_cache_gives_what_a_fresh_one_gives(engine):
    kept = play_all(engine)
    hits = engine.stats()["cache_hit_tokens"]
    fresh = play_all(engine, reuse=False)
    assert tokens(kept) == tokens(fresh)
    assert hits > 0
    assert engine.stats()["cache_hit_tokens"] == hits


def test_only_the_new_tokens_are_prefilled(engine):
    first = generate(engine, prompt(0, 20), max_tokens=5, temperature=0.0)
    assert engine.stats()["prefilled_tokens"] == 20
    longer = [*prompt(0, 20), *first.token_ids, 7, 8, 9]
    generate(engine, longer, max_tokens=2, temperature=0.0)
    # the last sampled token was never fed: it and the three new ones are computed
    assert engine.stats()["prefilled_tokens"] == 20 + 4
    assert engine.stats()["cache_hit_tokens"] == 20 + len(first.token_ids) - 1


def test_a_prompt_that_parts_from_the_cache_is_computed_from_there(engine, model):
    generate(engine, prompt(0, 20), max_tokens=4)
    other = [*prompt(0, 12), *prompt(5, 8)]
    out = generate(engine, other, max_tokens=4, temperature=0.0)
    assert out.token_ids == naive_greedy(model, other, len(out.token_ids))
    assert engine.stats()["cache_hit_tokens"] == 12


def test_the_same_prompt_again_costs_one_token(engine):
    generate(engine, prompt(0, 20), max_tokens=4)
    generate(engine, prompt(0, 20), max_tokens=4)
    assert engine.stats()["prefilled_tokens"] == 20 + 1


def test_tokens_do_not_depend_on_what_else_is_sampled(engine):
    together = play_all(engine, count=6)
    alone = [asyncio.run(play(engine, index)) for index in range(6)]
    assert tokens(together) == tokens(alone)


def test_seeds_repeat_and_differ(engine):
    ids = prompt(1, 10)
    first, again = (generate(engine, ids, seed=5, max_tokens=20).token_ids for _ in range(2))
    assert first == again
    assert generate(engine, ids, seed=6, max_tokens=20).token_ids != first
    unseeded = {generate(engine, ids, max_tokens=20).token_ids for _ in range(3)}
    assert len(unseeded) > 1


def test_an_end_token_stops_and_is_returned(tiny_model_path):
    engine = make_engine(tiny_model_path)
    free = generate(engine, prompt(2, 8), temperature=0.0, max_tokens=12).token_ids
    engine._batcher.end_tokens = frozenset({free[4], 59_999})
    out = generate(engine, prompt(2, 8), temperature=0.0, max_tokens=12)
    end = free.index(free[4])
    assert out.token_ids == free[: end + 1]
    assert out.finish_reason == "stop"
    engine.close()


def test_a_stop_string_over_two_tokens_stops(engine, tiny_model_path):
    tokenizer = load_tokenizer(ModelConfig(path=tiny_model_path))
    free = generate(engine, prompt(2, 8), seed=1, max_tokens=12).token_ids
    stop = tokenizer.decode(free[3:5])
    end = next(i for i in range(12) if stop in tokenizer.decode(free[: i + 1]))
    out = generate(engine, prompt(2, 8), seed=1, max_tokens=12, stop=("never", stop))
    assert out.token_ids == free[: end + 1]
    assert out.finish_reason == "stop"


def test_a_stop_string_within_the_reasoning_does_not_stop(engine, tiny_model_path):
    tokenizer = load_tokenizer(ModelConfig(path=tiny_model_path))
    free = generate(engine, prompt(2, 8), seed=1, max_tokens=12).token_ids
    stop = tokenizer.decode(free[3:5])
    settings = {"seed": 1, "max_tokens": 12, "stop": (stop,), "in_reasoning": True}
    assert generate(engine, prompt(2, 8), **settings).token_ids == free


def test_length_limits(engine):
    out = generate(engine, prompt(0, 10), max_tokens=3, seed=1)
    assert (len(out.token_ids), out.finish_reason) == (3, "length")
    engine._batcher.end_tokens = frozenset()
    out = generate(engine, prompt(0, MAX_LEN - 4), max_tokens=50, seed=1)
    assert (len(out.token_ids), out.finish_reason) == (4, "length")


@pytest.mark.parametrize(
    ("length", "max_tokens"), [(0, 5), (MAX_LEN, 5), (MAX_LEN + 9, 5), (10, 0)]
)
def test_a_request_without_room_is_refused_and_harms_nobody(engine, length, max_tokens):
    with pytest.raises(ValueError, match=f"a prompt of {length} tokens .* max_model_len=200"):
        generate(engine, prompt(0, length), max_tokens=max_tokens)
    engine._batcher.end_tokens = frozenset()
    assert len(generate(engine, prompt(0, 5), max_tokens=2).token_ids) == 2


def test_new_weights_are_used_and_old_caches_dropped(engine, model):
    ids = prompt(0, 15)
    before = generate(engine, ids, temperature=0.0, max_tokens=8)
    assert before.weight_version == 0
    torch.manual_seed(1)
    changed = {name: t + 0.2 * torch.randn_like(t) for name, t in model.state_dict().items()}
    changed["lm_head.weight"] = changed["model.embed_tokens.weight"]  # tied
    engine.load_weights(WeightUpdate(3, pack_weights(changed)))

    after = generate(engine, ids, temperature=0.0, max_tokens=8)
    assert after.weight_version == 3
    assert engine.stats()["cache_hit_tokens"] == 0
    other = load_causal_lm(ModelConfig(path=model.config._name_or_path), torch.float32)
    other.load_state_dict(changed)
    assert after.token_ids == naive_greedy(other, ids, len(after.token_ids))
    assert after.token_ids != before.token_ids


def test_running_requests_finish_on_the_old_weights(engine, model):
    engine._batcher.end_tokens = frozenset()
    settings = SamplingParams(max_tokens=60, seed=1)
    changed = {name: -tensor for name, tensor in model.state_dict().items()}
    changed["lm_head.weight"] = changed["model.embed_tokens.weight"]

    async def run(reload):
        before = engine.stats()["generated_tokens"]
        running = [
            asyncio.ensure_future(engine.generate(prompt(i, 5), settings, trajectory_id=f"{i}"))
            for i in range(4)
        ]
        await until(lambda: engine.stats()["generated_tokens"] > before)
        if reload:
            await asyncio.to_thread(engine.load_weights, WeightUpdate(1, pack_weights(changed)))
        return await asyncio.gather(*running)

    undisturbed, disturbed = asyncio.run(run(False)), asyncio.run(run(True))
    assert tokens_of(disturbed) == tokens_of(undisturbed)
    assert {out.weight_version for out in disturbed} == {0}
    late = generate(engine, prompt(0, 5), max_tokens=60, seed=1)
    assert late.weight_version == 1
    assert late.token_ids != undisturbed[0].token_ids


def tokens_of(generations):
    return [out.token_ids for out in generations]


def test_weights_that_do_not_fit_are_refused_and_the_engine_goes_on(engine, model):
    weights = dict(pack_weights(model.state_dict()))
    name = "model.norm.weight"
    with pytest.raises(ValueError, match=r"unknown \['extra'\]"):
        engine.load_weights(WeightUpdate(1, {**weights, "extra": weights[name]}))
    without = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(ValueError, match="missing"):
        engine.load_weights(WeightUpdate(1, without))
    assert generate(engine, prompt(0, 5), max_tokens=2).weight_version == 0


def test_an_error_in_the_engine_fails_open_and_later_requests(tiny_model_path):
    engine = make_engine(tiny_model_path)
    original, calls = engine._batcher.step, []

    def broken(admit):
        calls.append(1)
        if len(calls) == 3:
            raise FloatingPointError("numbers broke")
        original(admit=admit)

    engine._batcher.step = broken

    async def run():
        settings = SamplingParams(max_tokens=50, seed=0)
        return await asyncio.wait_for(
            asyncio.gather(
                *[engine.generate(prompt(i, 5), settings, trajectory_id=f"{i}") for i in range(3)],
                return_exceptions=True,
            ),
            timeout=30,
        )

    for error in asyncio.run(run()):
        assert isinstance(error, RuntimeError)
        assert isinstance(error.__cause__, FloatingPointError)
    with pytest.raises(RuntimeError, match="does not serve any more"):
        generate(engine, prompt(0, 5))
    with pytest.raises(RuntimeError, match="does not serve any more"):
        engine.load_weights(WeightUpdate(1, {}))
    engine.close()


@pytest.mark.parametrize(("broken_call", "finished"), [(1, 0), (2, 1)])
def test_an_error_in_a_prefill_fails_every_request(
    tiny_model_path, monkeypatch, broken_call, finished
):
    monkeypatch.setattr(batcher, "PREFILL_TOKENS", 8)  # a prefill for each prompt
    engine = build_engine(make_config(tiny_model_path, rows=3), PLAN)
    original, calls = engine._batcher._prefill, []

    def broken(requests):
        calls.append(1)
        if len(calls) == broken_call:
            raise FloatingPointError("numbers broke")
        original(requests)

    engine._batcher._prefill = broken

    async def run():
        settings = SamplingParams(max_tokens=1, seed=0)
        playing = [
            asyncio.ensure_future(engine.generate(prompt(i, 8), settings, trajectory_id=f"{i}"))
            for i in range(4)  # three are admitted, one waits
        ]
        await asyncio.sleep(0)  # all are sent before the engine takes the first
        engine.start()
        together = asyncio.gather(*playing, return_exceptions=True)
        return await asyncio.wait_for(together, timeout=20)

    results = asyncio.run(run())
    assert [len(out.token_ids) for out in results[:finished]] == [1] * finished
    for error in results[finished:]:
        assert isinstance(error, RuntimeError)
        assert isinstance(error.__cause__, FloatingPointError)
    engine.close()


@pytest.mark.timeout(60)
def test_an_error_in_loading_weights_reaches_the_caller_and_ends_the_engine(tiny_model_path):
    engine = make_engine(tiny_model_path)

    def broken(update):
        raise MemoryError("no room for the weights")

    engine._batcher.load_weights = broken
    with pytest.raises(MemoryError, match="no room for the weights"):
        engine.load_weights(WeightUpdate(1, {}))
    with pytest.raises(RuntimeError, match="does not serve any more"):
        generate(engine, prompt(0, 5))
    engine.close()


def test_a_closed_engine_refuses_and_leaves_no_thread(tiny_model_path):
    engine = make_engine(tiny_model_path)
    generate(engine, prompt(0, 5), max_tokens=2)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        generate(engine, prompt(0, 5))
    assert "hf-rollout" not in {thread.name for thread in threading.enumerate()}


def test_a_cancelled_request_frees_its_row(tiny_model_path):
    engine = make_engine(tiny_model_path, rows=1)
    engine._batcher.end_tokens = frozenset()

    async def run():
        long = SamplingParams(max_tokens=150, seed=0)
        task = asyncio.ensure_future(engine.generate(prompt(0, 5), long, trajectory_id="a"))
        await until(lambda: engine.stats()["generated_tokens"])
        task.cancel()
        short = SamplingParams(max_tokens=2, seed=0)
        return await asyncio.wait_for(
            engine.generate(prompt(1, 5), short, trajectory_id="b"), timeout=20
        )

    assert len(asyncio.run(run()).token_ids) == 2
    assert engine.stats()["generated_tokens"] < 150
    engine.close()


def test_long_prompts_are_prefilled_in_parts(tiny_model_path, monkeypatch):
    def play_in_parts_of(limit):
        monkeypatch.setattr(batcher, "PREFILL_TOKENS", limit)
        engine = make_engine(tiny_model_path)
        conversations = play_all(engine)
        engine.close()
        return tokens(conversations)

    assert play_in_parts_of(16) == play_in_parts_of(8192)


def test_unknown_engines_are_refused(tiny_model_path):
    unknown = ActorRolloutRefConfig(model=ModelConfig(path=tiny_model_path))
    with pytest.raises(UserError, match=r"rollout.name=sglang is unknown; available: hf, vllm"):
        build_engine(unknown, replace(PLAN, name="sglang"))


def scored_by(model, rows):
    """Of each row by itself, the log-probs of its tokens after the first."""
    scores = []
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].log_softmax(-1)
        scores.append(log_probs.gather(1, ids[0, 1:, None])[:, 0].tolist())
    return scores


def test_rows_are_scored_as_transformers_does_and_nothing_else_notices(tiny_model_path, model):
    rows = [prompt(index, length) for index, length in enumerate((40, 17, 2, 25))]
    checked, plain = make_engine(tiny_model_path, 3), make_engine(tiny_model_path, 3)
    for turn in range(3):
        # the conversation begins with a row that is scored in between
        ids = [*rows[0], *prompt(turn, 4 * turn)]
        settings = {"trajectory_id": "t", "seed": turn, "max_tokens": 5, "temperature": 0.7}
        assert generate(checked, ids, **settings) == generate(plain, ids, **settings)
        for got, want in zip(checked.score(rows), scored_by(model, rows), strict=True):
            assert got == pytest.approx(want, abs=1e-4)
    busy = {"busy_seconds"}
    counts = [{k: v for k, v in e.stats().items() if k not in busy} for e in (checked, plain)]
    assert counts[0] == counts[1]
    checked.close()
    plain.close()


def test_tensors_that_are_not_as_sent_are_named(engine, model):
    sent = WeightUpdate(1, pack_weights(dict(model.named_parameters())))
    engine.load_weights(sent)
    assert engine.differing_weights(sent) == []
    with torch.no_grad():
        engine._batcher._model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] += 1
    assert engine.differing_weights(sent) == ["model.layers.1.mlp.up_proj.weight"]


def test_an_error_in_scoring_ends_the_engine(engine):
    with pytest.raises(EngineDiedError) as error:
        engine.score([[1, 10**6]])
    assert isinstance(error.value.__cause__, IndexError)
    with pytest.raises(EngineDiedError):
        generate(engine, prompt(0, 5))
