"""Which of the past turns the policy is shown, in the `turn` context."""

from agent_system.memory.history import (
    HISTORIES,
    History,
    LastTurns,
    Summary,
    TokenBudget,
    make_history,
)

__all__ = ["HISTORIES", "History", "LastTurns", "Summary", "TokenBudget", "make_history"]
