"""From the name of an engine to the engine."""

from __future__ import annotations

from collections.abc import Callable

from verl.config.actor import ActorRolloutRefConfig
from verl.config.machine import ENGINES, resolve_engine
from verl.utils.importing import resolve_choice
from verl.workers.rollout.base import RolloutEngine

EngineBuilder = Callable[[ActorRolloutRefConfig, str, int], RolloutEngine]


def build_engine(config: ActorRolloutRefConfig, device: str, max_model_len: int) -> RolloutEngine:
    """The engine `config.rollout.name` on `device`, not started yet.

    A builder of the user's own, `package.module:function`, is called with these arguments.

    Args:
        max_model_len: tokens of a prompt and its response together.

    Raises:
        UserError: unknown engine; the model is missing or not one the engine can run.
    """
    name = resolve_engine(config.rollout.name)
    builder: EngineBuilder = resolve_choice("actor_rollout_ref.rollout.name", name, ENGINES)
    return builder(config, device, max_model_len)
