"""Who can reach a Ray cluster and give it orders: whoever can runs code as its user."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants

from verl.utils.errors import UserError

MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
# The libraries of collectives take the interface of the machine's name otherwise.
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@contextmanager
def loopback_only() -> Iterator[None]:
    """A Ray cluster that is started within it, and its workers, listen at the loopback alone and
    ask for a token that is made here (or was set before).

    Ray takes the loopback on systems where it has no clusters, by a switch that it reads when it is
    imported: its processes inherit it, in this one it is set by hand. It asks for tokens by itself,
    unless RAY_AUTH_MODE says otherwise, and reads ours once a process, so that it stays.
    """
    os.environ.setdefault(TOKEN, secrets.token_hex(32))
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    variables = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    variables |= {} if loopback is None else dict.fromkeys(INTERFACES, loopback)
    before = {name: os.environ.get(name) for name in variables}
    enabled, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    os.environ.update(variables)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_token(address: str) -> None:
    """Refuse a cluster that takes orders from everybody, unless RAY_AUTH_MODE says it may.

    To be called after it was joined: Ray then has said in RAY_AUTH_MODE how.

    Raises:
        UserError: the cluster asks for no token.
    """
    if os.environ.get(MODE) is None:
        raise UserError(
            f"the Ray cluster at ray_kwargs.ray_init.address={address} asks nobody for a token, so "
            "whoever reaches it runs code as its user; make one (`ray get-auth-token --generate`), "
            "give every node the same with RAY_AUTH_MODE=token before `ray start`, or set "
            "RAY_AUTH_MODE=disabled here to do without"
        )
