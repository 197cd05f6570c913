"""Prompts are exact: what was sampled stays, and observations get the template's own tokens."""

import string

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agent_system.config import ContextConfig
from agent_system.environments.prompting import TextPrompts
from agent_system.memory import LastTurns
from agent_system.multi_turn_rollout.conversation import (
    TrajectoryContext,
    TurnContext,
    make_context,
    segments,
)
from agent_system.multi_turn_rollout.episode import EpisodePlayer
from agent_system.types import Observation, ParsedAction, Turn
from verl.workers.chat_template import ChatTemplate

# ChatML with a line break after <|im_end|> and a default system prompt, as in Qwen2.5.
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# BOS once, contents stripped, nothing after the end-of-turn token, as in Llama 3.
LLAMA = (
    "<s>{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n"
    "{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
# Only an end token after a reply: a small word-level policy.
MINIMAL = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}</s>"
    "{% else %}<obs>{{ m.content }}<act>{% endif %}{% endfor %}"
)
SPECIAL = [
    "<s>",
    "</s>",
    "<obs>",
    "<act>",
    "<|im_start|>",
    "<|im_end|>",
    "<|head|>",
    "<|/head|>",
    "<|eot|>",
]


def char_tokenizer(template):
    """Lossless: one token a character, plus the special tokens."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL,
    )
    tokenizer.chat_template = template
    return tokenizer


class Prompts:
    def system(self, task_text):
        return f"play: {task_text}"

    def first(self, task_text, observation):
        return f"first {observation.text}"

    def next(self, observation):
        return f"then {observation.text}"

    def turn(self, task_text, history, observation, step):
        past = " ".join(f"[{turn.index}]" for turn in history)
        return f"step {step} past {past} now {observation.text}"

    def parse(self, response, observation):
        return ParsedAction(response, True)


class NoSystemPrompts(Prompts):
    def system(self, task_text):
        return None


def played(index, prompt_ids, response_ids):
    response_ids = np.asarray(response_ids)
    return Turn(
        index,
        prompt_ids,
        response_ids,
        np.zeros(len(response_ids)),
        "",
        ParsedAction("", True),
        "",
        0.0,
    )


def play(tokenizer, prompts, replies, end):
    """Play `replies` (text) in a trajectory context; returns the prompt after them, as a list."""
    context = TrajectoryContext(ChatTemplate(tokenizer), prompts, max_prompt_length=10_000)
    turns = []
    for index, reply in enumerate(replies):
        prompt = context.prompt("find it", turns, Observation(f"room {index}"))
        response = tokenizer.encode(reply + end, add_special_tokens=False)
        turns.append(played(index, prompt.ids, response))
    return context.prompt("find it", turns, Observation(f"room {len(replies)}")).ids.tolist()


def whole(tokenizer, prompts, replies):
    """The same conversation, templated at once."""
    system = prompts.system("find it")
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompts.first("find it", Observation("room 0"))})
    for index, reply in enumerate(replies):
        messages.append({"role": "assistant", "content": reply})
        messages.append({"role": "user", "content": prompts.next(Observation(f"room {index + 1}"))})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


ENDS = [(CHATML, "<|im_end|>"), (LLAMA, "<|eot|>"), (MINIMAL, "</s>")]


@pytest.mark.parametrize(("template", "end"), ENDS)
@pytest.mark.parametrize("prompts", [Prompts(), NoSystemPrompts()])
def test_incremental_ids_equal_the_whole_template(template, end, prompts):
    tokenizer = char_tokenizer(template)
    replies = ["look around", "go to hall", "0reply0"]
    assert play(tokenizer, prompts, replies, end) == whole(tokenizer, prompts, replies)


@pytest.mark.parametrize(("template", "end"), ENDS)
def test_a_response_that_was_cut_is_closed_by_the_observation(template, end):
    tokenizer = char_tokenizer(template)
    replies = ["look", "</action>"]
    assert play(tokenizer, Prompts(), replies, end="") == whole(tokenizer, Prompts(), replies)
    chat = ChatTemplate(tokenizer)
    end_id = tokenizer.convert_tokens_to_ids(end)
    reply = np.asarray(tokenizer.encode("look", add_special_tokens=False))
    assert chat.continuation(reply, "obs")[0] == end_id
    assert end_id not in chat.continuation(np.append(reply, end_id), "obs")[:1]


def test_a_foreign_end_token_is_kept_and_the_turn_is_still_closed():
    tokenizer = char_tokenizer(CHATML)
    response = np.asarray(tokenizer.encode("look</s>", add_special_tokens=False))
    continuation = ChatTemplate(tokenizer).continuation(response, "obs")
    assert tokenizer.decode(continuation) == (
        "<|im_end|>\n<|im_start|>user\nobs<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama_bos_appears_once():
    tokenizer = char_tokenizer(LLAMA)
    ids = play(tokenizer, Prompts(), ["a", "b"], "<|eot|>")
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_sampled_tokens_are_never_tokenised_again():
    # "lo" + "ok" as two unusual ids survive although the tokenizer would never write them so.
    tokenizer = char_tokenizer(CHATML)
    context = TrajectoryContext(ChatTemplate(tokenizer), Prompts(), 10_000)
    first = context.prompt("t", [], Observation("o")).ids
    sampled = np.asarray([0, 0, 7, 3], dtype=np.int32)
    second = context.prompt("t", [played(0, first, sampled)], Observation("o")).ids
    assert second[: len(first) + 4].tolist() == [*first.tolist(), 0, 0, 7, 3]


def test_decode_leaves_the_end_token_out():
    tokenizer = char_tokenizer(CHATML)
    ids = np.asarray(tokenizer.encode("go<|im_end|>", add_special_tokens=False))
    assert ChatTemplate(tokenizer).decode(ids) == "go"


def test_tokenizer_without_template_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"no chat template.*instruct model"):
        ChatTemplate(char_tokenizer(None))


def test_template_that_drops_replies_is_refused():
    tokenizer = char_tokenizer(
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"env\.context\.kind=turn"):
        ChatTemplate(tokenizer).continuation(np.asarray([1]), "obs")


def test_template_that_refuses_a_role_is_a_value_error():
    tokenizer = char_tokenizer("{{ raise_exception('no ' + messages[0].role) }}")
    with pytest.raises(ValueError, match=r"user \(no user\); put another"):
        ChatTemplate(tokenizer).opening("be brief", "go")


def test_turn_context_drops_the_oldest_history_first():
    tokenizer = char_tokenizer(MINIMAL)
    chat = ChatTemplate(tokenizer)
    turns = [played(i, np.zeros(1, int), [1]) for i in range(5)]
    observation = Observation("x")

    def prompt(max_length):
        return TurnContext(chat, NoSystemPrompts(), max_length, LastTurns(3)).prompt(
            "t", turns, observation
        )

    # "<obs>step 5 past [2] [3] [4] now x<act>": 2 special tokens + 12 + 11 + 6 characters
    full = prompt(31)
    assert tokenizer.decode(full.ids) == "<obs>step 5 past [2] [3] [4] now x<act>"
    assert (len(full.ids), full.dropped_turns) == (31, 0)
    shorter = prompt(30)  # each dropped turn saves "[2] " = 4 tokens
    assert tokenizer.decode(shorter.ids) == "<obs>step 5 past [3] [4] now x<act>"
    assert (len(shorter.ids), shorter.dropped_turns) == (27, 1)
    assert prompt(20).dropped_turns == 3  # nothing left: 2 + 12 + 0 + 6
    assert prompt(19) is None


LETTERS = string.ascii_letters


def play_letters(max_length, count):
    """`count` prompts where turn i answers the letter i; an opening is 9 tokens, a turn adds 10.

    "<obs>first a<act>" = 2 special tokens + 7; 2 sampled + "<obs>then b<act>" (8) = 10.
    """
    chat = ChatTemplate(char_tokenizer(MINIMAL))
    context = TrajectoryContext(chat, NoSystemPrompts(), max_length)
    turns, prompts = [], []
    for index in range(count):
        prompts.append(context.prompt("t", turns, Observation(LETTERS[index])))
        turn = played(index, prompts[-1].ids, [5, 1])  # 1 is the end token
        turn.observation = LETTERS[index + 1]
        turn.dropped_turns = prompts[-1].dropped_turns
        turns.append(turn)
    return prompts, turns


def test_a_trajectory_that_is_too_long_is_opened_anew_without_its_oldest_turns():
    prompts, turns = play_letters(39, count=9)
    # Turn 4 would see 49 > 39. Beside an opening there is room for 39 - 9 = 30; half of it, 15,
    # holds one turn (10): turn 3 stays. Turn 7 would see 49 again: turn 6 stays.
    assert [len(prompt.ids) for prompt in prompts] == [9, 19, 29, 39, 19, 29, 39, 19, 29]
    assert [prompt.dropped_turns for prompt in prompts] == [0, 0, 0, 0, 3, 0, 0, 3, 0]
    shown = char_tokenizer(MINIMAL).decode(prompts[4].ids)
    assert shown == "<obs>first d<act><|im_end|></s><obs>then e<act>"  # ids 5 and 1 as sampled
    assert [[turn.index for turn in row] for row in segments(turns)] == [
        [0, 1, 2, 3],
        [4, 5, 6],
        [7, 8],
    ]


def test_a_second_cut_keeps_only_turns_of_the_segment_it_cuts():
    prompts, turns = play_letters(69, count=16)
    # Room for 60, half of it for three turns. Turn 7 is shown turns 4 to 6, turns 11 and 15 are
    # shown three as well: 8 to 10, 12 to 14.
    lengths = [9, 19, 29, 39, 49, 59, 69, 39, 49, 59, 69, 39, 49, 59, 69, 39]
    assert [len(prompt.ids) for prompt in prompts] == lengths
    assert [i for i in range(16) if prompts[i].dropped_turns] == [7, 11, 15]
    assert [prompts[i].dropped_turns for i in (7, 11, 15)] == [4, 4, 4]
    assert [len(row) for row in segments(turns)] == [7, 4, 4, 1]
    second = char_tokenizer(MINIMAL).decode(prompts[11].ids)
    assert second == "<obs>first i<act>" + "".join(
        f"<|im_end|></s><obs>then {letter}<act>" for letter in "jkl"
    )


class ListedActions(NoSystemPrompts):
    def first(self, task_text, observation):
        return " ".join(["first", observation.text, *(observation.admissible_actions or ())])

    def next(self, observation):
        return self.first("", observation)


def test_an_opening_lists_the_admissible_actions_of_the_last_observation_only():
    tokenizer = char_tokenizer(MINIMAL)
    context = TrajectoryContext(ChatTemplate(tokenizer), ListedActions(), 28)
    first = context.prompt("t", [], Observation("a"))
    turns = [played(0, first.ids, [5, 1])]
    # 9 + 2 + "<obs>first b eat sleep<act>" (19) = 30 > 28: nothing is kept
    second = context.prompt("t", turns, Observation("b", ("eat", "sleep")))
    assert tokenizer.decode(second.ids) == "<obs>first b eat sleep<act>"
    assert second.dropped_turns == 1
    turns[0].observation = "b"
    turns.append(played(1, second.ids, [5, 1]))
    turns[1].dropped_turns = 1
    # 19 + 2 + 9 = 30 again. Turn 1 would fit if its actions were no longer listed; but a cut drops
    # at least one turn, so turn 1 goes.
    third = context.prompt("t", turns, Observation("c"))
    assert tokenizer.decode(third.ids) == "<obs>first c<act>"
    assert third.dropped_turns == 1


def test_the_last_turn_is_dropped_only_if_it_cannot_stay():
    # Room for 28 - 9 = 19: half of it holds no turn, all of it holds one.
    prompts, _ = play_letters(28, count=5)
    assert [len(prompt.ids) for prompt in prompts] == [9, 19, 19, 19, 19]
    assert [prompt.dropped_turns for prompt in prompts] == [0, 0, 1, 1, 1]
    prompts, _ = play_letters(18, count=3)  # room for 9 < 10: every prompt is an opening
    assert [len(prompt.ids) for prompt in prompts] == [9, 9, 9]
    assert [prompt.dropped_turns for prompt in prompts] == [0, 1, 1]


def test_a_trajectory_ends_when_task_and_observation_alone_do_not_fit():
    context = TrajectoryContext(ChatTemplate(char_tokenizer(MINIMAL)), NoSystemPrompts(), 9)
    first = context.prompt("t", [], Observation("a"))
    assert len(first.ids) == 9
    assert context.prompt("t", [], Observation("ab")) is None
    assert context.prompt("t", [played(0, first.ids, [5, 1])], Observation("ab")) is None


def test_no_turns_have_no_segments():
    assert segments([]) == []


def test_what_the_policy_sampled_of_the_template_is_not_repeated():
    tokenizer = char_tokenizer(CHATML)
    chat = ChatTemplate(tokenizer)
    whole_answer = tokenizer.decode(chat.continuation(np.asarray([7]), "obs"))
    # An end token early in the response is not the one that closes it.
    for sampled in ("<|im_end|>", "<|im_end|>\n", "<|im_end|>\n<|im_start|>"):
        response = tokenizer.encode(f"a<|im_end|>b{sampled}", add_special_tokens=False)
        rest = tokenizer.decode(chat.continuation(np.asarray(response), "obs"))
        assert sampled + rest == whole_answer
    assert len(chat.continuation(np.asarray([], int), "obs")) == len(
        tokenizer.encode(whole_answer, add_special_tokens=False)
    )


def think_aloud(max_length, count, keeps_reasoning):
    """`count` prompts, each reply "<think>a</think>b" and its end token, each answer a letter."""
    chat = ChatTemplate(char_tokenizer(MINIMAL))
    context = TrajectoryContext(chat, NoSystemPrompts(), max_length, keeps_reasoning)
    turns, prompts = [], []
    for index in range(count):
        prompts.append(context.prompt("t", turns, Observation(LETTERS[index])))
        response = chat.tokenizer.encode("<think>a</think>b</s>", add_special_tokens=False)
        turn = played(index, prompts[-1].ids, response)
        turn.observation = LETTERS[index + 1]
        turn.dropped_turns, turn.opens_row = prompts[-1].dropped_turns, prompts[-1].opens_row
        turns.append(turn)
    return [chat.tokenizer.decode(prompt.ids) for prompt in prompts], turns


def test_earlier_reasoning_is_kept_or_dropped_by_choice():
    kept, turns = think_aloud(1000, 3, keeps_reasoning=True)
    reply = "<think>a</think>b</s>"
    assert kept[2] == f"<obs>first a<act>{reply}<obs>then b<act>{reply}<obs>then c<act>"
    assert [len(row) for row in segments(turns)] == [3]
    dropped, turns = think_aloud(1000, 3, keeps_reasoning=False)
    assert dropped[2] == "<obs>first a<act>b</s><obs>then b<act>b</s><obs>then c<act>"
    assert [len(row) for row in segments(turns)] == [1, 1, 1]


def test_without_reasoning_a_conversation_is_shortened_at_its_turns():
    # An opening is 9 tokens and a turn adds 2 + 8: 39 hold three turns, the fifth prompt does not
    # fit, and half of the room beside the opening holds one.
    prompts, turns = think_aloud(39, 5, keeps_reasoning=False)
    assert [turn.dropped_turns for turn in turns] == [0, 0, 0, 0, 3]
    assert prompts[4] == "<obs>first d<act>b</s><obs>then e<act>"
    assert [len(row) for row in segments(turns)] == [1] * 5


def test_a_choice_about_reasoning_without_effect_is_refused():
    chat = ChatTemplate(char_tokenizer(MINIMAL))
    with pytest.raises(ValueError, match="reasoning=drop has no effect with kind=turn"):
        make_context(ContextConfig(kind="turn", reasoning="drop"), chat, Prompts(), 100)
    assert not make_context(ContextConfig(reasoning="drop"), chat, Prompts(), 100).keeps_reasoning


@pytest.mark.parametrize(
    ("command", "played_as"),
    [("open door", "open door"), ("open <|im_end|>", ""), ("say <|IM_START|>user", "")],
)
def test_a_command_with_a_marker_of_the_template_is_none(command, played_as):
    chat = ChatTemplate(char_tokenizer(CHATML))
    player = EpisodePlayer(chat, None, TextPrompts("rules", False), None, max_steps=1)
    reply = f"<think>a</think><action>{command}</action>"
    for ids in (chat.encode(reply), chat.tokenizer.encode(reply, add_special_tokens=False)):
        action = player._parse(chat.decode(np.asarray(ids)), Observation("-", ("open door",)))
        assert action == ParsedAction(played_as, played_as != "", played_as != "")
