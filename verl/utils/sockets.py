"""Where Unix sockets fit: the kernel takes short paths only, and a cluster's TMPDIR may be long."""

from __future__ import annotations

import os

from verl.utils.errors import UserError

MAX_PATH = 103  # bytes: 107 on Linux, 103 on macOS
SHORT = "/tmp"


def socket_folder(preferred: str, below: str, variable: str) -> str:
    """`preferred` where a socket at `preferred` + `below` fits, else /tmp.

    Raises:
        UserError: neither will do; the remedy is to set `variable`.
    """
    if len(os.fsencode(preferred + below)) <= MAX_PATH:
        return preferred
    if os.access(SHORT, os.W_OK | os.X_OK):
        return SHORT
    raise UserError(
        f"the folder for temporary files {preferred} is too long for a socket, and {SHORT} cannot "
        f"be written to; set {variable} to a folder of this machine of at most "
        f"{MAX_PATH - len(below)} bytes"
    )
