"""Make solvable ALFWorld games offline.

python -m agent_system.environments.env_package.alfworld.generate --out runs/alfworld_games

All six task types, in ALFWorld's own layout. Every game is won once, by the walkthrough that is
stored in it, before it is written. Equal arguments give equal bytes; an interrupted call goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from agent_system.environments.env_package.alfworld.data import TASK_TYPES, check_installed

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 and one sentence when the arguments do not allow it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    try:
        check_installed()
        written = _generate(options)
    except ValueError as error:
        logger.error("error: %s", error)
        return 2
    logger.info("%d new games in %s", written, options.out)
    return 0


def _generate(options: argparse.Namespace) -> int:
    # only now: without the packages, the sentence of check_installed is what there is to say
    from agent_system.environments.env_package.alfworld.generator.dataset import Recipe, generate

    valid_games = options.valid_games
    if valid_games is None:
        valid_games = max(options.games // 10, len(TASK_TYPES))
    recipe = Recipe(
        options.games,
        valid_games,
        options.seed,
        tuple(options.types),
        options.receptacles,
        options.objects,
    )
    return generate(recipe, options.out)


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the data folder, ALFWORLD_DATA")
    parser.add_argument("--games", type=int, default=600, help="training games")
    parser.add_argument(
        "--valid_games", type=int, help="of valid_seen and of valid_unseen; default: a tenth"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--types", nargs="+", default=TASK_TYPES, metavar="TYPE")
    parser.add_argument("--receptacles", type=_range, default=(8, 20), metavar="8-20")
    parser.add_argument("--objects", type=_range, default=(12, 30), metavar="12-30")
    return parser


if __name__ == "__main__":
    sys.exit(main())
