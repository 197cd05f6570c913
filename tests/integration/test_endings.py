"""One training run that is killed in every way, as its user starts it: how it ends each time."""

import random
import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# The first two are survived, in one command; the others end it.
CODES = {
    "training rank SIGKILL": 0,
    "rollout worker SIGSTOP": 0,
    "driver SIGTERM": 143,
    "control process SIGKILL": 3,
    "raylet SIGKILL": 3,
    "Ctrl-C": 130,
}
FEW = ["training rank SIGKILL", "driver SIGTERM"]


@pytest.fixture(
    scope="module",
    params=[FEW, pytest.param([*CODES], marks=pytest.mark.long)],
    ids=["few", "every way"],
)
def chain(request, tmp_path_factory):
    """Two ranks, so that the death of one leaves another in a collective."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        from reliability_parts import kills
        from reliability_parts.real_run import EVENTS

        events = {event.name: event for event in EVENTS}
        yield kills.chain(
            kills.Setup(ranks=2, async_steps=0),
            [events[name] for name in request.param],
            tmp_path_factory.mktemp("chain"),
            random.Random(0),
            steps_between=1,
        )


def test_every_ending_is_a_sentence_with_its_code_and_leaves_no_process(chain):
    assert len(chain.outcomes) >= len(FEW)
    for outcome in chain.outcomes:
        assert outcome.code == CODES[outcome.event.name]
        assert outcome.as_promised, outcome
        if outcome.code:
            assert "Traceback" not in outcome.words
            assert re.search(r"; it was in step \d+ of \d+; .* goes on from step", outcome.words)


def test_sigterm_loses_no_step_that_was_finished(chain):
    (outcome,) = [o for o in chain.outcomes if o.event.name == "driver SIGTERM"]
    dropped, kept = re.search(r"in step (\d+) of .* from step (\d+)", outcome.words).groups()
    assert int(kept) == int(dropped) - 1


def test_no_number_of_any_step_depends_on_what_happened(chain):
    assert chain.code == 0
    assert (chain.missing, chain.doubled, chain.different) == ([], [], [])
