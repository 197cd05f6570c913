"""A folder in a place where other users write too, that is nobody else's."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def private_folder(path: Path) -> Path:
    """Make `path`, which only this user can look into, or take it where it is there already.

    Raises:
        PermissionError: somebody else has made it, or it is a link: what it holds is not to be
            trusted.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(
            f"{path} is not a folder of this user, so somebody else may write into it; remove it, "
            "or set TMPDIR to a folder of your own"
        )
    path.chmod(0o700)  # of an earlier version
    return path
