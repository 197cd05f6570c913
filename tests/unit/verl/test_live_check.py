"""Engines against the trainer after a weight sync: what passes, what stops a run, and how."""

import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from verl import DataProto
from verl.config.actor import TOLERANCES
from verl.config.algorithm import DataConfig
from verl.config.plan import make_plan
from verl.config.root import PPOConfig
from verl.trainer.ppo.live_check import LiveCheck
from verl.utils.errors import UserError

PROMPTS = [list(range(60)), list(range(100, 140)), [7, 8, 9], list(range(200, 230))]
# The first 32 of the first, the last 32, 24, 16 of the others.
ROWS = [PROMPTS[0][:32], PROMPTS[1][-32:], PROMPTS[2], PROMPTS[3][-16:]]


DATE = "2026-01-31"  # of a run that was resumed: neither today nor the configuration's


def sample_prompts(count: int, date: str) -> list[list[int]]:
    assert date == DATE
    return PROMPTS[:count]


def log_prob(row: list[int], place: int) -> float:
    return -0.01 * row[place]


class Actor:
    """Scores each token by its id. Two ranks share the rows, so some are padding."""

    def __init__(self, ranks):
        self.world_size = ranks

    def score(self, batch):
        assert len(batch) % self.world_size == 0
        ids, mask = batch.batch["input_ids"], batch.batch["response_mask"]
        assert set(batch.batch.keys()) == {"input_ids", "attention_mask", "response_mask"}
        return DataProto.from_dict({"log_probs": -0.01 * ids[:, 1:] * mask})


class Engines:
    """One a worker; `shifts` says by how much each is off, at the second token of the third row."""

    def __init__(self, *shifts, differing=None, scores=True):
        self.shifts, self.differing, self.scores = shifts, differing, scores
        self.calls = 0

    def begin_to_score(self, rows):
        assert rows == ROWS
        self.calls += 1
        return lambda: [self._of_one(rows, shift) if self.scores else None for shift in self.shifts]

    def differing_weights(self):
        return [self.differing] * len(self.shifts)

    @staticmethod
    def _of_one(rows, shift):
        scored = [[log_prob(row, place) for place in range(1, len(row))] for row in rows]
        scored[2][1] += shift
        return scored


def make_check(engines, *, ranks=1, rollout_dtype="auto", **live_check) -> LiveCheck:
    config = PPOConfig(data=DataConfig(max_prompt_length=100, max_response_length=20))
    config.trainer.device = "cpu"
    rollout = config.actor_rollout_ref.rollout
    rollout.name, rollout.dtype = "hf", rollout_dtype
    for name, value in live_check.items():
        setattr(rollout.live_check, name, value)
    plan = replace(make_plan(config), chat_date=DATE)
    workers = SimpleNamespace(actor=Actor(ranks), rollouts=engines)
    return LiveCheck(config, plan, SimpleNamespace(sample_prompts=sample_prompts), workers)


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_what_agrees_passes_and_the_largest_difference_is_told_once(ranks):
    check = make_check(Engines(0.0, 0.002, -0.004), ranks=ranks)
    check.run(0)
    check.run(1)
    assert check.metrics() == {"training/live_check_diff": pytest.approx(0.004, abs=1e-5)}
    assert check.metrics() == {}


def test_a_difference_names_worker_row_token_size_tolerance_and_the_way_out():
    check = make_check(Engines(0.0, 0.25))
    # tokens 7, 8, 9 of row 2: the last has -0.09 in the trainer and 0.25 more in the engine
    with pytest.raises(UserError) as error:
        check.run(5)
    assert str(error.value) == (
        "after the weight sync of step 5 the engine of rollout worker 1 (hf) does not compute what "
        "the trainer does: token 2 of check prompt 2 has log-prob 0.1600 there and -0.0900 in the "
        "trainer, which is 0.2500 nats apart, more than "
        "actor_rollout_ref.rollout.live_check.tolerance=0.01 (float32): this is the first "
        "comparison, so either the engine computes this architecture in another way than "
        "transformers, or it loads weights under other names; use another engine "
        "(actor_rollout_ref.rollout.name), or, where you know and want the difference, raise the "
        "tolerance or set actor_rollout_ref.rollout.live_check.enable=false"
    )
    assert check.metrics() == {"training/live_check_diff": pytest.approx(0.25)}


@pytest.mark.parametrize(
    ("differing", "cause"),
    [
        (list("abcde"), "does not hold these tensors as they were sent: a, b, c and 2 more;"),
        (["a"], "does not hold these tensors as they were sent: a;"),
        ([], "holds every tensor as it was sent, so it computes something else"),
        (None, "they agreed at step 3, so new weights do not reach the engine"),
    ],
)
def test_the_likely_cause_is_what_the_engine_can_tell(differing, cause):
    engines = Engines(0.0, differing=differing)
    check = make_check(engines)
    check.run(3)
    engines.shifts = (1.0,)
    with pytest.raises(UserError, match=cause):
        check.run(4)


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_what_is_no_number_is_a_difference(broken):
    with pytest.raises(UserError, match="inf nats apart"):
        make_check(Engines(broken)).run(0)


def test_the_tolerance_is_that_of_the_coarser_dtype_or_the_one_asked_for():
    # the trainer computes in float32 on a CPU; 0.2 nats lie between 0.01 and 1
    assert TOLERANCES["float32"] < 0.2 < TOLERANCES["bfloat16"]
    make_check(Engines(0.2), rollout_dtype="bfloat16").run(0)
    make_check(Engines(0.2), tolerance=0.3).run(0)
    with pytest.raises(UserError, match=r"tolerance=0.1 \(bfloat16\)"):
        make_check(Engines(0.2), rollout_dtype="bfloat16", tolerance=0.1).run(0)


def test_an_engine_that_cannot_score_is_named_once(caplog):
    engines = Engines(0.0, scores=False)
    check = make_check(engines)
    with caplog.at_level(logging.WARNING):
        check.run(0)
        check.run(1)
    assert engines.calls == 1 and check.metrics() == {}
    (record,) = caplog.records
    assert "rollout.name=hf cannot score rows of tokens, so nothing compares" in record.getMessage()


def test_an_engine_that_scores_other_tokens_is_told_what_it_owes():
    engines = Engines(0.0)
    engines._of_one = lambda rows, shift: [[-1.0] * len(row) for row in rows]
    with pytest.raises(UserError, match=r"scored \[32, 32, 3, 16\] tokens .* \[31, 31, 2, 15\]"):
        make_check(engines).run(0)


def test_switched_off_it_asks_nobody():
    engines = Engines(9.0)
    make_check(engines, enable=False).run(0)
    assert engines.calls == 0


def test_rows_leave_room_for_a_token_in_a_short_context():
    check = make_check(Engines(0.0))
    check._config.data.max_prompt_length, check._config.data.max_response_length = 8, 4
    assert [len(row) for row in check._rows] == [11, 11, 3, 11]
    assert torch.equal(torch.tensor(check._rows[0]), torch.arange(11))
