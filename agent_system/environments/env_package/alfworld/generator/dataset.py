"""Generated games as a data folder: which games it has, checking each, and writing it."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agent_system.environments.env_package.alfworld.data import (
    DATASET,
    GAME_FILE,
    TASK_TYPES,
    write_atomically,
)
from agent_system.environments.env_package.alfworld.env import open_simulator
from agent_system.environments.env_package.alfworld.generator.problems import (
    game_data,
    task_sentence,
    trajectory_data,
)
from agent_system.environments.env_package.alfworld.generator.rooms import (
    Room,
    RoomSet,
    draw_rooms,
)
from agent_system.environments.env_package.alfworld.generator.scenes import draw_scene
from agent_system.environments.env_package.alfworld.gold import check_win, commands
from agent_system.environments.env_package.alfworld.scene import Scene
from agent_system.environments.env_package.alfworld.speedups import speedups

RECIPE_FILE = "generated.json"
GENERATOR_VERSION = 1  # to be raised with every change of what a recipe makes


@dataclass(frozen=True)
class Recipe:
    """What determines every byte of the games.

    `games`: of the split train; `valid_games`: of valid_seen and of valid_unseen each. The types
    take turns. `receptacles`, `objects`: at least and at most in a room.
    """

    games: int
    valid_games: int
    seed: int = 0
    types: tuple[str, ...] = TASK_TYPES
    receptacles: tuple[int, int] = (8, 20)
    objects: tuple[int, int] = (12, 30)
    version: int = GENERATOR_VERSION

    def __post_init__(self) -> None:
        """Raises ValueError on numbers that make no sense and on unknown types."""
        if self.games < 1 or self.valid_games < 0:
            raise ValueError(
                f"games={self.games}, valid_games={self.valid_games}; make at least one game"
            )
        for name, (low, high) in (("receptacles", self.receptacles), ("objects", self.objects)):
            if not 1 <= low <= high:
                raise ValueError(f"{name} {low}-{high}; give a range such as 8-20")
        for name in self.types:
            if name not in TASK_TYPES:
                raise ValueError(f"unknown task type '{name}'; available: {', '.join(TASK_TYPES)}")

    def splits(self) -> Iterator[tuple[str, int]]:
        """Every split with its number of games."""
        yield "train", self.games
        yield "valid_seen", self.valid_games
        yield "valid_unseen", self.valid_games


def generate(recipe: Recipe, data_dir: Path) -> int:
    """Write the games that are not there yet; returns how many these were.

    Raises ValueError when `data_dir` holds other games, or the recipe allows none.
    """
    _claim(recipe, data_dir)
    rooms = draw_rooms(recipe.seed, recipe.receptacles)
    total = sum(count for _, count in recipe.splits())
    written = 0
    with speedups(), tqdm(total=total, unit="game", desc="ALFWorld games") as progress:
        simulator = open_simulator()
        for split, count in recipe.splits():
            for index in range(count):
                written += _make(recipe, rooms, split, index, data_dir, simulator)
                progress.update()
    return written


@dataclass(frozen=True)
class DrawnGame:
    """A game that is not written yet. `trial`: the name of its innermost folder."""

    room: Room
    scene: Scene
    sentence: str
    trial: str

    @property
    def folder(self) -> str:
        """Relative to the split's, by ALFWorld's rule."""
        goal = self.scene.goal
        place = goal.target or goal.lamp
        return f"{goal.task_type}-{goal.object}-None-{place}-{self.room.number}/{self.trial}"


def draw_game(recipe: Recipe, rooms: RoomSet, split: str, index: int) -> DrawnGame:
    """Game number `index` of a split, by the recipe alone."""
    rng = random.Random(f"{recipe.seed}/{split}/{index}")
    task_type = recipe.types[index % len(recipe.types)]
    choice = rooms.unseen if split == "valid_unseen" else rooms.seen
    room, scene = draw_scene(rng, choice, task_type, recipe.objects)
    trial = f"trial_G{recipe.seed}_{index:05d}"
    return DrawnGame(room, scene, task_sentence(scene.goal, rng), trial)


def _make(
    recipe: Recipe, rooms: RoomSet, split: str, index: int, data_dir: Path, simulator: Any
) -> bool:
    game = draw_game(recipe, rooms, split, index)
    folder = data_dir / DATASET / split / game.folder
    if folder.exists():
        return False  # written whole by an earlier, interrupted call
    parts = (game.room, game.scene, game.sentence, game.trial)
    data = game_data(*parts)
    data["walkthrough"] = commands(game.scene, data["pddl_problem"])
    check_win(data["walkthrough"], data, simulator)
    _write_game(folder, json.dumps(data), trajectory_data(*parts))
    return True


def _write_game(folder: Path, game: str, trajectory: str) -> None:
    """Both files appear at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent.parent.parent, prefix=".game-"))
    try:
        temporary.chmod(0o755)
        (temporary / GAME_FILE).write_text(game, encoding="utf-8")
        (temporary / "traj_data.json").write_text(trajectory, encoding="utf-8")
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _claim(recipe: Recipe, data_dir: Path) -> None:
    """Note the recipe in the folder, or find the same one there."""
    path = data_dir / RECIPE_FILE
    text = json.dumps(asdict(recipe), indent=1) + "\n"
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"'{data_dir}' holds games of another recipe ({path}); name another --out"
            )
        return
    if (data_dir / DATASET).exists():
        raise ValueError(f"'{data_dir}' holds games that were not generated; name another --out")
    data_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
