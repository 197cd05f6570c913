"""How a run ends when it does not finish: one exit code and one sentence."""

from __future__ import annotations

import errno
import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from ray.exceptions import RayError, RayTaskError

import verl
from verl.config.trainer import SessionConfig
from verl.trainer.stop_requests import ClusterLostError, Terminated
from verl.utils.atomic import latest_first
from verl.utils.errors import UserError, WorkerDiedError, in_short, noting, one_line, root_cause


class ExitCode(IntEnum):
    """What the entry points return; docs/reliability.md says what to do about each."""

    BUG = 1  # nobody expected it
    REFUSED = 2  # the user can mend it; the same command ends in the same way
    LOST = 3  # a process or a machine is gone; the same command goes on
    STORAGE = 4  # a disk is full, or refuses to read or write
    INTERRUPTED = 130  # Ctrl-C
    TERMINATED = 143  # SIGTERM


STORAGE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.ESTALE,
    errno.EACCES,
    errno.EPERM,
)

# Code that users do not write: whatever is outside of it is theirs.
NOT_THE_USERS = (
    *(Path(verl.__file__).parents[1] / name for name in ("verl", "agent_system", "epo")),
    *(Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib")),
)
_FRAME = re.compile(r'File "([^"<]+)", line (\d+)')


@dataclass(frozen=True)
class Ending:
    """`sentence` says what happened, at which step, what stands and what to do next."""

    code: ExitCode
    sentence: str


def ending_of(error: BaseException) -> Ending:
    """The ending that `error` makes. What `noting` added follows, but for a UserError, which says
    all there is to do."""
    cause = error
    while isinstance(cause, RayTaskError) and cause.cause is not None:
        cause = cause.cause
    if isinstance(cause, UserError):
        return Ending(ExitCode.REFUSED, str(cause))
    code, what = _what_happened(error, cause)
    return Ending(code, one_line("; ".join([what, *getattr(error, "__notes__", [])])))


def _what_happened(error: BaseException, cause: BaseException) -> tuple[ExitCode, str]:
    if isinstance(cause, Terminated):
        return ExitCode.TERMINATED, str(cause)
    if isinstance(cause, KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "interrupted"
    if isinstance(cause, ClusterLostError | WorkerDiedError):
        return ExitCode.LOST, str(cause)
    if isinstance(cause, RayError):
        return ExitCode.LOST, f"Ray lost a part of the run ({root_cause(cause)})"
    for link in _chain(cause):
        if isinstance(link, OSError) and link.errno in STORAGE_ERRORS:
            return ExitCode.STORAGE, f"the disk refuses: {in_short(link)}"
    where = users_line(error)
    at = f" at {where}" if where else ""
    return ExitCode.BUG, f"{root_cause(cause)}{at}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from or while handling."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def users_line(error: BaseException) -> str | None:
    """`file:line` of the innermost code that is neither this project's nor installed: a plugin or
    an environment of the user's own. Also of what was raised in a Ray worker."""
    text = "".join(traceback.format_exception(error))  # of a RayTaskError with the worker's
    for file, line in reversed(_FRAME.findall(text)):
        if not any(Path(file).is_relative_to(folder) for folder in NOT_THE_USERS):
            return f"{file}:{line}"
    return None


@contextmanager
def telling_what_stands(run: SessionConfig) -> Iterator[None]:
    """An error that leaves the block says from which checkpoint the run can go on."""
    with noting(lambda: what_stands(run)):
        yield


def what_stands(run: SessionConfig) -> str:
    """Half a sentence: the newest checkpoint, and what to do."""
    command = "the same command"
    if run.resume_mode != "auto":
        command += " with trainer.resume_mode=auto"
    newest = next(iter(latest_first(run.default_local_dir)), None)
    if newest is None:
        return "there is no checkpoint yet: the same command begins anew"
    step = newest.name.rpartition("_")[2]
    return f"{newest.absolute()} stands: {command} goes on from step {step}"
