"""ALFWorld in words."""

from __future__ import annotations

from agent_system.config import ActionFormatConfig
from agent_system.environments.env_package.alfworld.options import AlfWorldOptions
from agent_system.environments.prompting import PlainPrompts, TextPrompts, make_prompts

# Placeholders only: a real command as an example becomes the policy's favourite command.
RULES = """\
You are an agent in a text simulation of a household, in which you carry out a task with the \
things in one room. Every observation answers your last command. Commands, with OBJECT and PLACE \
standing for names with their numbers from the observations:

Moving: go to PLACE
Perceiving: look, inventory, examine OBJECT, examine PLACE
Handling: take OBJECT from PLACE, move OBJECT to PLACE, open PLACE, close PLACE, use OBJECT
Changing what you hold: heat OBJECT with PLACE, clean OBJECT with PLACE, cool OBJECT with PLACE

You see what a place holds when you go there; what is closed has to be opened first. You can carry \
one object at a time. "Nothing happens." answers a command that is not accepted now."""


def alfworld_prompts(
    options: AlfWorldOptions, action_format: ActionFormatConfig
) -> TextPrompts | PlainPrompts:
    """The prompt builder: rules, task, history and the commands that are accepted now."""
    return make_prompts(RULES, action_format, list_actions=True)
