"""A setting states its default, sentence and limits in its field; checks and docs read them there.

Packages that know nothing of verl (`agent_system.config`, `epo.config`) write the same metadata.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import copy
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypedDict, TypeVar, Unpack

from verl.utils.errors import UserError

T = TypeVar("T")
# A number beyond it is a slip, unless its field says otherwise.
LARGEST = 1e9


class Limits(TypedDict, total=False):
    """What a value may be; in a list, every entry. None passes wherever the type allows it."""

    choices: Collection[str]
    open: bool  # or an import path (in a dictionary: of an entry), loaded where it is needed
    door: bool  # any value but an empty one lets code in, as an import path does (`config.doors`)
    least: float
    most: float
    above: float  # as `least`, but not the bound itself
    below: float
    length: int  # entries of a list
    harmless: bool  # of a key, and of all below it: it changes nothing of what is learned


def setting(default: T, doc: str, **limits: Unpack[Limits]) -> T:
    """A field of a configuration. `doc` is its line in docs/configuration.md."""
    metadata = {"doc": doc, **limits}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Facts:
    """The metadata of a field."""

    doc: str = ""
    choices: Collection[str] = ()
    open: bool = False
    door: bool = False
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    length: int | None = None
    harmless: bool = False

    @classmethod
    def of(cls, setting: Field[Any]) -> Facts:
        known = [fact.name for fact in fields(cls) if fact.name in setting.metadata]
        return cls(**{name: setting.metadata[name] for name in known})

    @property
    def accepted(self) -> str:
        """The limits in words; '' without any."""
        if self.choices:
            own = ("or an import path of your own, package.module:object",) if self.open else ()
            return ", ".join((*self.choices, *own))
        return f"{self.length} numbers, each {self._range()}" if self.length else self._range()

    def problem(self, value: Any) -> str | None:
        """`=value` and what is wrong with it, or None."""
        entries = value if isinstance(value, list) else [value]
        refused = [entry for entry in entries if not self._accepts(entry)]
        if refused and self.choices:
            return f"={refused[0]} is unknown; available: {self.accepted}"
        if refused or self.length not in (None, len(entries)):
            limits = self.accepted or f"a number between {-LARGEST:g} and {LARGEST:g}"
            return f"={value} makes no sense; it has to be {limits}"
        if huge := [number for number in _numbers(value) if not self._is_usual(number)]:
            return f"={huge[0]} makes no sense; no run needs a number beyond {LARGEST:g}"
        return None

    def _range(self) -> str:
        if self.least is not None and self.most is not None:
            return f"between {self.least} and {self.most}"
        bounds = {
            "at least": self.least,
            "more than": self.above,
            "at most": self.most,
            "below": self.below,
        }
        return " and ".join(
            f"{word} {bound}" for word, bound in bounds.items() if bound is not None
        )

    def _accepts(self, entry: Any) -> bool:
        if entry is None:
            return True
        if self.choices:
            return entry in self.choices or (self.open and ":" in entry)
        return (
            entry == entry  # not nan
            and (self.least is None or entry >= self.least)
            and (self.most is None or entry <= self.most)
            and (self.above is None or entry > self.above)
            and (self.below is None or entry < self.below)
        )

    def _is_usual(self, number: float) -> bool:
        largest = max(LARGEST, self.most or 0)
        return -largest <= number <= largest


def settings(
    config: Any, prefix: str = "", *, harmless: bool = False
) -> Iterator[tuple[str, Any, Facts]]:
    """Key, value and facts of every setting of a dataclass and of those below it, in order."""
    for entry in fields(config):
        key, value = f"{prefix}{entry.name}", getattr(config, entry.name)
        facts = Facts.of(entry)
        facts = replace(facts, harmless=facts.harmless or harmless)
        if is_dataclass(value):
            yield from settings(value, f"{key}.", harmless=facts.harmless)
        elif isinstance(value, dict) and any(map(is_dataclass, value.values())):
            for name, inner in value.items():
                yield from settings(inner, f"{key}.{name}.", harmless=facts.harmless)
        else:
            yield key, value, facts


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a value, in free-form ones too."""
    if isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _numbers(entry)
    elif isinstance(value, int | float):
        yield value


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The value under its key; of a dictionary every entry under its own."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def check_fields(config: Any) -> None:
    """Refuse the first value outside the limits of its field.

    Raises:
        UserError: naming the key, the value and what is accepted.
    """
    for key, value, facts in settings(config):
        if problem := facts.problem(value):
            raise UserError(key + problem)
