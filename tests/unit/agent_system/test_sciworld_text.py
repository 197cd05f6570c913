"""Shortened observations: what is kept, what goes, and that order does not matter."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_system.environments.env_package.sciworld.text import INVALID, compact

KITCHEN_ITEMS = [
    "the agent",
    "a substance called air",
    "a chair. On the chair is: nothing.",
    "a counter. On the counter is: a bowl (containing a red apple, a banana), a drawer.",
    "a cupboard. The cupboard door is closed. ",
    "a glass jar (containing a substance called sodium chloride)",
    "a oven, which is turned off. The oven door is closed. ",
    "a red box (containing nothing)",
    "a substance called soap",
    "a thermometer, currently reading a temperature of 10 degrees celsius",
    "an orange",
    "a chair. On the chair is: nothing.",
]
DOORS = ["A door to the bathroom (that is open)", "A door to the hallway (that is open)"]


def room(items, doors=DOORS, header="This room is called the kitchen. In it, you see: "):
    listed = "".join(f"\t{item}\n" for item in items)
    return f"{header}\n{listed}You also see:\n" + "".join(f"\t{door}\n" for door in doors)


def test_a_room_keeps_names_only_sorted():
    assert compact(room(KITCHEN_ITEMS)) == (
        "kitchen : chair , chair , counter , cupboard , glass jar , orange , oven , red box , "
        "soap , thermometer"
    )


@given(st.integers(0, 10_000))
def test_the_listing_order_does_not_show(seed):
    items, doors = list(KITCHEN_ITEMS), list(DOORS)
    random.Random(seed).shuffle(items)
    random.Random(seed).shuffle(doors)
    assert compact(room(items, doors)) == compact(room(KITCHEN_ITEMS))


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            room(
                ["the agent", "an axe", "the ground"],
                header="This outside location is called the outside. Here you see: ",
            ),
            "outside : axe , ground",
        ),
        (
            room(["the agent"], header="This room is called the living room. In it, you see: "),
            "living room :",
        ),
        (
            "In your inventory, you see:\n\ta glass cup (containing nothing)\n\tan orange",
            "inventory : glass cup , orange",
        ),
        ("No known action matches that input.", INVALID),
        ("Unknown action.  Type 'help' for a list of actions, and more. ", INVALID),
        ("You move the dove egg to the red box.\n", "You move the dove egg to the red box."),
        ("", ""),
    ],
)
def test_other_texts(text, short):
    assert compact(text) == short


def test_a_numbered_menu_stays_as_it_is():
    menu = "Ambiguous request: Please enter the number for the action:\n0:\tpick up cup\n1:\tgo"
    assert compact(menu) == menu


@given(st.text())
def test_any_text_is_accepted(text):
    assert isinstance(compact(text), str)
