"""The renaming layer: one-to-one, seeded, and the same in texts and commands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_system.environments.env_package.sciworld.rename import (
    ANIMALS,
    BOX_COLOURS,
    ROOMS,
    Renaming,
)

SEEDS = st.integers(1, 2**31)
TEXT = "move the dove egg to the red box in the living room, past the giant tortoise outside"


@given(SEEDS, st.lists(st.sampled_from([*ANIMALS, *BOX_COLOURS, *ROOMS, "axe", "egg", "outside"])))
def test_a_command_means_what_the_observation_showed(seed, words):
    renaming = Renaming.draw(seed)
    text = " , ".join(words)
    assert renaming.invert(renaming.apply(text)) == text
    assert renaming.apply(renaming.invert(text)) == text


@given(SEEDS)
def test_names_stay_among_their_kind(seed):
    renaming = Renaming.draw(seed)
    for kind in (ANIMALS, BOX_COLOURS, ROOMS):
        assert sorted(renaming.apply(name) for name in kind) == sorted(kind)


def test_equal_seeds_give_equal_names_and_others_do_not():
    assert Renaming.draw(7).apply(TEXT) == Renaming.draw(7).apply(TEXT)
    assert len({Renaming.draw(seed).apply(TEXT) for seed in range(1, 30)}) > 20


def test_only_whole_names_change():
    renaming = Renaming({"ant": "bee", "bee": "ant", "red box": "blue box", "blue box": "red box"})
    assert renaming.apply("an ant on a plant, a red apple") == "an bee on a plant, a red apple"
    assert renaming.apply("the red box and the blue box") == "the blue box and the red box"
    assert renaming.invert("Focus on BEE") == "Focus on ant"


def test_about_four_in_five_animals_take_part():
    # A moved animal keeps its name when the shuffle returns it: 0.8 * (1 - 1/17.6) = 0.75
    seeds = range(1, 401)
    changed = sum(Renaming.draw(s).apply(name) != name for s in seeds for name in ANIMALS)
    assert 0.72 < changed / (len(seeds) * len(ANIMALS)) < 0.79


def test_no_renaming_changes_nothing():
    assert Renaming.none().apply(TEXT) == TEXT
    assert Renaming.none().invert(TEXT) == TEXT


def test_a_map_that_is_no_permutation_is_refused():
    with pytest.raises(ValueError, match="permutation"):
        Renaming({"ant": "bee"})
