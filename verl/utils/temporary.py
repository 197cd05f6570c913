"""A folder for temporary files that does not outlive its process, however that ends."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verl.utils.folder_lock import LOCK_FILE, FolderInUse, locked_folder

logger = logging.getLogger(__name__)

PREFIX = ".verl-"
NAME = re.compile(re.escape(PREFIX) + r"[a-z0-9_]{8}")
FOLDER = f"/{PREFIX}abcdefgh"  # below its parent, to see how long a path becomes


@contextmanager
def temporary_folder(parent: str | Path) -> Iterator[Path]:
    """A folder of this process alone in `parent`, removed at the end.

    First those of this user's processes that have died are removed: a process that lives holds the
    lock of its folder.
    """
    _sweep(Path(parent))
    new = Path(tempfile.mkdtemp(prefix=f"new{PREFIX}", dir=parent))
    folder = new.with_name(new.name.removeprefix("new"))
    with locked_folder(new):
        new.rename(folder)  # under this name it was never without its lock
        try:
            yield folder
        finally:
            _remove(folder)


def _sweep(parent: Path) -> None:
    for folder in list(parent.glob(f"{PREFIX}*")):
        try:
            if _is_ours(folder):
                with locked_folder(folder) as alone:
                    if alone:
                        _remove(folder)
                        logger.info("removed %s of a process that has died", folder)
        except (FolderInUse, OSError):  # somebody lives in it, or sweeps it at this moment
            continue


def _is_ours(folder: Path) -> bool:
    is_own = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
    return is_own and NAME.fullmatch(folder.name) is not None and (folder / LOCK_FILE).is_file()


def _remove(folder: Path) -> None:
    """The lock goes last: whatever a process that is just ending keeps from going, the next sweep
    takes."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        elif child.name != LOCK_FILE:
            child.unlink()
    if [child.name for child in folder.iterdir()] == [LOCK_FILE]:
        shutil.rmtree(folder, ignore_errors=True)
