"""Measures environments: python benchmarks/environments.py <subcommand> [--env ..]; see
docs/environments.md.

Every subcommand prints one Markdown table of numbers from this one run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType

from environment_parts import memory, pool, speed
from environment_parts.subjects import PRESETS, playable

from verl.utils.logging import setup_logging

SUBCOMMANDS: dict[str, ModuleType] = {"speed": speed, "pool": pool, "memory": memory}


def main() -> None:
    setup_logging("WARNING")
    # the example's package is named by its import path from here
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    parser = argparse.ArgumentParser(description=__doc__)
    subparsers = parser.add_subparsers(dest="name", required=True)
    for name, module in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, description=module.__doc__)
        subparser.add_argument(
            "--env", nargs="+", choices=PRESETS, help="default: all whose packages are installed"
        )
        subparser.add_argument("--seed", type=int, default=0, help="of the random commands")
        module.add_arguments(subparser)
    options = parser.parse_args()
    names, notes = (options.env, []) if options.env else playable()
    SUBCOMMANDS[options.name].run(names, notes, options)


if __name__ == "__main__":
    main()
