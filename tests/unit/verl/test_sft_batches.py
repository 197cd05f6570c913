"""Batches of cloning: the same for the same seed and epoch, rows padded for ranks."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from verl.config.sft import SFTDataConfig
from verl.trainer.sft.batches import BatchSums, ConversationData, bucketed_order, to_batch
from verl.trainer.sft.conversations import Example
from verl.utils.errors import UserError
from verl.workers.chat_template import ChatTemplate

SMALL_POLICY = Path(__file__).parents[3] / "examples" / "small_policy" / "model"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SMALL_POLICY)


@pytest.fixture
def games(tmp_path):
    """Ten conversations whose prompts have 1 to 10 words."""
    path = tmp_path / "games.jsonl"
    rows = [
        [
            {"role": "user", "content": "table " * words},
            {"role": "assistant", "content": "focus on table"},
        ]
        for words in range(1, 11)
    ]
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in rows))
    return str(path)


def shout(messages, rng):
    """An augmentation that depends on the random numbers it is given."""
    word = rng.choice(["kitchen", "bathroom", "workshop", "bedroom"])
    return [messages[0], {"role": "assistant", "content": f"teleport to {word}"}]


def data(games, tokenizer, augment=None, seed=0, **config):
    return ConversationData(
        [games], SFTDataConfig(train_batch_size=4, **config), ChatTemplate(tokenizer), augment, seed
    )


def ids(conversations, epoch, ranks=1, first=0):
    return [
        batch.rows.batch["input_ids"].tolist()
        for batch in conversations.batches(epoch, ranks, first)
    ]


def test_seed_and_epoch_decide_the_batches(games, tokenizer):
    conversations = data(games, tokenizer, shout)
    assert ids(conversations, 0) == ids(data(games, tokenizer, shout), 0)
    assert ids(conversations, 0) != ids(conversations, 1)
    assert ids(conversations, 0) != ids(data(games, tokenizer, shout, seed=1), 0)


def test_augmentation_is_redrawn_every_epoch_and_not_accumulated(games, tokenizer):
    conversations = data(games, tokenizer, shout)
    first, second = conversations.examples(0), conversations.examples(1)
    assert [e.ids.tolist() for e in first] == [e.ids.tolist() for e in conversations.examples(0)]
    assert [e.ids.tolist() for e in first] != [e.ids.tolist() for e in second]
    assert list(map(len, first)) == list(map(len, second))


def test_a_resumed_epoch_goes_on_with_the_batches_it_has_not_seen(games, tokenizer):
    conversations = data(games, tokenizer, shout)
    assert conversations.batches_per_epoch == 3  # ceil(10 / 4)
    assert ids(conversations, 2, first=1) == ids(conversations, 2)[1:]
    assert ids(conversations, 2, first=3) == []


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=80),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_every_row_is_in_exactly_one_batch(lengths, batch_size, seed):
    batches = bucketed_order(lengths, batch_size, random.Random(seed))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert sum(len(batch) < batch_size for batch in batches) <= 1


def test_bucketing_saves_padding():
    rng = random.Random(0)
    lengths = [rng.randint(1, 200) for _ in range(64)]

    def padded(batches):
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)

    bucketed = padded(bucketed_order(lengths, 8, random.Random(0)))
    in_order = padded([list(range(at, at + 8)) for at in range(0, 64, 8)])
    # one bucket of 64: the sorted rows waste the least that batches of 8 can
    ordered = sorted(range(64), key=lambda row: lengths[row])
    assert bucketed == padded([ordered[at : at + 8] for at in range(0, 64, 8)]) < in_order


def example(ids, weight):
    return Example(np.asarray(ids, np.int64), np.asarray(weight, np.float32))


def test_a_batch_is_right_padded_and_ranks_get_empty_rows():
    batch, sums = to_batch([example([5, 6, 7], [0, 0.5, 1]), example([8, 9], [0, 1])], ranks=4)
    columns = batch.batch
    assert columns["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0], [0, 0, 0], [0, 0, 0]]
    assert columns["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert columns["response_mask"].tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert columns["loss_weight"].tolist() == [[0, 0.5, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert sums == BatchSums(weight=2.5, reply_tokens=2)  # 0.5 + 1 + 1


def test_a_conversation_that_is_too_long_is_refused_or_cut(games, tokenizer):
    # 10 words + <|user|> <|end|> <|assistant|> + 3 words and <|end|> = 17 tokens
    assert max(map(len, data(games, tokenizer, max_length=17).examples(0))) == 17
    with pytest.raises(UserError, match=r"conversation 9 has 17 tokens and data.max_length=16"):
        data(games, tokenizer, max_length=16)
    cut = data(games, tokenizer, max_length=16, truncation="right").examples(0)
    whole = data(games, tokenizer).examples(0)
    assert cut[9].ids.tolist() == whole[9].ids[:16].tolist()
    assert cut[8].ids.tolist() == whole[8].ids.tolist()
