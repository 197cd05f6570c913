"""An enum that plugins can extend."""

from __future__ import annotations

from collections.abc import Iterator


class _DynamicEnumMeta(type):
    _members: dict[str, DynamicEnum]

    def __iter__(cls) -> Iterator[DynamicEnum]:
        return iter(cls._members.values())

    def __len__(cls) -> int:
        return len(cls._members)

    def __getitem__(cls, name: str) -> DynamicEnum:
        return cls._members[name.upper()]

    def __contains__(cls, item: object) -> bool:
        return item in cls._members.values() or str(item).upper() in cls._members


class DynamicEnum(metaclass=_DynamicEnumMeta):
    """Named constants; :meth:`register` adds one while the program runs."""

    _members: dict[str, DynamicEnum]

    def __init_subclass__(cls) -> None:
        cls._members = {}

    def __init__(self, name: str, value: int) -> None:
        self.name = name
        self.value = value

    def __repr__(self) -> str:
        return f"<{type(self).__name__}.{self.name}: {self.value}>"

    def __reduce__(self) -> tuple:
        # By name, so that a worker's constant is the same object as its own module's.
        return _DynamicEnumMeta.__getitem__, (type(self), self.name)

    @classmethod
    def register(cls, name: str) -> DynamicEnum:
        """Add a constant; its name is upper case.

        Raises:
            ValueError: the name is taken.
        """
        key = name.upper()
        if key in cls._members:
            raise ValueError(f"{cls.__name__}.{key} is already registered; choose another name")
        member = cls(key, len(cls._members))
        cls._members[key] = member
        setattr(cls, key, member)
        return member
