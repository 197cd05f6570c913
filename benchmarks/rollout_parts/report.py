"""The one place where benchmarks write: Markdown tables on standard output."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

Cell = str | int | float


def show(header: Sequence[str], rows: Sequence[Sequence[Cell]], notes: Sequence[str] = ()) -> None:
    """Write the command line, the table and the notes."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    lines = [f"`{command}`, {machine()}", "", markdown(header, rows)]
    lines += [f"\n{note}" for note in notes]
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    sys.stdout.flush()


def markdown(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """The rows as a Markdown table; numbers keep three significant digits."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell(value) for value in line)} |" for line in lines)


def cell(value: Cell) -> str:
    """One entry: integers with thousands separators, floats with three significant digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return value


def share(part: float, whole: float) -> str:
    """`part` in per cent of `whole`."""
    return f"{100 * part / whole:.1f}%"


def machine() -> str:
    """Cores and system, in words."""
    return f"on {len(os.sched_getaffinity(0))} cores ({platform.machine()}, no GPU used)"
