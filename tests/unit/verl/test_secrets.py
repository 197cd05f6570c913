"""Which names stand for secrets, and who does not get them."""

import pytest

from verl.utils.secrets import looks_secret, masked, without_secrets


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("WANDB_API_KEY", True),
        ("HF_TOKEN", True),
        ("RAY_AUTH_TOKEN", True),
        ("password", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("ALFWORLD_DATA", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("MONKEY", False),
        ("history_tokens", False),
    ],
)
def test_names_of_secrets(name, expected):
    assert looks_secret(name) == expected


def test_secrets_are_left_out_but_for_those_that_are_asked_for():
    variables = {"PATH": "/bin", "HF_TOKEN": "a", "GAME_API_KEY": "b"}
    assert without_secrets(variables, []) == {"PATH": "/bin"}
    assert without_secrets(variables, ["GAME_API_KEY"]) == {"PATH": "/bin", "GAME_API_KEY": "b"}


def test_masking_reaches_lists_and_leaves_the_rest():
    value = {"a": [{"token": "x"}, 3], "api_key": ["y"], "token": None, "seed": 1}
    assert masked(value) == {
        "a": [{"token": "***"}, 3], "api_key": ["***"], "token": None, "seed": 1,
    }  # fmt: skip
