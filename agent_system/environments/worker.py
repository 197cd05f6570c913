"""The process behind one slot of the pool: plays episodes on request until its parent is gone.

Started as `python -m agent_system.environments.worker <fd>`, a process of its own rather than a
fork or a thread, so that it holds only what the environment imports (no torch, no Ray) and can be
killed with everything it started. Messages are pickled tuples over the socket `fd`:

    parent -> worker   (make_env, options)            once
                       (request_id, method, kwargs)   method: reset or step
    worker -> parent   (request_id, "ok", result)     id 0 answers the start
                       (request_id, "error", (summary, traceback))
"""

from __future__ import annotations

import os
import select
import signal
import sys
import textwrap
import threading
import traceback
from multiprocessing.connection import Connection

from agent_system.environments.registry import import_object
from agent_system.interfaces import TextEnv

PARENT_CHECK_MS = 1000
SUMMARY_CHARS = 300


def main() -> int:
    """Returns 1 when the environment does not start; else this process ends with its group."""
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_die_with_parent, args=(connection.fileno(),), daemon=True).start()
    try:
        make_env, options = connection.recv()
        env = import_object(make_env)(options)
    except Exception as error:
        connection.send((0, "error", _described(error)))
        return 1
    connection.send((0, "ok", None))
    try:
        _serve(connection, env)
    finally:
        _end_group()  # the parent is gone, and this may be noticed here first
    return 0


def _serve(connection: Connection, env: TextEnv) -> None:
    methods = {"reset": env.reset, "step": env.step}
    while True:
        try:
            request_id, method, kwargs = connection.recv()
        except EOFError:
            break
        try:
            connection.send((request_id, "ok", methods[method](**kwargs)))
        except Exception as error:  # of the environment, or of an answer that cannot be pickled
            connection.send((request_id, "error", _described(error)))
    env.close()


def _described(error: Exception) -> tuple[str, str]:
    """On one line, and in full; to be called where it is handled. The log gets it in full too."""
    traceback.print_exc()
    lines = traceback.format_exception_only(error)  # also of one whose own __str__ fails
    words = "".join(c if c.isprintable() else " " for c in " ".join(lines))
    summary = textwrap.shorten(words, SUMMARY_CHARS, placeholder="..")
    return summary, traceback.format_exc()


def _die_with_parent(fd: int) -> None:
    """End this process and its children as soon as the parent's end of the socket closes.

    A thread of its own, because the main one may be waiting for a simulator that hangs. (The
    kernel's parent-death signal is no substitute: it fires when the *thread* that started this
    process ends, and the parent may well have started it from a short-lived one.)
    """
    parent = os.getppid()
    poller = select.poll()
    poller.register(fd, 0)  # hang-ups and errors are reported without asking
    while not poller.poll(PARENT_CHECK_MS) and os.getppid() == parent:
        pass
    _end_group()


def _end_group() -> None:
    """Kill this process and its children: the pool made it the leader of a group."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
