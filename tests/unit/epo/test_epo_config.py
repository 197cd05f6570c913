"""Every setting that cannot work is refused with its name and a remedy."""

from dataclasses import replace

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

from epo import EPOConfig, validate


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"enable": True, "kappa_l": 0.5, "kappa_r": 1.5, "alpha": 0.1},
        {"kappa_l": 1.0, "kappa_r": 1.0},
        {"reference": "sliding_window", "window": 1},
        {"reference": "sliding_window"},
        {"reference": "ema", "ema_decay": 0.0},
        {"reference": "per_turn", "penalty": "indicator", "schedule": "growing"},
        {"aggregation": "token_mean", "from_turn": 25, "start_step": 60},
        {"entropy_coeff": 0.0},
    ],
)
def test_accepts(changes):
    assert validate(replace(EPOConfig(), **changes)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kappa_l": 1.5, "kappa_r": 0.5},
            r"kappa_l=1\.5 is above epo\.kappa_r=0\.5.*give the floor",
        ),
        (
            {"alpha": -0.1},
            r"epo\.alpha=-0\.1 makes no sense; it has to be a finite number of at least 0",
        ),
        ({"entropy_coeff": -1e-3}, r"epo\.entropy_coeff=-0\.001"),
        ({"gamma": float("nan")}, r"epo\.gamma=nan"),
        ({"kappa_r": float("inf")}, r"epo\.kappa_r=inf"),
        ({"from_turn": -1}, r"epo\.from_turn=-1"),
        ({"start_step": -5}, r"epo\.start_step=-5"),
        ({"penalty": "l2"}, r"epo\.penalty=l2 is unknown; available: relu, indicator"),
        ({"reference": "median"}, r"epo\.reference=median is unknown.*per_turn"),
        ({"schedule": "cosine"}, r"epo\.schedule=cosine is unknown.*growing"),
        ({"aggregation": "seq"}, r"epo\.aggregation=seq is unknown.*token_mean"),
        ({"window": 5}, r"epo\.window=5 has no effect.*set epo\.reference=sliding_window"),
        ({"ema_decay": 0.5}, r"epo\.ema_decay=0\.5 has no effect.*set epo\.reference=ema"),
        (
            {"reference": "sliding_window", "window": 0},
            r"epo\.window=0 makes no sense; .* at least 1",
        ),
        (
            {"reference": "ema", "ema_decay": 1.0},
            r"epo\.ema_decay=1\.0 makes no sense; it has to be at least 0 and below 1",
        ),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        validate(replace(EPOConfig(), **changes))


def test_is_a_hydra_schema():
    schema = OmegaConf.structured(EPOConfig)
    merged = OmegaConf.merge(schema, {"alpha": 0.1, "window": 3})
    assert OmegaConf.to_object(merged) == EPOConfig(alpha=0.1, window=3)
    with pytest.raises(ConfigKeyError):
        OmegaConf.merge(schema, {"alhpa": 0.1})
    with pytest.raises(ValidationError):
        OmegaConf.merge(schema, {"alpha": "high"})
