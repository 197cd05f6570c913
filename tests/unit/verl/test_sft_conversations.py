"""Conversations: reading files, and which tokens are learned from with which weight."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from verl.trainer.sft.conversations import load_conversations, tokenize
from verl.utils.errors import UserError
from verl.workers.chat_check import check_chat
from verl.workers.chat_template import ChatTemplate

from ...families import FAMILIES, family

SMALL_POLICY = Path(__file__).parents[3] / "examples" / "small_policy" / "model"
DIALOGUE = [
    {"role": "user", "content": "find the box"},
    {"role": "assistant", "content": "teleport to kitchen"},
    {"role": "user", "content": "kitchen : table"},
    {"role": "assistant", "content": "focus on table"},
]
LINE_BREAKS = (  # as most templates do: a line break after the end token
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(SMALL_POLICY)


def tokens_with_weights(tokenizer, example):
    return list(
        zip(tokenizer.convert_ids_to_tokens(example.ids), example.weight.tolist(), strict=True)
    )


def test_replies_and_their_end_tokens_weigh_1_and_the_rest_the_prompt_weight(tokenizer):
    example = tokenize(ChatTemplate(tokenizer), DIALOGUE, prompt_weight=0.5)
    assert tokens_with_weights(tokenizer, example) == [
        ("<|user|>", 0.0),  # nothing predicts the first token
        ("find", 0.5),
        ("the", 0.5),
        ("box", 0.5),
        ("<|end|>", 0.5),
        ("<|assistant|>", 0.5),
        ("teleport", 1.0),
        ("to", 1.0),
        ("kitchen", 1.0),
        ("<|end|>", 1.0),
        ("<|user|>", 0.5),
        ("kitchen", 0.5),
        (":", 0.5),
        ("table", 0.5),
        ("<|end|>", 0.5),
        ("<|assistant|>", 0.5),
        ("focus", 1.0),
        ("on", 1.0),
        ("table", 1.0),
        ("<|end|>", 1.0),
    ]


def test_by_default_only_replies_count(tokenizer):
    example = tokenize(ChatTemplate(tokenizer), DIALOGUE, prompt_weight=0.0)
    assert example.ids.dtype == np.int64 and example.weight.dtype == np.float32
    assert example.weight.sum() == 8  # two replies of three words and an end token


def test_what_follows_the_end_token_belongs_to_the_prompt(tokenizer):
    tokenizer.chat_template = LINE_BREAKS.replace("\n", "_")  # a sign that the tokenizer keeps
    example = tokenize(ChatTemplate(tokenizer), DIALOGUE, prompt_weight=0.0)
    pairs = tokens_with_weights(tokenizer, example)
    assert pairs[-1] == ("<|end|>", 1.0)
    assert [weight for token, weight in pairs if token == "_"] == [0.0, 0.0, 0.0]
    learned = [token for token, weight in pairs if weight == 1]
    assert learned == ["teleport", "to", "kitchen", "<|end|>", "focus", "on", "table", "<|end|>"]


def test_user_messages_after_the_last_reply_are_left_out(tokenizer):
    longer = [*DIALOGUE, {"role": "user", "content": "well done"}]
    whole = tokenize(ChatTemplate(tokenizer), longer, prompt_weight=1.0)
    assert (
        whole.ids.tolist()
        == tokenize(ChatTemplate(tokenizer), DIALOGUE, prompt_weight=1.0).ids.tolist()
    )


def test_the_tokens_are_those_of_a_rollout(tokenizer):
    chat = ChatTemplate(tokenizer)
    reply = np.asarray(tokenizer.encode("teleport to kitchen<|end|>", add_special_tokens=False))
    played = np.concatenate(
        [
            chat.opening(None, "find the box"),
            reply,
            chat.continuation(reply, "kitchen : table"),
            tokenizer.encode("focus on table<|end|>", add_special_tokens=False),
        ]
    )
    assert (
        tokenize(ChatTemplate(tokenizer), DIALOGUE, prompt_weight=0.0).ids.tolist()
        == played.tolist()
    )


def test_a_template_that_rewrites_history_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}{{ messages[-1]['content'] }}<|end|>"
    with pytest.raises(UserError, match="rewrites earlier"):
        check_chat(ChatTemplate(tokenizer), continues=True)


def test_jsonl_and_json_hold_the_same_rows(tmp_path):
    rows = [{"messages": DIALOGUE, "task": "a"}, {"messages": DIALOGUE[:2], "task": "b"}]
    lines, array = tmp_path / "a.jsonl", tmp_path / "b.json"
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    array.write_text(json.dumps(rows))
    expected = [DIALOGUE, DIALOGUE[:2]]
    assert load_conversations([str(lines)], "messages") == expected
    assert load_conversations([str(array)], "messages") == expected
    assert load_conversations([str(lines), str(array)], "messages") == expected * 2


def test_parquet_rows_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"dialogue": DIALOGUE}]), path)
    assert load_conversations([str(path)], "dialogue") == [DIALOGUE]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"dialogue": DIALOGUE}, "no list under 'messages'; set data.messages_key"),
        ([1], "no list under 'messages'"),
        ({"messages": [{"role": "user"}]}, "text under 'content'"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'role' out of system, user"),
        ({"messages": [{"role": "user", "content": None}]}, "text under 'content'"),
        ({"messages": DIALOGUE[:1]}, "no assistant message"),
        ({"messages": []}, "no assistant message"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(tmp_path, row, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": DIALOGUE}) + "\n" + json.dumps(row))
    with pytest.raises(UserError, match=reason) as error:
        load_conversations([str(path)], "messages")
    assert f"row 2 of {path}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", "{", "not valid jsonl"),
        ("a.json", "[1", "not valid json"),
        ("a.csv", "a,b", "unknown kind of file '.csv'"),
        ("a.jsonl", "", "no conversation in"),
    ],
)
def test_an_unreadable_file_is_refused(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=reason):
        load_conversations([str(path)], "messages")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing.jsonl' does not exist"):
        load_conversations([str(tmp_path / "nothing.jsonl")], "messages")


@pytest.mark.parametrize("name", FAMILIES)
def test_cloning_sees_the_tokens_of_a_rollout_by_every_family(name):
    chat = ChatTemplate(family(name))
    thoughtful = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "go <|im_end|>"},
        {"role": "assistant", "content": "<think>a</think>b"},
        {"role": "user", "content": "</s>"},
        {"role": "assistant", "content": "<think>c</think>d"},
    ]
    example = tokenize(chat, thoughtful, prompt_weight=0.0)
    replies = [chat.reply(message["content"]) for message in thoughtful[2::2]]
    opening = chat.opening("be brief", "go <|im_end|>")
    played = [opening, replies[0], chat.continuation(replies[0], "</s>"), replies[1]]
    assert example.ids.tolist() == np.concatenate(played).tolist()
    assert example.ids[example.weight == 1].tolist() == np.concatenate(replies).tolist()
    ends = [reply[-1] for reply in replies]
    assert ends == [chat.end_id] * 2  # nothing after it is learned
