"""The drawn training step is what its source draws, and names files that are there."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "docs" / "images" / "data_flow.py"


@pytest.fixture(scope="module")
def drawing():
    return runpy.run_path(str(SOURCE))


def test_the_picture_is_up_to_date(drawing):
    picture = SOURCE.with_suffix(".svg").read_text(encoding="utf-8")
    assert picture == drawing["draw"](), f"run python {SOURCE.relative_to(ROOT)}"
    ElementTree.fromstring(picture)  # well-formed


def test_every_box_names_files_that_are_there(drawing):
    files = [file for box in drawing["BOXES"] for file in box.files]
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []
