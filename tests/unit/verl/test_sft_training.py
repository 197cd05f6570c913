"""Cloning with the real engine, in this process: the loss, learning, resuming, exporting."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl.config.compose import compose_sft_config
from verl.trainer import checkpoint
from verl.trainer.checkpoint import CheckpointStore
from verl.trainer.main_sft import load_data
from verl.trainer.sft.batches import to_batch
from verl.trainer.sft.trainer import SFTTrainer
from verl.trainer.sft.worker import SFTWorker
from verl.utils.errors import UserError
from verl.workers.model_loading import load_chat_template
from verl.workers.runtime import WorkerRuntime

pytestmark = pytest.mark.usefixtures("single_rank")

THINGS = ["table", "chair", "sink", "stove", "counter", "lighter"]


class OneWorker:
    """A group of one worker in this process: what Ray would carry over."""

    world_size = 1

    def __init__(self, worker):
        self._worker = worker

    def __getattr__(self, name):
        method = getattr(self._worker, name)
        return lambda *arguments: [method(*arguments)]


@pytest.fixture
def games(tmp_path):
    path = tmp_path / "games.jsonl"
    rows = [
        [
            {"role": "user", "content": f"kitchen : {thing}"},
            {"role": "assistant", "content": f"focus on {thing}"},
        ]
        for thing in THINGS
    ]
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in rows))
    return str(path)


def configured(games, folder, *overrides):
    return compose_sft_config(
        [
            "model.path=small",
            "model.init=random",
            f"data.train_files=[{games}]",
            "data.train_batch_size=2",
            "optim.lr=0.003",
            "trainer.device=cpu",
            "trainer.total_epochs=4",
            "trainer.logger=[]",
            f"trainer.default_local_dir={folder}",
            *overrides,
        ]
    )[1]


def started_worker(config, total_steps=12):
    worker = SFTWorker(config, WorkerRuntime("cpu", config.trainer.seed))
    worker.init_model(total_steps)
    return worker


def trainer_of(config):
    """A trainer whose tracker keeps all that it is sent."""
    train, validation = load_data(config, load_chat_template(config.model))
    logged = []
    tracker = SimpleNamespace(
        log=lambda metrics, step: logged.append((step, metrics)), state_dict=dict
    )
    group = OneWorker(started_worker(config))
    start = CheckpointStore(config.trainer).find()
    return SFTTrainer(config, group, train, validation, tracker, start), logged


def losses(logged):
    return [metrics["sft/loss"] for _, metrics in logged if "sft/loss" in metrics]


def test_the_loss_is_the_weighted_mean_of_the_log_likelihood(games, tmp_path):
    config = configured(games, tmp_path, "data.prompt_weight=0.5")
    worker = started_worker(config)
    examples = load_data(config, load_chat_template(config.model))[0].examples(0)[:3]
    measured = worker.evaluate(*to_batch(examples, ranks=1))

    model = worker._sharded.model
    weighted, weights, reply_sum, replies = 0.0, 0.0, 0.0, 0
    for example in examples:
        ids = torch.from_numpy(example.ids)
        with torch.no_grad():
            log_prob = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        for at in range(1, len(ids)):
            token_loss, weight = -log_prob[at - 1, ids[at]].item(), float(example.weight[at])
            weighted, weights = weighted + weight * token_loss, weights + weight
            if weight == 1:
                reply_sum, replies = reply_sum + token_loss, replies + 1
    assert measured["sft/loss"] == pytest.approx(weighted / weights, rel=1e-5)
    assert measured["sft/reply_loss"] == pytest.approx(reply_sum / replies, rel=1e-5)


def test_label_smoothing_is_that_of_torch(games, tmp_path):
    worker = started_worker(configured(games, tmp_path, "data.label_smoothing=0.1"))
    config = configured(games, tmp_path)
    examples = load_data(config, load_chat_template(config.model))[0].examples(0)[:2]
    measured = worker.evaluate(*to_batch(examples, ranks=1))
    logits, targets = [], []
    for example in examples:
        ids = torch.from_numpy(example.ids)
        learned = example.weight[1:] == 1
        with torch.no_grad():
            logits.append(worker._sharded.model(input_ids=ids[None]).logits[0, :-1][learned])
        targets.append(ids[1:][learned])
    stacked, target = torch.cat(logits), torch.cat(targets)
    expected = torch.nn.functional.cross_entropy(stacked, target, label_smoothing=0.1)
    assert measured["sft/loss"] == pytest.approx(expected.item(), rel=1e-5)
    plain = torch.nn.functional.cross_entropy(stacked, target)
    assert measured["sft/reply_loss"] == pytest.approx(plain.item(), rel=1e-5)


def test_micro_batches_and_empty_rows_change_neither_loss_nor_gradient(games, tmp_path):
    config = configured(games, tmp_path)
    examples = load_data(config, load_chat_template(config.model))[0].examples(0)
    cut = configured(games, tmp_path, "data.micro_batch.micro_batch_size_per_gpu=1")
    whole = started_worker(config).update(*to_batch(examples, ranks=1))
    parts = started_worker(cut).update(*to_batch(examples, ranks=4))
    for name in ("sft/loss", "sft/reply_loss", "sft/grad_norm"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5)


def test_training_learns_the_conversations_and_exports_a_model(games, tmp_path):
    config = configured(games, tmp_path / "run", "trainer.total_epochs=15", "optim.lr=0.005")
    trainer, logged = trainer_of(config)
    trainer.fit()
    curve = losses(logged)
    assert len(curve) == trainer.step == 45  # 15 epochs of ceil(6 / 2) batches
    assert curve[0] > 5.0  # near the log of 275 words, 5.6
    assert curve[-1] < curve[0] / 3
    folder = tmp_path / "run" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = to_batch(trainer.train.examples(0), ranks=1)
    with torch.no_grad():
        exported = model(input_ids=batch.rows.batch["input_ids"]).logits
        trained = trainer.workers._worker._sharded.model(
            input_ids=batch.rows.batch["input_ids"]
        ).logits
    torch.testing.assert_close(exported, trained)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert (tmp_path / "run" / "global_step_45" / "driver.pt").is_file()


def test_a_resumed_run_equals_an_uninterrupted_one(games, tmp_path):
    at_once, logged_at_once = trainer_of(configured(games, tmp_path / "a"))
    at_once.fit()
    # five steps: in the middle of the second epoch, which has three
    first, logged_first = trainer_of(configured(games, tmp_path / "b"))
    for epoch in (0, 1):
        for batch in list(first.remaining_batches(epoch))[: 5 - first.step]:
            first.train_step(batch, epoch)
    first.save()
    second, logged_second = trainer_of(configured(games, tmp_path / "b"))
    second.fit()
    assert second.step == at_once.step == 12
    assert losses(logged_first + logged_second) == losses(logged_at_once)
    weights = [t.workers._worker._sharded.full_state_dict() for t in (at_once, second)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_without_room_for_a_checkpoint_it_trains_on_and_fails_only_at_the_end(
    games, tmp_path, monkeypatch, caplog
):
    full_at = {2, 3}

    def free(folder):
        return 0 if trainer.step in full_at else 10**12

    monkeypatch.setattr(checkpoint, "free_bytes", free)
    trainer, _ = trainer_of(configured(games, tmp_path, "trainer.save_freq=1"))
    trainer.fit()
    saved = {path.name for path in tmp_path.glob("global_step_*")}
    assert saved == {f"global_step_{step}" for step in (1, *range(4, 13))}
    told = [message for message in caplog.messages if "training goes on" in message]
    assert len(told) == 2 and "checkpoint of step 2 needs" in told[0]

    full_at.add(12)
    trainer, _ = trainer_of(configured(games, tmp_path / "late", "trainer.save_freq=6"))
    with pytest.raises(OSError, match="the checkpoint of step 12 needs"):
        trainer.fit()
    assert {path.name for path in (tmp_path / "late").glob("global_step_*")} == {"global_step_6"}


def test_the_schedule_is_planned_over_all_epochs_but_training_may_stop_earlier(games, tmp_path):
    stopping = ["trainer.stop_after_epochs=2", "optim.warmup_style=cosine"]
    trainer, logged = trainer_of(configured(games, tmp_path, *stopping))
    trainer.fit()
    assert trainer.step == 6
    rates = [metrics["sft/lr"] for _, metrics in logged if "sft/lr" in metrics]
    # after 5 of 12 steps a half wave is at 0.5 * (1 + cos(pi * 5 / 12)) = 0.6294
    assert rates[0] == 0.003 and rates[-1] == pytest.approx(0.003 * 0.6294, rel=1e-3)


def test_a_checkpoint_of_other_data_is_refused(games, tmp_path):
    trainer, _ = trainer_of(configured(games, tmp_path))
    trainer.save()
    other, _ = trainer_of(configured(games, tmp_path, "data.train_batch_size=3"))
    with pytest.raises(UserError, match="has 3 batches an epoch and this run 2"):
        other.fit()


def test_the_validation_loss_is_the_mean_over_all_tokens(games, tmp_path):
    whole = trainer_of(configured(games, tmp_path, f"data.val_files=[{games}]"))[0].validate()
    one = ["data.train_batch_size=6", f"data.val_files=[{games}]"]
    at_once = trainer_of(configured(games, tmp_path, *one))[0].validate()
    assert whole["val/sft/loss"] == pytest.approx(at_once["val/sft/loss"], rel=1e-5)
    assert trainer_of(configured(games, tmp_path))[0].validate() == {}


def test_random_weights_need_an_architecture(games, tmp_path):
    (tmp_path / "empty").mkdir()
    config = configured(games, tmp_path, f"model.path={tmp_path / 'empty'}")
    with pytest.raises(UserError, match="cannot be loaded"):
        started_worker(config)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_draws_the_weights(games, tmp_path, seed):
    def first_weight(value):
        worker = started_worker(configured(games, tmp_path, f"trainer.seed={value}"))
        return next(iter(worker._sharded.full_state_dict().values()))

    assert torch.equal(first_weight(seed), first_weight(seed))
    assert not torch.equal(first_weight(seed), first_weight(seed + 1))


def test_the_preset_finds_its_augmentation_from_the_repository(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
    from verl.utils.importing import load_object

    assert callable(load_object("examples.small_policy.augment:rename"))
