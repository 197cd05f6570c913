"""Simon says: the game of loop.py, in words that the policy of textworld_express knows.

Simon names five commands at once. They are carried out in his order while nothing is shown, and one
wrong command loses.
"""

import random

from agent_system.environments.text_game import Reply, TextGame, game_package

VERBS = ("eat", "examine", "slice", "smell", "take", "touch")
FRUIT = ("apple", "banana", "grape", "orange")
MOVES = ("hop on your right foot", "jump up and down", "meow like a cat", "turn around in a circle")
COMMANDS = (*(f"{verb} {fruit}" for verb in VERBS for fruit in FRUIT), *MOVES)


class SimonSays(TextGame):
    task_text = "Your task is to do exactly what Simon says."

    def start(self, task):
        self.due = random.Random(task.options["seed"]).sample(COMMANDS, 5)
        return Reply(f"Simon says, take these actions in order: {', '.join(self.due)}.")

    def play(self, command):
        if command != self.due.pop(0):
            return Reply("Incorrect!", over=True)
        return Reply("", success=not self.due)


PACKAGE = game_package(SimonSays, rules="You do what Simon says.")
