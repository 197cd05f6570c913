"""A choice is a built-in name or an import path; anything else is refused with what there is."""

import math

import pytest

from verl.utils.errors import UserError
from verl.utils.importing import load_object, resolve_choice

BUILT_IN = {"root": math.sqrt, "late": "math:hypot"}


def test_a_built_in_name_is_its_object_loaded_only_when_chosen():
    assert resolve_choice("a.key", "root", BUILT_IN) is math.sqrt
    assert resolve_choice("a.key", "late", BUILT_IN) is math.hypot


def test_an_import_path_is_the_object_there():
    assert resolve_choice("a.key", "math:floor", BUILT_IN) is math.floor


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match=r"a\.key=rot is unknown; available: root, late, or an"):
        resolve_choice("a.key", "rot", BUILT_IN)


@pytest.mark.parametrize("path", ["no_such_package:thing", "math:no_such_name", ":x", "../up:x"])
def test_an_import_path_without_an_object_is_refused(path):
    with pytest.raises(UserError, match="cannot load"):
        load_object(path)


def test_code_that_fails_while_it_is_loaded_is_named(tmp_path, monkeypatch):
    (tmp_path / "breaks_at_once.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'breaks_at_once:x' .ZeroDivisionError: division by zero"):
        load_object("breaks_at_once:x")
