"""The small policy of the quickstart: its renaming, its tokenizer and the model that is shipped."""

import importlib.util
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from agent_system.environments.env_package.sciworld.rename import ANIMALS, BOX_COLOURS, ROOMS
from verl.workers.model_loading import resolve_model_path

FOLDER = Path(__file__).parents[3] / "examples" / "small_policy"
MAX_BYTES = 5_000_000
GAME = [
    {
        "role": "user",
        "content": "Your task is to find a(n) animal. First, focus on the thing. "
        "Then, move it to the red box in the living room.\nart studio : table , wood cup",
    },
    {"role": "assistant", "content": "teleport to outside"},
    {"role": "user", "content": "outside : axe , blue jay egg , dove egg , fountain"},
    {"role": "assistant", "content": "focus on blue jay egg"},
    {"role": "user", "content": "You focus on the blue jay egg."},
    {"role": "assistant", "content": "teleport to living room"},
    {"role": "user", "content": "living room : couch , red box"},
    {"role": "assistant", "content": "move blue jay egg to red box"},
]


def example_module(name):
    """A script of the examples, which are no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"small_policy_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER / "model")


def words(text):
    return re.findall(r"[\w'-]+|[^\s\w]", text)


# --- renaming -----------------------------------------------------------------------------------


def names_in(messages):
    """The box, room and animal of the game above, read where the task and the goal name them."""
    task = re.search(r"to the (\w+ box) in the ([\w ]+)\.", messages[0]["content"])
    animal = messages[3]["content"].removeprefix("focus on ").removesuffix(" egg")
    return task[1], task[2], animal


@pytest.mark.parametrize("seed", range(20))
def test_a_name_is_renamed_alike_in_all_messages(seed):
    renamed = example_module("augment").rename(GAME, random.Random(seed))
    box, room, animal = names_in(renamed)
    contents = [message["content"] for message in renamed]
    assert [message["role"] for message in renamed] == [message["role"] for message in GAME]
    assert f"{animal} egg" in contents[2]
    assert contents[5] == f"teleport to {room}"
    assert contents[6] == f"{room} : couch , {box}"
    assert contents[7] == f"move {animal} egg to {box}"
    assert box in BOX_COLOURS and room in ROOMS and animal in ANIMALS


def test_renaming_is_one_to_one_and_depends_on_the_seed():
    rename = example_module("augment").rename
    listing = [{"role": "user", "content": " , ".join([*ROOMS, *BOX_COLOURS, *ANIMALS])}]
    results = [rename(listing, random.Random(seed))[0]["content"] for seed in range(3)]
    for result in results:
        assert sorted(result.split(" , ")) == sorted([*ROOMS, *BOX_COLOURS, *ANIMALS])
    assert len(set(results)) == 3
    assert rename(listing, random.Random(0))[0]["content"] == results[0]


# --- tokenizer ----------------------------------------------------------------------------------


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_every_printable_text_survives_up_to_whitespace(text):
    tokenizer = example_module("tokenizer").build_tokenizer(["focus on the blue jay egg"])
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert back.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "command",
    [
        "move blue jay egg to living room",
        "focus on self-watering flower pot 5",
        "focus on Frankenstein",  # in no demonstration: spelled out, and one word again
        "0",
        "use thermometer on can't-be-known",
    ],
)
def test_a_command_comes_back_as_it_was(tokenizer, command):
    assert tokenizer.decode(tokenizer.encode(command, add_special_tokens=False)) == command


def test_words_of_the_game_and_new_names_are_single_tokens(tokenizer):
    for text in [message["content"] for message in GAME] + [*ANIMALS, *ROOMS, *BOX_COLOURS]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.convert_ids_to_tokens(ids) == words(text)


def test_the_chat_template_marks_who_speaks(tokenizer):
    rendered = tokenizer.apply_chat_template(GAME[:2], tokenize=False, add_generation_prompt=True)
    assert rendered == (
        f"<|user|>{GAME[0]['content']}<|end|><|assistant|>teleport to outside<|end|><|assistant|>"
    )
    assert tokenizer.eos_token == "<|end|>" and tokenizer.pad_token == "<pad>"


# --- the scripted player ------------------------------------------------------------------------


def test_the_goal_is_read_off_the_task():
    goal = example_module("demonstrations").GOAL.search(GAME[0]["content"])
    assert goal.groupdict() == {"kind": "animal", "box": "red box", "room": "living room"}


def test_items_of_a_room():
    items = example_module("demonstrations").items
    assert items("outside : axe , blue jay egg , wood") == ["axe", "blue jay egg", "wood"]


# --- the shipped model --------------------------------------------------------------------------


def test_the_shipped_model_is_small_and_loads():
    folder = Path(resolve_model_path("small"))
    assert folder == FOLDER / "model"
    assert sum(path.stat().st_size for path in folder.iterdir()) < MAX_BYTES
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 500_000 < model.num_parameters() < 1_500_000
    assert model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == model.config.vocab_size


def test_the_shipped_model_starts_an_animal_hunt_outside(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "model")
    prompt = tokenizer.apply_chat_template(
        GAME[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, do_sample=False, max_new_tokens=8)
    reply = output[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(reply, skip_special_tokens=True) == "teleport to outside"
