"""Where the processes of a group meet."""

from __future__ import annotations

import random
import socket

# Below the ports that Linux hands out by itself (from 32768), so that no outgoing connection takes
# the port between its choice and its use; above the ones Ray gives its workers (up to 19999).
_PORT_RANGE = range(20000, 32000)
_ATTEMPTS = 100


def find_free_port() -> int:
    """A TCP port of this machine that nobody listens on.

    Raises:
        RuntimeError: all of many tries were taken.
    """
    for port in random.SystemRandom().sample(_PORT_RANGE, _ATTEMPTS):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise RuntimeError(
        f"no free port among {_ATTEMPTS} tried in {_PORT_RANGE.start}-{_PORT_RANGE.stop - 1}; "
        "close programs that listen there"
    )
