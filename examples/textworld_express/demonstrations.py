"""Keep the conversations of the simulator's own winning paths, to clone them.

python examples/textworld_express/demonstrations.py --output demonstrations.jsonl

One won episode for each of the first training tasks of the preset `textworld_express_small`.
Hydra overrides may follow, e.g. env.train.tasks=[sorting].
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

from agent_system.config import EnvConfig
from agent_system.environments.pool import EnvPool
from agent_system.environments.registry import get_env_package
from agent_system.interfaces import PromptBuilder
from agent_system.types import Task
from verl.config.compose import compose_config

logger = logging.getLogger("demonstrations")


async def demonstrate(pool: EnvPool, prompts: PromptBuilder, task: Task) -> dict[str, Any]:
    """The gold path of `task` as messages. Raises RuntimeError when it does not win."""
    async with pool.acquire() as env:
        observation, info = await env.reset(task)
        messages = [{"role": "user", "content": prompts.first(info["task_text"], observation)}]
        for command in info["gold_path"]:
            messages.append({"role": "assistant", "content": command})
            result = await env.step(command)
            if result.info["success"]:
                return {"task": task.key, "messages": messages}
            messages.append({"role": "user", "content": prompts.next(result.observation)})
    raise RuntimeError(f"the gold path does not win {task.key}: {messages}")


async def demonstrate_all(env: EnvConfig, count: int) -> list[dict[str, Any]]:
    """The first `count` training tasks, in the order of the task list."""
    bound = get_env_package(env.env_name).bind({**env.options, "gold_path": True})
    prompts = bound.prompts(env.action_format)
    tasks = bound.tasks(env.train)[:count]
    pool = EnvPool(bound, env.pool)
    try:
        return await asyncio.gather(*(demonstrate(pool, prompts, task) for task in tasks))
    finally:
        pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="jsonl, one conversation a line")
    parser.add_argument("--count", type=int, default=800, help="how many training tasks")
    arguments, overrides = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    _, config = compose_config(overrides, "textworld_express_small")
    conversations = asyncio.run(demonstrate_all(config.env, arguments.count))
    lines = (json.dumps(conversation) for conversation in conversations)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    logger.info("%d episodes, all won", len(conversations))


if __name__ == "__main__":
    main()
