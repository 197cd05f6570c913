"""The folder of games: where it is and which solvable games each split has.

Layout, as ALFWorld's own download has it:

    <data_dir>/json_2.1.1/<split>/<task>/<trial>/{game.tw-pddl, traj_data.json}

A game says itself whether it is solvable, so that every file has to be read once: 3,553 training
games are 400 MB. What was found is kept in `<split>/.games.json` with a fingerprint of the files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
DATASET = "json_2.1.1"
GAME_FILE = "game.tw-pddl"
INDEX_FILE = ".games.json"
# Solvable games of the published data set.
OFFICIAL_COUNTS = {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
# What ALFWorld itself leaves out: receptacles that are carried, and sliced objects.
_UNSUPPORTED = ("movable", "Sliced")
# Found in the raw JSON, without parsing a hundred kilobytes of escaped text; the key is at its end.
_SOLVABLE = re.compile(rb'(?<!\\)"solvable":\s*true')
_PRESENT_GRAMMAR = b"move {o} to {r}"


@dataclass(frozen=True)
class GameEntry:
    """A solvable game. `path` is relative to the data folder; `is_present`: by its grammar."""

    path: str
    task_type: str
    is_present: bool


def check_installed() -> None:
    """Raises ValueError when the package `alfworld` or its simulator is missing."""
    for module in ("alfworld", "textworld", "fast_downward"):
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f"ALFWorld needs the package '{module}'; install it with pip install '.[alfworld]'"
            )


def find_data_dir(configured: str) -> Path:
    """`configured`, or $ALFWORLD_DATA, or ~/.cache/alfworld. It need not exist."""
    chosen = configured or os.environ.get("ALFWORLD_DATA", "") or "~/.cache/alfworld"
    return Path(chosen).expanduser()


def list_games(data_dir: Path, split: str) -> list[GameEntry]:
    """The solvable games of `split`, sorted by path. Raises ValueError when there is none."""
    folder = data_dir / DATASET / split
    files = sorted(folder.glob(f"*/*/{GAME_FILE}"))
    fingerprint = _fingerprint(files, folder)
    games = _load_index(folder, fingerprint)
    if games is None:
        games = _scan(files, data_dir)
        _save_index(folder, fingerprint, games)
    if not games:
        raise ValueError(no_games_message(data_dir, split))
    _report(folder, len(games), sum(not game.is_present for game in games))
    return games


def no_games_message(data_dir: Path, split: str) -> str:
    """What to do when `split` is empty, in one sentence."""
    return (
        f"no ALFWorld games in '{data_dir / DATASET / split}'; make some with "
        f"`python -m agent_system.environments.env_package.alfworld.generate --out {data_dir}`, or "
        f"download the published ones with `ALFWORLD_DATA={data_dir} alfworld-download` "
        "(another folder: env.options.data_dir or $ALFWORLD_DATA)"
    )


def write_atomically(path: Path, text: str) -> None:
    """Nobody sees half of `path`. Raises OSError when its folder cannot be written to."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _fingerprint(files: Sequence[Path], folder: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        name = file.relative_to(folder)
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _scan(files: Sequence[Path], data_dir: Path) -> list[GameEntry]:
    entries = (_read_entry(file, data_dir) for file in files)
    return [entry for entry in entries if entry is not None]


def _read_entry(file: Path, data_dir: Path) -> GameEntry | None:
    task_folder = file.parent.parent.name  # <type>-<object>-<movable>-<receptacle>-<scene>
    task_type = task_folder.split("-")[0]
    if task_type not in TASK_TYPES or any(word in task_folder for word in _UNSUPPORTED):
        return None
    content = file.read_bytes()
    if not _SOLVABLE.search(content):
        return None
    return GameEntry(file.relative_to(data_dir).as_posix(), task_type, _PRESENT_GRAMMAR in content)


def _load_index(folder: Path, fingerprint: str) -> list[GameEntry] | None:
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        if index["fingerprint"] != fingerprint:
            return None
        return [GameEntry(**row) for row in index["games"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing, or written by another version: it is made anew


def _save_index(folder: Path, fingerprint: str, games: Sequence[GameEntry]) -> None:
    text = json.dumps({"fingerprint": fingerprint, "games": [asdict(game) for game in games]})
    try:
        write_atomically(folder / INDEX_FILE, text)
    except OSError as error:
        logger.debug("the list of games is not kept: %s", error)  # a read-only folder


@cache  # said once, however often the list is asked for
def _report(folder: Path, found: int, older: int) -> None:
    published = OFFICIAL_COUNTS[folder.name]
    if found != published:
        logger.info(
            "%d solvable ALFWorld games in %s; the published data set has %d",
            found,
            folder,
            published,
        )
    if older:
        logger.info(
            "%d of the %d games in %s have an older grammar ('put X in/on Y'); they are played "
            "with the installed one ('move X to Y')",
            older,
            found,
            folder,
        )
