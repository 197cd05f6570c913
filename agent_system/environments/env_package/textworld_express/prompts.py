"""TextWorldExpress in words."""

from __future__ import annotations

from agent_system.config import ActionFormatConfig
from agent_system.environments.env_package.textworld_express.options import (
    TextWorldExpressOptions,
)
from agent_system.environments.prompting import PlainPrompts, TextPrompts, make_prompts

# Placeholders only: a real command as an example becomes the policy's favourite command.
RULES = """\
You are an agent in a short text game. Every observation answers your last command. Commands, with \
OBJECT, PLACE and DIRECTION standing for names from the observations:

Moving: move DIRECTION, open door to DIRECTION, close door to DIRECTION
Perceiving: look around, inventory, read OBJECT, examine OBJECT
Handling: take OBJECT, put OBJECT in PLACE, open OBJECT, close OBJECT
Cooking: slice OBJECT, dice OBJECT, chop OBJECT, cook OBJECT in PLACE, prepare meal, eat OBJECT

Each game takes only some of them, and some games take others that they name. In some games a \
wrong command ends the game, lost."""


def twx_prompts(
    options: TextWorldExpressOptions, action_format: ActionFormatConfig
) -> TextPrompts | PlainPrompts:
    """The prompt builder for these settings."""
    return make_prompts(RULES, action_format, list_actions=options.admissible_actions)
