"""A manifest finds every file that is not as it was written."""

import hashlib
import json

import pytest

from verl.utils.manifest import MANIFEST, find_damage, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "actor").mkdir()
    (tmp_path / "actor" / "weights").write_bytes(b"0123456789")
    (tmp_path / "driver.pt").write_bytes(b"abc")
    write_manifest(tmp_path, step=3)
    return tmp_path


def change(folder, **values):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | values))


def test_it_has_the_size_and_the_hash_of_every_file(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["step"] == 3
    assert manifest["files"] == {
        "actor/weights": {"size": 10, "sha256": hashlib.sha256(b"0123456789").hexdigest()},
        "driver.pt": {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()},
    }


def test_a_whole_folder_is_whole_with_what_somebody_put_beside(folder):
    (folder / "notes.txt").write_text("the good one")
    assert find_damage(folder, step=3) is None
    assert find_damage(folder) is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"0123456780", "actor/weights has another content"),
        (b"012345678", "actor/weights has 9 bytes instead of 10"),
        (None, "actor/weights is missing"),
    ],
)
def test_a_file_that_differs_is_named_with_what_is_wrong(folder, content, told):
    weights = folder / "actor" / "weights"
    weights.unlink()
    if content is not None:
        weights.write_bytes(content)
    assert told in (find_damage(folder) or "")


def test_another_step_is_told(folder):
    assert find_damage(folder, step=4) == f"{MANIFEST} is of step 3, not step 4"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"7", b'{"schema": 1}', b"{" * 100_000]
)
def test_a_manifest_that_is_none_is_told(folder, content):
    (folder / MANIFEST).write_bytes(content)
    assert find_damage(folder, step=3) == f"{MANIFEST} cannot be read"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"schema": 2}, "of a later version"),
        ({"schema": "new"}, "cannot be read"),
        ({"files": ["driver.pt"]}, "cannot be read"),
        ({"files": {"driver.pt": {"size": float("inf"), "sha256": ""}}}, "cannot be read"),
        ({"files": {"driver.pt": {"size": "much", "sha256": ""}}}, "cannot be read"),
        ({"files": {"../secret": {"size": 1, "sha256": ""}}}, "outside of the folder"),
        ({"files": {"/dev/zero": {"size": 0, "sha256": ""}}}, "outside of the folder"),
        ({"files": {"actor": {"size": 0, "sha256": ""}}}, "actor is missing"),
    ],
)
def test_what_a_stranger_wrote_is_told(folder, values, told):
    change(folder, **values)
    assert told in (find_damage(folder) or "")


def test_without_a_manifest_nothing_is_known(tmp_path):
    with pytest.raises(FileNotFoundError):
        find_damage(tmp_path)
