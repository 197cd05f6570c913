"""One registry for every named choice of the trainer."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Names mapped to implementations of one kind.

    >>> estimators = Registry("adv_estimator")
    >>> @estimators.register("grpo")
    ... def grpo(rewards): ...
    >>> estimators.get("grpo") is grpo
    True
    """

    def __init__(self, kind: str) -> None:
        """`kind` names what is registered in error messages, e.g. ``adv_estimator``."""
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that stores its target under `name` and returns it unchanged.

        Raises:
            ValueError: `name` already holds a different object. Registering the same object again
                is allowed, so that a module imported twice stays harmless.
        """
        key = str(name)

        def add(entry: T) -> T:
            if key in self._entries and self._entries[key] is not entry:
                raise ValueError(
                    f"{self.kind} '{key}' is already registered as {self._entries[key]!r}; "
                    "choose another name"
                )
            self._entries[key] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """The entry called `name`.

        Raises:
            ValueError: `name` is unknown; the message lists the names there are.
        """
        key = str(name)
        if key not in self._entries:
            raise ValueError(
                f"unknown {self.kind} '{key}'; available: {', '.join(self.names()) or 'none'}"
            )
        return self._entries[key]

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return str(name) in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)
