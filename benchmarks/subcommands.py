"""The command line of a benchmark with several measurements."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import ModuleType

from verl.utils.logging import setup_logging


def run(description: str | None, modules: Mapping[str, ModuleType], log_level: str) -> None:
    """Call `run(options)` of the module that is named; each has `add_arguments(parser)` too."""
    setup_logging(log_level)
    parser = argparse.ArgumentParser(description=description)
    subparsers = parser.add_subparsers(dest="name", required=True)
    for name, module in modules.items():
        module.add_arguments(subparsers.add_parser(name, description=module.__doc__))
    options = parser.parse_args()
    modules[options.name].run(options)
