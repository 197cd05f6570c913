"""Play the training tasks of the quickstart with a scripted player and keep the conversations.

python examples/small_policy/demonstrations.py --output demonstrations.jsonl

One won episode for each training variation, in the environment exactly as the quickstart sets it.
The script knows nothing about a variation but what the task text and the observations say.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_system.config import EnvConfig
from agent_system.environments.pool import EnvPool
from agent_system.environments.registry import bind_env
from agent_system.interfaces import AsyncEnv, PromptBuilder
from agent_system.types import StepResult, Task
from verl.config.compose import compose_config

logger = logging.getLogger("demonstrations")

GOAL = re.compile(
    r"find a\(n\) (?P<kind>[\w -]+)\. .* to the (?P<box>\w+ box) in the (?P<room>[\w ]+)\."
)
ANIMAL = re.compile(r"^baby | egg$")
# Things that the simulator does not let anybody move.
FIXED = frozenset(
    {
        "bathtub",
        "freezer",
        "fridge",
        "oven",
        "sink",
        "stove",
        "toilet",
        "ultra low temperature freezer",
    }
)


@dataclass
class Recorder:
    """An episode as it is played: `do` carries out a command and writes the conversation down."""

    env: AsyncEnv
    prompts: PromptBuilder
    messages: list[dict[str, str]] = field(default_factory=list)
    result: StepResult | None = None

    async def start(self, task: Task) -> str:
        """Reset; returns the task in words."""
        observation, info = await self.env.reset(task)
        self._hear(self.prompts.first(info["task_text"], observation))
        return info["task_text"]

    async def do(self, command: str) -> str:
        """Returns the observation that answers `command`."""
        self.messages.append({"role": "assistant", "content": command})
        self.result = await self.env.step(command)
        if not self.result.terminated:
            self._hear(self.prompts.next(self.result.observation))
        return self.result.observation.text

    def _hear(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})


async def play(game: Recorder, task_text: str, rng: random.Random) -> None:
    """Solve one of the three tasks. Raises ValueError when the task is another one."""
    goal = GOAL.search(task_text)
    if goal is None:
        raise ValueError(f"the scripted player cannot read the task {task_text!r}")
    if goal["kind"] == "non-living thing":
        await move_something_of_the_room(game, goal["room"], goal["box"], rng)
    else:
        await bring_an_animal(game, goal["room"], goal["box"], rng)


async def move_something_of_the_room(
    game: Recorder, room: str, box: str, rng: random.Random
) -> None:
    """The target room is full of things that are not alive."""
    seen = await game.do(f"teleport to {room}")
    thing = rng.choice([item for item in items(seen) if item not in FIXED and item != box])
    await game.do(f"focus on {thing}")
    await game.do(f"move {thing} to {box}")


async def bring_an_animal(game: Recorder, room: str, box: str, rng: random.Random) -> None:
    """Animals, as eggs or young ones, are outside."""
    seen = await game.do("teleport to outside")
    animal = rng.choice([item for item in items(seen) if ANIMAL.search(item)])
    await game.do(f"focus on {animal}")
    await game.do(f"pick up {animal}")
    await game.do(f"teleport to {room}")
    await game.do(f"move {animal} to {box}")


def items(observation: str) -> list[str]:
    """What a compact observation "room : item , item" lists."""
    return observation.partition(" : ")[2].split(" , ")


async def demonstrate(
    pool: EnvPool, prompts: PromptBuilder, task: Task, seed: int
) -> dict[str, Any]:
    """One won episode as messages. Raises RuntimeError when the script does not win it."""
    async with pool.acquire() as env:
        game = Recorder(env, prompts)
        await play(game, await game.start(task), random.Random(f"{seed}/{task.key}"))
    if not game.result.info["success"]:
        raise RuntimeError(f"the script did not win {task.key}: {game.messages}")
    return {"task": task.key, "messages": game.messages}


async def demonstrate_all(env: EnvConfig, seed: int) -> list[dict[str, Any]]:
    """All training tasks, in the order of the task list."""
    bound = bind_env(env)
    prompts = bound.prompts(env.action_format)
    pool = EnvPool(bound, env.pool)
    try:
        tasks = bound.tasks(env.train)
        return await asyncio.gather(*(demonstrate(pool, prompts, task, seed) for task in tasks))
    finally:
        pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="jsonl, one conversation a line")
    parser.add_argument("--seed", type=int, default=0, help="which thing the player picks")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    _, config = compose_config([], "quickstart")
    conversations = asyncio.run(demonstrate_all(config.env, arguments.seed))
    lines = (json.dumps(conversation) for conversation in conversations)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    turns = sum(len(conversation["messages"]) // 2 for conversation in conversations)
    logger.info(
        "%d episodes, all won, %.1f turns on average",
        len(conversations),
        turns / len(conversations),
    )


if __name__ == "__main__":
    main()
