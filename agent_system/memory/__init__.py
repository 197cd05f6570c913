"""Which of the past turns the policy is shown, in the `turn` context."""

from agent_system.memory.history import History, LastTurns

__all__ = ["History", "LastTurns"]
