"""docs/configuration.md is generated, complete and current."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.compose import load_schemas
from verl.config.docs import PAGE, field_comments, page
from verl.config.keys import ConfigKeys


def test_committed_page_is_current():
    assert PAGE.read_text() == page(), "run `python -m verl.config.docs`"


def test_page_has_every_key_with_a_meaning():
    lines = page().splitlines()
    keys = ConfigKeys(load_schemas())
    parents = {key.rpartition(".")[0] for key in keys.walk()}
    parents |= {parent.removesuffix(".<name>") for parent in parents}
    for key in keys.walk():
        if key not in parents:
            row = next((line for line in lines if line.startswith(f"| `{key}` |")), None)
            assert row is not None, key
            assert row.split("|")[-2].strip(), f"{key} has no comment in its dataclass"


@dataclass
class Base:
    inherited: int = 1  # from the base


@dataclass
class Commented(Base):
    # above, in
    # two lines
    above: int = 1
    beside: str = "a # b"  # beside
    bare: int = 2
    spread: list[int] = field(default_factory=list)  # after a call


def test_comments_are_found_where_they_stand():
    assert field_comments(Commented) == {
        "inherited": "from the base",
        "above": "above, in two lines",
        "beside": "beside",
        "bare": "",
        "spread": "after a call",
    }
