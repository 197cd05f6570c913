"""A folder that one process has to itself, by an advisory lock that ends with the process."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)  # a file system without them
HOLDER_CHARS = 120


class FolderInUse(Exception):
    """Another process has the folder; the message says which: `process 12 on host node7`."""


@contextmanager
def locked_folder(folder: Path) -> Iterator[bool]:
    """Hold `folder`, which exists; yields False where its file system has no locks.

    The file stays afterwards: whoever opened it before it was removed would hold a lock on nothing.

    Raises:
        FolderInUse: another process that lives has it.
        OSError: the lock file cannot be written.
    """
    # Python's descriptors are closed in a child that is executed, so no child inherits the lock
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        held = _take(descriptor, fcntl.LOCK_EX)
        if held:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        yield held
    finally:
        os.close(descriptor)


def check_unlocked(folder: Path) -> None:
    """Raises FolderInUse as `locked_folder` would; touches nothing."""
    if (folder / LOCK_FILE).is_file():
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)
        try:
            _take(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)


def _take(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 4 * HOLDER_CHARS, 0).decode("utf-8", "replace")
        raise FolderInUse(textwrap.shorten(holder, HOLDER_CHARS) or "another process") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True
