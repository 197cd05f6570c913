"""One JSON value a line, whatever characters its strings hold."""

import json

import pytest

from verl.trainer.sft.conversations import load_conversations
from verl.utils.json_lines import JsonLinesFile, drop_records_after, lines_of, read_records, to_line

# Every character that str.splitlines breaks at, but for the line feed; and half a surrogate pair.
BREAKS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj\n"
HALF = "\ud800"


@pytest.fixture(params=[False, True], ids=["as it is", "escaped"])
def demonstrations(tmp_path, request):
    messages = [{"role": "user", "content": BREAKS}, {"role": "assistant", "content": "go"}]
    lines = [json.dumps({"messages": messages}, ensure_ascii=request.param)] * 2
    (tmp_path / "games.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return tmp_path / "games.jsonl", messages


def test_conversations_are_one_a_line(demonstrations):
    path, messages = demonstrations
    assert load_conversations([str(path)], "messages") == [messages] * 2


def test_records_come_back_and_are_dropped_by_step(tmp_path):
    file = JsonLinesFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.append({"step": step, "text": BREAKS + HALF})
    file.close()
    drop_records_after(tmp_path / "metrics.jsonl", 2)
    kept = read_records(tmp_path / "metrics.jsonl")
    assert kept == [{"step": step, "text": BREAKS + HALF} for step in (1, 2)]


def test_a_line_ends_at_a_line_feed_alone():
    text = to_line({"step": 1, "text": BREAKS})
    assert text.count("\n") == 1
    assert lines_of(text * 2 + " \n") == [text[:-1]] * 2
