"""Shorter observations: the simulator's listings as "room : item , item". Pure functions.

The simulator lists a room's objects in an order that tells how the state came about; sorted, equal
states have equal texts. What is lost: doors, the state of devices and what containers hold, so
this suits the tasks whose objects lie in the open (find-*).
"""

from __future__ import annotations

import re

INVALID = "invalid action"

_INVALID_ANSWERS = ("No known action matches that input.", "Unknown action.")
_ROOM = re.compile(r"This (?:room|outside location) is called the (?P<place>[\w ]+)\.")
_INVENTORY = re.compile(r"In your inventory, you see:")
# the name comes first: "a table. On the table is: ..", "a sink, which ..", "a jar (containing .."
_ITEM = re.compile(r"(?:an? |the )?(?:substance called )?(?P<name>.*?)(?: ?\(|[.,]|$)")
_ALWAYS_THERE = frozenset({"agent", "air"})


def compact(text: str) -> str:
    """A room or inventory listing as "place : item , item", sorted; other texts on one line.

    >>> compact("This room is called the hallway. In it, you see: \\n\\ta picture\\n\\tan axe\\n")
    'hallway : axe , picture'
    """
    if text.startswith(_INVALID_ANSWERS):
        return INVALID
    room = _ROOM.match(text)
    if room is not None:
        return _listing(room["place"], text)
    if _INVENTORY.match(text):
        return _listing("inventory", text)
    return text.strip()


def _listing(place: str, text: str) -> str:
    objects = text.split("You also see:")[0]  # doors follow
    lines = [line.strip() for line in objects.split("\n") if line.startswith("\t")]
    names = (match["name"] for match in map(_ITEM.match, lines) if match)
    items = sorted(name for name in names if name not in _ALWAYS_THERE)
    return f"{place} : {' , '.join(items)}".rstrip()
