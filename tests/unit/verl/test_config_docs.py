"""docs/configuration.md is generated, complete and current."""

from __future__ import annotations

from verl.config.compose import ppo_keys, sft_keys
from verl.config.docs import PAGE, page


def test_committed_page_is_current():
    assert PAGE.read_text() == page(), "run `python -m verl.config.docs`"


def test_page_has_every_key_with_a_meaning():
    whole, cloning = page().split("# Keys of `python -m verl.trainer.main_sft`")
    for keys, text in ((ppo_keys(), whole), (sft_keys(), cloning)):
        assert_all_keys(keys, text.splitlines())


def assert_all_keys(keys, lines):
    parents = {key.rpartition(".")[0] for key in keys.walk()}
    parents |= {parent.removesuffix(".<name>") for parent in parents}
    for key in keys.walk():
        if key not in parents:
            row = next((line for line in lines if line.startswith(f"| `{key}` |")), None)
            assert row is not None, key
            assert row.split("|")[-2].strip(), f"{key} has no comment in its dataclass"
