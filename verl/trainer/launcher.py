"""The command line of examples/general_running_server.sh: flags become Hydra overrides.

python -m verl.trainer.launcher [--flag value ...] [--dry_run] [-- hydra overrides]
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import sys
from typing import Any, NoReturn

from omegaconf import OmegaConf

from verl.config.checks import check_values
from verl.config.compat import FLAG_ALIASES, FLAGS, Settings, settings_from_flags
from verl.config.compose import compose_config
from verl.trainer.cli import run_cli
from verl.utils.errors import UserError

PRESET = "launch"


class _FlagParser(argparse.ArgumentParser):
    """Mistakes are raised as UserError instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(arguments: list[str]) -> None:
    """Print the composed configuration (`--dry_run`), or become the training process."""
    overrides, dry_run = overrides_from(arguments)
    composed, config = compose_config(overrides, PRESET)
    check_values(config)
    if dry_run:
        sys.stdout.write(OmegaConf.to_yaml(composed))
        return
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", PRESET, *overrides]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def overrides_from(arguments: list[str]) -> tuple[list[str], bool]:
    """Hydra overrides of a command line, those after `--` last, and whether it is a dry run.

    Raises:
        UserError: an unknown flag or value, a flag without effect, or no model.
    """
    flags, extra = arguments, []
    if "--" in arguments:
        split = arguments.index("--")
        flags, extra = arguments[:split], arguments[split + 1 :]
    options, unknown = flag_parser().parse_known_args(flags)
    if unknown:
        raise UserError(_unknown_argument(unknown[0]))
    given = vars(options)
    dry_run = given.pop("dry_run")
    if "model_path" not in given and not any("model.path=" in override for override in extra):
        raise UserError("--model_path is not given; add --model_path <folder or hub name>")
    overrides = [f"{key}={_quoted(value)}" for key, value in settings_from_flags(given).items()]
    return [*names_of(given, overrides + extra), *overrides, *extra], dry_run


def names_of(given: Settings, overrides: list[str]) -> list[str]:
    """Project and experiment name. The digest keeps runs with other settings in other folders."""
    values = {name: flag.default for name, flag in FLAGS.items()} | given
    method = values["rl_algorithm"] + ("_epo" if values["entropy_smooth"] else "")
    digest = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
    return [
        f"trainer.project_name=epo_{values['environment']}",
        f"trainer.experiment_name={method}_lr{values['lr']:g}_seed{values['seed']}_{digest}",
    ]


def flag_parser() -> argparse.ArgumentParser:
    """The parser of `FLAGS`; a flag that was not written is absent from its result."""
    parser = _FlagParser(
        usage="bash examples/general_running_server.sh [--flag value ...] [-- hydra overrides]",
        description="PPO or GRPO, with or without EPO. Overrides after `--` win over flags.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    aliases = {name: [alias for alias, of in FLAG_ALIASES.items() if of == name] for name in FLAGS}
    for name, flag in FLAGS.items():
        default = "none" if flag.default is None else flag.default
        parser.add_argument(
            *(f"--{each}" for each in (name, *aliases[name])),
            dest=name,
            type=flag.type,
            choices=flag.choices,
            metavar="{" + ",".join(flag.choices) + "}" if flag.choices else "VALUE",
            help=f"{flag.help} (default: {default})".replace("%", "%%"),
        )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        default=False,
        help="print the composed configuration and stop",
    )
    return parser


def _unknown_argument(argument: str) -> str:
    if not argument.startswith("--"):
        return f"unexpected argument '{argument}'; Hydra overrides go after --"
    name = argument.removeprefix("--").partition("=")[0]
    known = [*FLAGS, *FLAG_ALIASES, "dry_run", "help"]
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown flag '--{name}'; " + (f"did you mean --{close[0]}?" if close else "see --help")


def _quoted(value: Any) -> str:
    """A value in Hydra's override grammar; text is quoted, since a path may hold anything."""
    if isinstance(value, str) and not value.isidentifier():
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "null" if value is None else str(value)


if __name__ == "__main__":
    run_cli(main)
