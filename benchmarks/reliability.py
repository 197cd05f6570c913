"""Measures what failures do: python benchmarks/reliability.py <subcommand> [options]; see
docs/reliability.md.

Every subcommand prints one Markdown table of numbers from this one run.
"""

from __future__ import annotations

import argparse
from types import ModuleType

from reliability_parts import configurations, damage, endurance, kills, observations

from verl.utils.logging import setup_logging

SUBCOMMANDS: dict[str, ModuleType] = {
    "configurations": configurations,
    "damage": damage,
    "endurance": endurance,
    "kills": kills,
    "observations": observations,
}


def main() -> None:
    setup_logging("ERROR")
    parser = argparse.ArgumentParser(description=__doc__)
    subparsers = parser.add_subparsers(dest="name", required=True)
    for name, module in SUBCOMMANDS.items():
        module.add_arguments(subparsers.add_parser(name, description=module.__doc__))
    options = parser.parse_args()
    SUBCOMMANDS[options.name].run(options)


if __name__ == "__main__":
    main()
