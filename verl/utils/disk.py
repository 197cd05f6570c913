"""What a disk refuses, in one sentence: no room, no permission, a file where a folder should be."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verl.utils.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
REMEDIES = dict.fromkeys(FULL, "make room, or choose a folder on another disk") | {
    errno.ENOTDIR: "a part of this path is a file; name a folder",
    errno.EEXIST: "it is a file; name a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}
OTHERWISE = "name a folder that can be written to"


@contextmanager
def refused(key: str, folder: Path) -> Iterator[None]:
    """Turns an OSError of the block into a UserError about `folder`, the value of `key`."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = REMEDIES.get(error.errno or 0, OTHERWISE)
        raise UserError(f"{key}={folder} cannot be written to ({reason}); {remedy}") from error


def check_writable(key: str, folder: Path) -> None:
    """Refuse a folder that could not be made or written to; nothing is made.

    Raises:
        UserError: with the reason.
    """
    with refused(key, folder):
        existing = _nearest(folder)
        if not existing.is_dir():
            raise OSError(errno.EEXIST if existing == folder else errno.ENOTDIR, "")
        if not os.access(existing, os.W_OK | os.X_OK):
            read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
            raise OSError(errno.EROFS if read_only else errno.EACCES, "")


def _nearest(folder: Path) -> Path:
    """The first of `folder` and its parents that is there."""
    try:
        os.lstat(folder)
    except FileNotFoundError:
        return _nearest(folder.parent)
    return folder
