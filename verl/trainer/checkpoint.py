"""Checkpoints of a whole run: complete or absent, newest N kept, found again by `resume_mode`.

<default_local_dir>/global_step_<n>/actor   critic   driver.pt   manifest.json
<default_local_dir>/latest_checkpointed_iteration.txt
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from verl.config.model import FSDPConfig, ModelConfig, resolve_dtype
from verl.config.plan import chat_date
from verl.config.saved import Change, changes_between
from verl.config.trainer import SessionConfig
from verl.utils.atomic import (
    CHECKPOINT_NAME,
    atomic_directory,
    checkpoints,
    latest_first,
    prune,
    write_latest,
)
from verl.utils.disk import NoRoomError, folder_bytes, free_bytes, naming_a_full_disk, readable
from verl.utils.errors import UserError, root_cause
from verl.utils.manifest import MANIFEST, find_damage, write_manifest
from verl.utils.packages import installed_versions
from verl.utils.plain_values import load_plain

logger = logging.getLogger(__name__)

DRIVER_FILE = "driver.pt"
DRIVER_STATE = {"step": int, "tracker": dict}  # what every kind of run has there
CONFIG_FILE = "config.yaml"  # of the run folder


class CheckpointStore:
    """Saves and finds the checkpoints of one run folder."""

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        self.root = Path(config.default_local_dir).absolute()

    def save(
        self, step: int, driver_state: dict[str, Any], save_workers: Callable[[Path], None]
    ) -> Path:
        """Write `global_step_<step>`; `save_workers` fills the folder it is given.

        Raises:
            NoRoomError: the disk is too full; the checkpoints that are there stand.
        """
        target = self.root / f"global_step_{step}"
        what = f"the checkpoint of step {step}"
        self._check_room(what)
        with naming_a_full_disk(what, self.root):
            with atomic_directory(target) as folder, naming_a_full_disk(what, folder):
                save_workers(folder)
                torch.save(driver_state, folder / DRIVER_FILE)
                write_manifest(folder, step=step, packages=installed_versions())
            write_latest(self.root, step)
        prune(self.root, self._config.max_actor_ckpt_to_keep)
        logger.info("checkpoint of step %d: %s", step, target)
        return target

    def check_room_at_start(self, estimate: Callable[[], int]) -> None:
        """Refuse a run that could not save: the older ones go only once the newest is whole.

        Args:
            estimate: bytes of a checkpoint, where there is none yet to know them from.

        Raises:
            UserError: the disk has less room.
        """
        needed = self._newest_bytes() or estimate()
        free = free_bytes(self.root)
        if free < needed:
            raise UserError(
                f"a checkpoint of this run takes about {readable(needed)}, and the disk of "
                f"trainer.default_local_dir={self.root} has {readable(free)} free; make room, or "
                "choose a folder on another disk"
            )

    def _check_room(self, what: str) -> None:
        needed, free = self._newest_bytes(), free_bytes(self.root)
        if free < needed:
            raise NoRoomError(
                f"{what} needs {readable(needed)}, and the disk of {self.root} has "
                f"{readable(free)} free"
            )

    def _newest_bytes(self) -> int:
        """0 without a checkpoint."""
        found = checkpoints(self.root)
        return folder_bytes(found[max(found)]) if found else 0

    def find(self) -> Path | None:
        """The checkpoint to resume from, by `trainer.resume_mode`; None starts afresh.

        All of it is read and compared with its manifest. Of the run's own folder a damaged one is
        passed over, with a warning.

        Raises:
            UserError: the one that is named is damaged, or none of the folder is whole.
        """
        if self._config.resume_mode == "disable":
            return None
        if self._config.resume_mode == "resume_path":
            checkpoint = checked_checkpoint(self._config.resume_from_path)
            check_whole(checkpoint)
            return checkpoint
        damaged = []
        for checkpoint in latest_first(self.root):
            if (damage := _damage(checkpoint)) is None:
                if damaged:
                    logger.warning("%s: going on from %s", "; ".join(damaged), checkpoint)
                return checkpoint
            damaged.append(f"{checkpoint.name} is damaged ({damage})")
        if damaged:
            raise UserError(
                f"no checkpoint in {self.root} is whole: {'; '.join(damaged)}; restore one from a "
                "copy, or start afresh under another trainer.experiment_name"
            )
        return None


@contextmanager
def going_on_without_room() -> Iterator[None]:
    """A checkpoint that finds no room is left out with a warning; the next one tries again."""
    try:
        yield
    except NoRoomError as error:
        logger.warning(
            "%s; training goes on from the checkpoints that are there, and tries again when the "
            "next one is due",
            error,
        )


def checkpoint_bytes(load: Callable[..., nn.Module], model: ModelConfig, fsdp: FSDPConfig) -> int:
    """About what a checkpoint of a model takes: its weights, and two moments of the trained ones.

    Args:
        load: `load_causal_lm` or `load_value_model`; builds the architecture alone.
    """
    built = load(model, resolve_dtype(fsdp.dtype, auto=torch.float32), empty=True)
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in built.parameters()]
    return sum(size * (3 if trained else 1) for size, trained in sizes)


def changes_on_resume(
    run: SessionConfig, checkpoint: Path, before: Any, after: Any
) -> list[Change]:
    """What `after` changes of the configuration `before` with which `checkpoint` was trained.

    Raises:
        UserError: the run goes on in its own folder, a change is one of what is learned, and
            `trainer.resume_changed` does not accept it.
    """
    changes = changes_between(before, after)
    learned = [str(change) for change in changes if not change.harmless]
    own = checkpoint.parent == Path(run.default_local_dir).absolute()
    if learned and own and run.resume_changed == "refuse":
        raise UserError(
            f"this run would go on from {checkpoint} with other settings of what is learned: "
            f"{', '.join(learned)}; keep the old values, choose another trainer.experiment_name, "
            "or set trainer.resume_changed=accept"
        )
    return changes


def tell_changes(changes: list[Change]) -> None:
    """On the console and in `run.log`."""
    for harmless, level in ((False, logging.WARNING), (True, logging.INFO)):
        told = ", ".join(str(change) for change in changes if change.harmless == harmless)
        what = "settings" if harmless else "settings of what is learned"
        if told:
            logger.log(level, "resuming with other %s: %s", what, told)


def checked_checkpoint(path: str | None) -> Path:
    """`path` as a checkpoint folder. Raises UserError when it is none."""
    folder = Path(path or "")
    if path is None or not any((folder / name).is_file() for name in (DRIVER_FILE, MANIFEST)):
        raise UserError(
            f"'{path}' is not a checkpoint: it holds no {DRIVER_FILE}; "
            "give a folder named global_step_<n> of an earlier run"
        )
    return folder.absolute()


def check_whole(checkpoint: Path) -> None:
    """Raises UserError when a file of the checkpoint is not as it was saved."""
    if damage := _damage(checkpoint):
        others = ", ".join(p.name for p in latest_first(checkpoint.parent) if p != checkpoint)
        raise UserError(
            f"the checkpoint {checkpoint} is damaged: {damage}; restore it from a copy, or take "
            f"another one of its run ({others or 'there is none'})"
        )


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None: nothing that can be known."""
    named = CHECKPOINT_NAME.fullmatch(checkpoint.name)
    facts = {"step": int(named[1])} if named else {}  # a copy may have any name
    try:
        return find_damage(checkpoint, **facts)
    except FileNotFoundError:
        if not (checkpoint / DRIVER_FILE).is_file():
            return f"{DRIVER_FILE} and {MANIFEST} are missing"
    except OSError as error:
        return f"it cannot be read ({error})"
    logger.warning(
        "%s has no %s, as those of earlier versions: nobody can tell whether it is whole",
        checkpoint,
        MANIFEST,
    )
    return None


def check_has_critic(checkpoint: Path) -> None:
    """Raises UserError when the checkpoint is of a run without a critic."""
    if not (checkpoint / "critic").is_dir():
        raise UserError(
            f"cannot resume from {checkpoint}: its run had no critic, and this one needs one "
            "(algo=ppo, algorithm.adv_estimator=gae); keep the run's algorithm, or start afresh "
            "under another trainer.experiment_name"
        )


def load_driver_state(folder: Path) -> dict[str, Any]:
    """Plain Python values and tensors only: nothing is executed while loading.

    Raises:
        UserError: the file is none of a checkpoint.
    """
    try:
        state = load_plain(folder / DRIVER_FILE, DRIVER_FILE)
        strange = [key for key, kind in DRIVER_STATE.items() if not isinstance(state[key], kind)]
    except (OSError, UnpicklingError, LookupError, TypeError) as error:
        raise _unreadable(folder, root_cause(error)) from error
    if strange:
        raise _unreadable(folder, f"{DRIVER_FILE} has no {' and '.join(strange)} of a run")
    return state


def _unreadable(folder: Path, reason: str) -> UserError:
    return UserError(
        f"cannot resume from {folder}: {reason}; take another checkpoint, or start afresh under "
        "another trainer.experiment_name"
    )


def date_on_resume(model: ModelConfig, checkpoint: Path) -> str:
    """What a run that goes on from `checkpoint` takes for today in its prompts."""
    today = chat_date(model)
    if model.chat_template_date is not None:
        return today
    saved = load_driver_state(checkpoint).get("chat_date", today)  # older ones do not say
    try:
        return date.fromisoformat(saved).isoformat()
    except (TypeError, ValueError) as error:
        raise _unreadable(checkpoint, f"chat_date={saved!r} is no date") from error
