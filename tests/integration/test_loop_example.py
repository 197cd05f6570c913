"""The loop that is there to be read also runs, and its policy learns."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_policy_of_the_loop_gets_better():
    run = subprocess.run(
        [sys.executable, "examples/loop.py"],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    successes = [float(rate) for rate in re.findall(r"step \d+: success ([\d.]+)", run.stderr)]
    assert len(successes) == 20
    # Seeds 0, 1, 2: 0.19 -> 0.43, 0.15 -> 0.50, 0.18 -> 0.52; held out +0.42, +0.42, +0.50.
    assert sum(successes[-5:]) / 5 > sum(successes[:5]) / 5 + 0.15
    before, after = re.search(
        r"held-out success: ([\d.]+) \[.*?\] -> ([\d.]+) \[", run.stderr
    ).groups()
    assert float(after) > float(before) + 0.3
