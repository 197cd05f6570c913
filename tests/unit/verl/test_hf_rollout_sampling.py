"""Drawing tokens: inversion, greedy, top-k and top-p, and the log-probs that go with them."""

import math
from dataclasses import dataclass

import pytest
import torch

from verl.workers.rollout.sampling import SamplingBatch, sample

# probabilities of four words, not sorted
PROBS = torch.tensor([0.1, 0.4, 0.2, 0.3])


@dataclass
class Settings:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1


def draw(uniforms, *settings, logits=None):
    count = len(uniforms)
    settings = settings * count if len(settings) == 1 else settings
    logits = PROBS.log().expand(count, -1) if logits is None else logits
    batch = SamplingBatch.of(settings, torch.device("cpu"))
    return sample(logits, batch, torch.tensor(uniforms))


def test_inversion_by_hand():
    # cumulative 0.1, 0.5, 0.7, 1.0: the first one above the uniform number
    got = draw([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.6999, 0.7001, 0.999999], Settings())
    assert got.token_N.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert got.log_prob_N.tolist() == pytest.approx(PROBS[got.token_N].log().tolist(), abs=1e-6)


def test_frequencies_are_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(20_000, generator=generator).tolist()
    counts = torch.bincount(draw(uniforms, Settings()).token_N, minlength=4) / 20_000
    # standard error sqrt(0.4 * 0.6 / 20000) = 0.0035
    torch.testing.assert_close(counts, PROBS, atol=0.012, rtol=0)


def test_greedy_takes_the_best_with_the_plain_log_prob():
    got = draw([0.0, 0.99], Settings(temperature=0.0))
    assert got.token_N.tolist() == [1, 1]
    assert got.log_prob_N.tolist() == pytest.approx([math.log(0.4)] * 2, abs=1e-6)


def test_temperature_scales_the_logits():
    # squares 0.01 0.16 0.04 0.09, sum 0.30
    got = draw([0.5], Settings(temperature=0.5))
    assert got.token_N.tolist() == [1]  # cumulative 0.033, 0.567
    assert got.log_prob_N.item() == pytest.approx(math.log(0.16 / 0.30), abs=1e-6)


def test_top_k_keeps_the_best_and_their_plain_log_probs():
    # words 1 and 3: 0.4 / 0.7 = 0.571
    got = draw([0.0, 0.57, 0.572, 0.999999], Settings(top_k=2))
    assert got.token_N.tolist() == [1, 1, 3, 3]
    assert got.log_prob_N[0].item() == pytest.approx(math.log(0.4), abs=1e-6)


def test_top_p_keeps_the_fewest_that_reach_it():
    # 0.4 + 0.3 = 0.7 reaches 0.65, 0.4 alone does not
    assert set(draw([i / 50 for i in range(50)], Settings(top_p=0.65)).token_N.tolist()) == {1, 3}
    # 0.4 alone reaches 0.35
    assert set(draw([0.0, 0.5, 0.99], Settings(top_p=0.35)).token_N.tolist()) == {1}


def test_top_p_works_on_what_top_k_left():
    # of 0.4, 0.3, 0.2 (sum 0.9) 60 per cent is 0.54: words 1 and 3
    tokens = draw([i / 50 for i in range(50)], Settings(top_k=3, top_p=0.6)).token_N
    assert set(tokens.tolist()) == {1, 3}


def test_a_request_does_not_notice_its_neighbours():
    torch.manual_seed(0)
    logits = torch.randn(3, 50)
    plain, filtered, greedy = Settings(), Settings(0.7, top_p=0.5), Settings(0.0)
    together = draw([0.3, 0.6, 0.9], plain, filtered, greedy, logits=logits)
    for row, (uniform, settings) in enumerate([(0.3, plain), (0.6, filtered), (0.9, greedy)]):
        alone = draw([uniform], settings, logits=logits[row : row + 1])
        assert alone.token_N.item() == together.token_N[row].item()
        assert alone.log_prob_N.item() == together.log_prob_N[row].item()


def test_an_impossible_word_is_never_drawn():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf]]).expand(3, -1)
    assert draw([0.0, 0.5, 0.9999999], Settings(), logits=logits).token_N.tolist() == [1, 1, 1]
