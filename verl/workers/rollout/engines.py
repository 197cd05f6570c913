"""From the name of an engine to the engine."""

from __future__ import annotations

from collections.abc import Callable

from verl.config.actor import ENGINES, ActorRolloutRefConfig
from verl.config.plan import EnginePlan
from verl.utils.importing import resolve_choice
from verl.workers.rollout.base import RolloutEngine

EngineBuilder = Callable[[ActorRolloutRefConfig, EnginePlan], RolloutEngine]


def build_engine(config: ActorRolloutRefConfig, plan: EnginePlan) -> RolloutEngine:
    """The engine `plan.name`, not started yet.

    A builder of the user's own, `package.module:function`, is called with these arguments.

    Raises:
        UserError: unknown engine; the model is missing or not one the engine can run.
    """
    builder: EngineBuilder = resolve_choice("actor_rollout_ref.rollout.name", plan.name, ENGINES)
    return builder(config, plan)
