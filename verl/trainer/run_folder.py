"""The folder of a run: one process at a time writes there, and only where there is room."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from verl.config.trainer import SessionConfig
from verl.utils.atomic import sweep
from verl.utils.disk import check_writable, refused
from verl.utils.errors import UserError
from verl.utils.folder_lock import LOCK_FILE, FolderInUse, check_unlocked, locked_folder
from verl.utils.logging import setup_logging

logger = logging.getLogger(__name__)

KEY = "trainer.default_local_dir"


def check_run_folder(run: SessionConfig) -> None:
    """Refuse a folder before anything is loaded; nothing is made or touched.

    Raises:
        UserError: another run is in it, or it cannot be written to.
    """
    folder = run_folder(run)
    check_writable(KEY, folder)
    with _one_run(folder), refused(KEY, folder):
        check_unlocked(folder)


@contextmanager
def open_run_folder(run: SessionConfig) -> Iterator[Path]:
    """The run's folder, made where it is missing and held for this process alone.

    What a killed run left unfinished is removed; all logging goes to `run.log` in it too.

    Raises:
        UserError: as `check_run_folder`.
    """
    folder = run_folder(run)
    with ExitStack() as stack:
        with _one_run(folder), refused(KEY, folder):
            folder.mkdir(parents=True, exist_ok=True)
            alone = stack.enter_context(locked_folder(folder))
            setup_logging(file=folder / "run.log")
            if alone:
                _sweep(folder)
            else:
                logger.warning(
                    "the file system of %s has no locks: nothing keeps a second run out of this "
                    "folder, and what a killed run left unfinished in it stays",
                    folder,
                )
        yield folder


def run_folder(run: SessionConfig) -> Path:
    return Path(run.default_local_dir).absolute()


def _sweep(folder: Path) -> None:
    """The folder and those in it, but for those that are a run's of their own (evaluations)."""
    sweep(folder)
    for child in folder.iterdir():
        if child.is_dir() and not (child / LOCK_FILE).exists():
            sweep(child)


@contextmanager
def _one_run(folder: Path) -> Iterator[None]:
    try:
        yield
    except FolderInUse as holder:
        raise UserError(
            f"{KEY}={folder} is in use by {holder}; wait for that run or end it, or choose another "
            "trainer.experiment_name"
        ) from None
