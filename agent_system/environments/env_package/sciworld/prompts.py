"""ScienceWorld in words."""

from __future__ import annotations

from agent_system.config import ActionFormatConfig
from agent_system.environments.env_package.sciworld.options import SciWorldOptions
from agent_system.environments.prompting import PlainPrompts, TextPrompts, make_prompts

# Placeholders only: a real command as an example becomes the policy's favourite command.
RULES = """\
You are an agent in a text simulation of a house with laboratories, in which you carry out a \
science task. Every observation answers your last command. Commands, with OBJECT and PLACE \
standing for names from the observations:

Moving: go PLACE{teleport}
Perceiving: look around, look at OBJECT, look in OBJECT, read OBJECT, inventory, task
Handling: pick up OBJECT, put down OBJECT, move OBJECT to OBJECT, open OBJECT, close OBJECT, \
activate OBJECT, deactivate OBJECT, use OBJECT on OBJECT
Substances: pour OBJECT in OBJECT, dunk OBJECT in OBJECT, mix OBJECT, eat OBJECT, flush OBJECT\
{electricity}
Answering: focus on OBJECT names the object that the task asks for; a wrong one ends the task, lost
Time: wait lets ten steps pass, wait1 a single one

If a command could mean several things, the observation is a numbered list: answer with the \
number."""
TELEPORT = ", teleport to PLACE (any place, at once)"
ELECTRICITY = "\nElectricity (in electrical tasks): connect OBJECT to OBJECT, disconnect OBJECT"


def sciworld_prompts(
    options: SciWorldOptions, action_format: ActionFormatConfig
) -> TextPrompts | PlainPrompts:
    """The prompt builder for these settings: only commands that they leave in are named."""
    rules = RULES.format(
        teleport=TELEPORT if options.presets & {"easy", "teleportAction"} else "",
        electricity="" if "noElectricalAction" in options.presets else ELECTRICITY,
    )
    return make_prompts(rules, action_format)
