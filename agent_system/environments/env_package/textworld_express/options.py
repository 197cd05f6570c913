"""The settings of TextWorldExpress, `env.options`."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent_system.environments.env_package.textworld_express.games import parameter_string

MIN_HEAP_MB = 64


@dataclass(frozen=True)
class TextWorldExpressOptions:
    """What the games look like; one Java process per environment process.

    `game_params`: parameters of each game's generator, {"coin": {"numLocations": 5}}; the
    simulator's defaults for what is not named (see `games.py`).
    `admissible_actions`: list the commands that the game accepts now, and show them in the prompt.
    `gold_path`: at a reset, add a winning list of commands to `info["gold_path"]`. The simulator
    finds it by a random walk: it wins, but it is not the shortest.
    `jvm_heap_mb`: heap limit of the simulator in MiB.
    """

    game_params: dict = field(default_factory=dict)
    admissible_actions: bool = True
    gold_path: bool = False
    jvm_heap_mb: int = 128

    def __post_init__(self) -> None:
        """Raises ValueError on an unknown game or parameter and on a value out of range."""
        for game in self.game_params:
            self.params_of(game)
        if self.jvm_heap_mb < MIN_HEAP_MB:
            raise ValueError(f"jvm_heap_mb={self.jvm_heap_mb}; the simulator needs {MIN_HEAP_MB}")

    def params_of(self, game: str) -> str:
        """The parameters of `game` as the simulator takes them; "" for its defaults."""
        return parameter_string(game, self.game_params.get(game, {}))
