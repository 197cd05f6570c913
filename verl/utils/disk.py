"""What a disk refuses, in one sentence: no room, no permission, a file where a folder should be."""

from __future__ import annotations

import errno
import os
import shutil
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
PROBE_BYTES = 1 << 20


class NoRoomError(OSError):
    """A disk is too full for what was to be written; nothing of it is left, all else stands."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)

    def __str__(self) -> str:
        return str(self.args[1])


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


def free_bytes(folder: Path) -> int:
    """On the disk of `folder`, which may not be there yet."""
    return shutil.disk_usage(_nearest(folder)).free


def folder_bytes(folder: Path) -> int:
    """Of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def readable(size: int) -> str:
    """`3.1 GB`, `85 MB`, `0.4 MB`."""
    if size >= 10**9:
        return f"{size / 10**9:.1f} GB"
    return f"{size / 10**6:.0f} MB" if size >= 10**7 else f"{size / 10**6:.1f} MB"


@contextmanager
def naming_a_full_disk(what: str, folder: Path) -> Iterator[None]:
    """An error of the block becomes a NoRoomError where the disk of `folder` is full.

    Only the disk knows: torch says `unexpected pos 704 vs 598`, and an error of a Ray worker is
    of another class.
    """
    try:
        yield
    except NoRoomError:
        raise
    except Exception as error:
        if (isinstance(error, OSError) and error.errno in FULL) or _is_full(folder):
            raise NoRoomError(f"the disk is full: {what} was not finished") from error
        raise


def _is_full(folder: Path) -> bool:
    probe = folder / ".probe"
    try:
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in FULL
    finally:
        probe.unlink(missing_ok=True)
    return False
