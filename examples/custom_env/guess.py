"""An environment of one's own in 30 lines: guess a number. See README.md beside this file."""

import random

from agent_system.environments.text_game import Reply, TextGame, game_package

NUMBERS = tuple(str(number) for number in range(1, 9))


class GuessNumber(TextGame):
    """Every wrong guess is answered with higher or lower: halving always wins in four guesses."""

    task_text = "Guess the secret number, 1 to 8, in at most four guesses."

    def start(self, task):
        self.secret = random.Random(task.options["seed"]).choice(NUMBERS)
        self.guesses_left = 4
        return Reply("What is your guess?", actions=NUMBERS)

    def play(self, command):
        if command == self.secret:
            return Reply("Right.", success=True)
        self.guesses_left -= 1
        if self.guesses_left == 0:
            return Reply(f"Wrong. It was {self.secret}.", over=True)
        if command not in NUMBERS:
            return Reply("That is no number from 1 to 8.", actions=NUMBERS)
        return Reply("higher" if command < self.secret else "lower", actions=NUMBERS)


PACKAGE = game_package(GuessNumber, rules="You guess a number. A command is a number, 1 to 8.")
