"""Rooms: what stands in a kitchen, living room, bedroom or bathroom, and where.

Numbers follow ALFWorld's floor plans: kitchens from 1, living rooms from 201, bedrooms from 301,
bathrooms from 401. Which object fits into which receptacle, and what can be done with it, comes
from the tables of the installed `alfworld`; only what a room of each kind holds is told here.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from alfworld.gen.constants import OPENABLE_CLASS_LIST, VAL_ACTION_OBJECTS, VAL_RECEPTACLE_OBJECTS

from agent_system.environments.env_package.alfworld.scene import Receptacle

SEEN_ROOMS = 20  # of each kind, for training and valid_seen
UNSEEN_ROOMS = 10  # of each kind, for valid_unseen
_TRIES = 1000
_GRID = 40  # rooms are 20 by 20 m, in quarter metres as in ALFWorld


@dataclass(frozen=True)
class RoomKind:
    """`always`: receptacles every such room has; `sometimes`: how many more there may be."""

    first_number: int
    always: tuple[str, ...]
    sometimes: Mapping[str, int]
    objects: tuple[str, ...]

    @property
    def most(self) -> int:
        """The number of receptacles of the fullest room."""
        return len(self.always) + sum(self.sometimes.values())


KINDS: Mapping[str, RoomKind] = MappingProxyType(
    {
        "kitchen": RoomKind(
            1,
            ("Fridge", "Microwave", "SinkBasin", "CounterTop"),
            {
                "Cabinet": 10,
                "CoffeeMachine": 1,
                "CounterTop": 2,
                "DiningTable": 1,
                "Drawer": 8,
                "GarbageCan": 1,
                "Shelf": 3,
                "StoveBurner": 4,
            },
            (
                *("Apple", "Bowl", "Bread", "ButterKnife", "Cup", "DishSponge", "Egg", "Fork"),
                *("Kettle", "Knife", "Ladle", "Lettuce", "Mug", "Pan", "PepperShaker", "Plate"),
                *("Pot", "Potato", "SaltShaker", "Spatula", "Spoon", "Tomato", "Vase"),
            ),
        ),
        "living room": RoomKind(
            201,
            ("Sofa", "SideTable", "Dresser"),
            {
                "ArmChair": 2,
                "Cabinet": 4,
                "CoffeeTable": 2,
                "Drawer": 8,
                "GarbageCan": 1,
                "Safe": 1,
                "Shelf": 6,
                "SideTable": 2,
            },
            (
                *("Book", "Box", "CellPhone", "CreditCard", "KeyChain", "Laptop", "Newspaper"),
                *("Pillow", "RemoteControl", "Statue", "TissueBox", "Vase", "Watch"),
            ),
        ),
        "bedroom": RoomKind(
            301,
            ("Bed", "Desk", "SideTable"),
            {
                "ArmChair": 1,
                "Drawer": 8,
                "Dresser": 1,
                "GarbageCan": 1,
                "Safe": 1,
                "Shelf": 6,
                "SideTable": 1,
            },
            (
                *("AlarmClock", "Book", "Bowl", "CD", "CellPhone", "CreditCard", "KeyChain"),
                *("Laptop", "Mug", "Pen", "Pencil", "Pillow", "TissueBox"),
            ),
        ),
        "bathroom": RoomKind(
            401,
            ("SinkBasin", "Toilet", "CounterTop"),
            {
                "BathtubBasin": 1,
                "Cabinet": 6,
                "Cart": 1,
                "Drawer": 6,
                "GarbageCan": 1,
                "HandTowelHolder": 2,
                "Shelf": 4,
                "ToiletPaperHanger": 1,
            },
            (
                *("Candle", "Cloth", "DishSponge", "HandTowel", "SoapBar", "SoapBottle"),
                *("SprayBottle", "TissueBox", "ToiletPaper"),
            ),
        ),
    }
)


@dataclass(frozen=True)
class Room:
    """A layout: receptacles, and the location in the middle where the agent starts."""

    kind: str
    number: int
    receptacles: tuple[Receptacle, ...]
    start: str

    def taking(self, object_type: str) -> list[Receptacle]:
        """The receptacles that can contain an object of that type."""
        return [r for r in self.receptacles if can_contain(r.type, object_type)]


@dataclass(frozen=True)
class RoomSet:
    """The rooms of one generated data set."""

    seen: tuple[Room, ...]
    unseen: tuple[Room, ...]


def can_contain(receptacle_type: str, object_type: str) -> bool:
    """By ALFWorld's table."""
    return object_type in VAL_RECEPTACLE_OBJECTS[receptacle_type]


def allows(action: str, object_type: str) -> bool:
    """`action`: Heatable, Coolable, Cleanable, Sliceable or Toggleable, by ALFWorld's table."""
    return object_type in VAL_ACTION_OBJECTS[action]


def draw_rooms(seed: int, receptacles: tuple[int, int]) -> RoomSet:
    """Rooms with so many receptacles (at least, at most); no unseen one is equipped as a seen one.

    Raises ValueError when the range leaves no such rooms.
    """
    seen, unseen = [], []
    for name in KINDS:
        rng = random.Random(f"{seed}/rooms/{name}")
        first = KINDS[name].first_number
        numbers = range(first, first + UNSEEN_ROOMS + SEEN_ROOMS)
        known = [_draw_room(rng, name, n, receptacles) for n in numbers[UNSEEN_ROOMS:]]
        equipment = {_equipment(room) for room in known}
        others = [_draw_other(rng, name, n, receptacles, equipment) for n in numbers[:UNSEEN_ROOMS]]
        seen += known
        unseen += others
    return RoomSet(tuple(seen), tuple(unseen))


def place_name(type_name: str, x: int, z: int, rng: random.Random) -> str:
    """An identifier as ALFWorld's are: type and coordinates; `x`, `z` in quarter metres."""
    coordinates = (x / 4 + rng.randrange(20) / 100, rng.randrange(200) / 100, z / 4)
    return "_bar_".join([type_name, *map(_coordinate, coordinates)])


def _draw_other(
    rng: random.Random,
    kind: str,
    number: int,
    receptacles: tuple[int, int],
    known: set[frozenset[tuple[str, int]]],
) -> Room:
    for _ in range(_TRIES):
        room = _draw_room(rng, kind, number, receptacles)
        if _equipment(room) not in known:
            return room
    raise ValueError(
        f"no {kind} with {receptacles[0]} to {receptacles[1]} receptacles differs from those in "
        "training; widen --receptacles"
    )


def _draw_room(rng: random.Random, kind: str, number: int, receptacles: tuple[int, int]) -> Room:
    rules = KINDS[kind]
    smallest, largest = (min(max(n, len(rules.always)), rules.most) for n in receptacles)
    size = rng.randint(smallest, largest)
    optional = [name for name, count in rules.sometimes.items() for _ in range(count)]
    types = sorted([*rules.always, *rng.sample(optional, size - len(rules.always))])
    # no two things at one x: every receptacle has a location and a name of its own
    xs = rng.sample(range(-_GRID, _GRID), len(types) + 1)
    placed = [_receptacle(name, x, rng) for name, x in zip(types, xs, strict=False)]
    return Room(kind, number, tuple(placed), _location(xs[-1], 0, rng))


def _receptacle(type_name: str, x: int, rng: random.Random) -> Receptacle:
    z = rng.randrange(-_GRID, _GRID)
    if type_name in ("SinkBasin", "BathtubBasin"):  # parts of a sink and a bathtub
        name = place_name(type_name.removesuffix("Basin"), x, z, rng) + f"_bar_{type_name}"
    else:
        name = place_name(type_name, x, z, rng)
    return Receptacle(type_name, name, _location(x, z, rng), type_name in OPENABLE_CLASS_LIST)


def _location(x: int, z: int, rng: random.Random) -> str:
    numbers = (x, z, rng.randrange(4), rng.choice((30, 45, 60)))
    return "_bar_".join(["loc", *(str(n).replace("-", "_minus_") for n in numbers)])


def _coordinate(metres: float) -> str:
    sign = "_minus_" if metres < 0 else "_plus_"
    return sign + f"{abs(metres):05.2f}".replace(".", "_dot_")


def _equipment(room: Room) -> frozenset[tuple[str, int]]:
    return frozenset(Counter(r.type for r in room.receptacles).items())
