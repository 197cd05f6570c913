"""Files and folders that are complete or absent, whenever the process dies; and checkpoints.

A temporary sibling is written, flushed to disk and moved into place by one rename.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

STEP = r"(0|[1-9][0-9]{0,17})"
CHECKPOINT_NAME = re.compile(f"global_step_{STEP}")
LATEST_FILE = "latest_checkpointed_iteration.txt"
POINTER_BYTES = 100  # read of the pointer: more than any step takes
TEMPORARY_PREFIX = ".unfinished-"


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Replace the file; a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` of the text in UTF-8."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | Path, value: Any) -> None:
    """Raises TypeError for what JSON cannot hold; the old file then stays."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Fill the folder that is yielded; without an exception it becomes `path`, else it is removed.

    An existing folder at `path` is replaced only once the new one is complete on disk.
    """
    path = Path(path)
    temporary = _temporary_sibling(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync_tree(temporary)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    replaced = _set_aside(path) if path.exists() else None
    os.rename(temporary, path)
    _sync(path.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


def checkpoints(folder: str | Path) -> dict[int, Path]:
    """Step -> `global_step_<step>` of every finished checkpoint in `folder`, oldest first."""
    if not Path(folder).is_dir():
        return {}
    matches = ((CHECKPOINT_NAME.fullmatch(child.name), child) for child in Path(folder).iterdir())
    found = {int(match[1]): child for match, child in matches if match and child.is_dir()}
    return dict(sorted(found.items()))


def write_latest(folder: str | Path, step: int) -> None:
    """Point to `global_step_<step>` as the checkpoint to resume from."""
    atomic_write_text(Path(folder) / LATEST_FILE, str(step))


def read_latest(folder: str | Path) -> int | None:
    """The step that the pointer names; None when it is missing or holds no number."""
    pointer = Path(folder) / LATEST_FILE
    if not pointer.is_file():
        return None
    with pointer.open("rb") as file:
        text = file.read(POINTER_BYTES).decode("utf-8", errors="replace").strip()
    return int(text) if re.fullmatch(STEP, text) else None


def latest_first(folder: str | Path) -> list[Path]:
    """The checkpoints in the order of resuming: the pointer's, then from the newest on."""
    found = checkpoints(folder)
    newest_first = sorted(found, reverse=True)
    step = read_latest(folder)
    if found and step not in found:
        logger.warning(
            "%s names no checkpoint in %s: the newest is step %d", LATEST_FILE, folder, max(found)
        )
    return [found[s] for s in sorted(newest_first, key=lambda s: s != step)]


def prune(folder: str | Path, keep: int | None) -> None:
    """Delete all checkpoints but the newest `keep` and the pointer's.

    With `keep` None all finished checkpoints stay. A checkpoint is renamed before it is deleted, so
    none is ever left half.

    Raises:
        ValueError: `keep` is below 1.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep={keep} would delete the newest checkpoint; keep at least 1")
    found = checkpoints(folder)
    kept = {*list(found)[-keep if keep else 0 :], read_latest(folder)}
    for step, path in found.items():
        if step not in kept:
            shutil.rmtree(_set_aside(path))


def sweep(folder: str | Path) -> None:
    """Delete what killed processes left unfinished in `folder`. Only for whoever has it alone."""
    for leftover in list(Path(folder).glob(f"{TEMPORARY_PREFIX}*")):
        logger.info("removing %s, which a killed run left behind", leftover)
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _set_aside(path: Path) -> Path:
    """Rename a folder, so that it is gone in one step before it is deleted bit by bit."""
    aside = _temporary_sibling(path)
    os.rename(path, aside)
    return aside


def _temporary_sibling(path: Path) -> Path:
    """A name that is free; on the same file system, so that a rename moves it into place."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync(Path(parent) / name)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
