"""The dotted keys of the configuration: which exist, and the nearest one to a typing mistake."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from verl.utils.errors import UserError


class ConfigKeys:
    """Every key a user may set, read off the dataclasses."""

    def __init__(
        self, root: type, schemas: Mapping[str, type] | None = None, groups: Sequence[str] = ()
    ) -> None:
        """
        Args:
            root: the dataclass of the whole configuration.
            schemas: the dataclasses of the keys that `root` leaves open.
            groups: Hydra's config groups: `env=alfworld` chooses a preset, `env.seed=1` sets a key.
        """
        self.root = root
        self._schemas = dict(schemas or {})
        self._groups = groups

    def normalize(self, override: str) -> str:
        """The override in the one form that Hydra accepts for its key.

        `key=value`, `+key=value` and `++key=value` all set the key; entries of a dictionary
        (`env.options.x`, `env.val.l2.name`) may be new, everything else has to be in the schema.

        Raises:
            UserError: the key does not exist; the message names the nearest one.
        """
        key, equals, value = override.partition("=")
        if key.startswith("~") or not equals or key in self._groups or key.startswith("hydra."):
            return override
        key = key.lstrip("+")
        names = key.split(".")
        open_at = self._first_open_name(names)
        if open_at is None:
            return f"{key}={value}"
        for name in reversed(names[open_at:]):
            value = f"{{{name}: {value}}}"
        return f"++{'.'.join(names[:open_at])}={value}"

    def suggest(self, key: str) -> str:
        """A sentence naming the key nearest to `key`, or none; it starts with a separator."""
        leaf = key.rpartition(".")[2]

        def likeness(name: str) -> float:
            return (_ratio(name, key) + _ratio(name.rpartition(".")[2], leaf)) / 2

        best = max(self.walk(), key=likeness)
        if likeness(best) < 0.6:
            return "; docs/configuration.md lists the keys"
        return f"; did you mean '{best}'?"

    def walk(self, node: type | None = None, prefix: str = "") -> Iterator[str]:
        """All dotted keys below `node` (default: the root), in the order of the dataclasses."""
        for name, annotation in self.fields(node or self.root).items():
            yield f"{prefix}{name}"
            if (inner := dataclass_in(annotation)) is not None:
                entry = "<name>." if typing.get_origin(annotation) is dict else ""
                yield from self.walk(inner, f"{prefix}{name}.{entry}")

    def fields(self, node: type) -> dict[str, Any]:
        """Names and types of a dataclass's keys; `X | None` counts as `X`."""
        hints = {name: _without_none(hint) for name, hint in typing.get_type_hints(node).items()}
        return hints | self._schemas if node is self.root else hints

    def _first_open_name(self, names: list[str]) -> int | None:
        """Index of the first name that is a dictionary's entry; None: all names are fields.

        A key that is itself a dictionary counts as open: its value is merged, not checked here.
        """
        node: type | None = self.root
        for i, name in enumerate(names):
            fields = self.fields(node) if node is not None else {}
            if name not in fields:
                raise self._unknown(names)
            if typing.get_origin(fields[name]) is dict:
                return i + 1
            node = dataclass_in(fields[name])
        return None

    def _unknown(self, names: list[str]) -> UserError:
        key = ".".join(names)
        return UserError(f"unknown key '{key}'{self.suggest(key)}")


def dataclass_in(annotation: Any) -> type | None:
    """The dataclass that a field, or each entry of its dictionary, holds; None: a plain value."""
    if typing.get_origin(annotation) is dict:
        annotation = typing.get_args(annotation)[1]
    return annotation if isinstance(annotation, type) and is_dataclass(annotation) else None


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _without_none(annotation: Any) -> Any:
    """`X` of `X | None`; other annotations unchanged."""
    if isinstance(annotation, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation
