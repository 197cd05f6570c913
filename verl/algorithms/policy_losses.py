"""The losses of actor and critic: per-token losses first, then their reduction to a number.

Shapes: B rows, T response tokens. A `*_loss` function maps log-probs to a `TokenLoss`; what its
decorator registers reads the config, calls it and aggregates.

`**normalizers` are those of `agg_loss`. Given the counts of a whole mini-batch
(`loss_normalizers`), loss and metrics are this micro-batch's share: add them up over micro-batches
and ranks.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from verl.algorithms.aggregation import agg_loss
from verl.utils.importing import resolve_choice
from verl.utils.torch_functional import masked_mean

PolicyLoss = Callable[..., tuple[Tensor, dict[str, float]]]
Function = TypeVar("Function", bound=Callable)

# exp(20) is 5e8: a larger log-ratio is a broken policy, not a number to train on
MAX_LOG_RATIO = 20.0


class TokenLoss(NamedTuple):
    """`loss_BT`: (B, T) with gradient. `metrics`: names -> (B, T) per-token figures to average."""

    loss_BT: Tensor
    metrics: dict[str, Tensor]


# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    ("actor/pg_clipfrac", "share", "mean", "tokens whose ratio the clip took out of the gradient"),
    (
        "actor/pg_clipfrac_lower",
        "share",
        "mean",
        "tokens with a negative advantage whose loss is cut",
    ),
    ("actor/ppo_kl", "nats", "mean", "mean of -log ratio: KL of the old policy to the updated one"),
)


class ClipRange(NamedTuple):
    """The ratio is kept in [1 - low, 1 + high]."""

    low: float
    high: float

    @classmethod
    def of(cls, config: Any) -> "ClipRange":
        """`clip_ratio`, or `clip_ratio_low` and `clip_ratio_high` where given; default 0.2."""
        if config is None:
            return cls(0.2, 0.2)
        low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
        high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
        return cls(low, high)


POLICY_LOSSES: dict[str, PolicyLoss] = {}
DEFAULT_REDUCTION = "token-mean"
_REDUCTION = "reduction"


def register_policy_loss(name: str, reduction: str | None = None) -> Callable[[Function], Function]:
    """Decorator: a policy loss, with the arguments that `policy_loss` gives one, under a name.

    `reduction`: the `loss_agg_mode` that the loss is defined for; None: any.

    Raises:
        ValueError: the name belongs to another function.
    """

    def add(function: Function) -> Function:
        setattr(function, _REDUCTION, reduction)
        if POLICY_LOSSES.setdefault(name, function) is not function:
            raise ValueError(
                f"policy loss '{name}' is already registered as {POLICY_LOSSES[name]!r}; "
                "choose another name"
            )
        return function

    return add


def policy_loss(
    name: str, reduction: str | None = None
) -> Callable[[Callable[..., TokenLoss]], Callable[..., TokenLoss]]:
    """Decorator: makes a loss of tokens the policy loss of this name.

    Of the settings (`response_mask`, `clip`, `clip_ratio_c`) the token loss gets those it takes.
    """

    def add(token_loss: Callable[..., TokenLoss]) -> Callable[..., TokenLoss]:
        taken = inspect.signature(token_loss).parameters

        @register_policy_loss(name, reduction)
        def compute(
            old_log_prob: Tensor,
            log_prob: Tensor,
            advantages: Tensor,
            response_mask: Tensor,
            loss_agg_mode: str = reduction or DEFAULT_REDUCTION,
            config: Any = None,
            rollout_is_weights: Tensor | None = None,
            **normalizers: Any,
        ) -> tuple[Tensor, dict[str, float]]:
            """
            Args:
                old_log_prob, log_prob, advantages, response_mask: (B, T).
                config: the actor's: `clip_ratio`, `clip_ratio_low`, `clip_ratio_high`,
                    `clip_ratio_c` (None: 0.2, 0.2, 0.2, 3.0).
                rollout_is_weights: (B, T) importance weights, where the rollout engine's
                    probabilities differ from the trainer's.

            Returns:
                (0-d loss, metrics).
            """
            offered = {
                "response_mask": response_mask,
                "clip": ClipRange.of(config),
                "clip_ratio_c": 3.0 if config is None else config.clip_ratio_c,
            }
            loss = token_loss(
                old_log_prob,
                log_prob,
                advantages,
                **{key: value for key, value in offered.items() if key in taken},
            )
            mode = reduction or loss_agg_mode
            return _aggregate(loss, response_mask, mode, rollout_is_weights, normalizers)

        return token_loss

    return add


def find_policy_loss(choice: str) -> PolicyLoss:
    """The policy loss of a name, or at the import path `package.module:function`.

    Raises:
        UserError: there is none.
    """
    return resolve_choice("actor_rollout_ref.actor.policy_loss.loss_mode", choice, POLICY_LOSSES)


def own_reduction(function: PolicyLoss) -> str | None:
    """The reduction that the loss states; None where any will do."""
    return getattr(function, _REDUCTION, None)


def chosen_reduction(function: PolicyLoss, asked: str | None) -> str:
    """The `loss_agg_mode` of a run: the loss's own, else the one that is asked for."""
    return own_reduction(function) or asked or DEFAULT_REDUCTION


@policy_loss("vanilla")
def ppo_clip_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    *,
    clip: ClipRange,
    clip_ratio_c: float = 3.0,
) -> TokenLoss:
    """PPO's clipped surrogate (arXiv:1707.06347, eq. 7) with dual clip (arXiv:1912.09729).

    With r = exp(log_prob - old_log_prob): max(-A*r, -A*clip(r, 1-low, 1+high)), and for A < 0 no
    more than -A*c, so that one token with a huge ratio cannot dominate.

    Raises:
        ValueError: `clip_ratio_c` is not larger than 1.
    """
    if clip_ratio_c <= 1.0:
        raise ValueError(
            f"clip_ratio_c={clip_ratio_c} would clip on-policy tokens; it must be larger than 1.0"
        )
    log_ratio_BT = _log_ratio(log_prob, old_log_prob)
    ratio_BT = log_ratio_BT.exp()
    plain_BT = -advantages * ratio_BT
    clipped_BT = -advantages * ratio_BT.clamp(1.0 - clip.low, 1.0 + clip.high)
    pessimistic_BT = torch.maximum(plain_BT, clipped_BT)
    ceiling_BT = -advantages * clip_ratio_c
    negative_BT = advantages < 0
    loss_BT = torch.where(negative_BT, torch.minimum(pessimistic_BT, ceiling_BT), pessimistic_BT)
    metrics = {
        "actor/pg_clipfrac": clipped_BT > plain_BT,
        "actor/ppo_kl": -log_ratio_BT,
        "actor/pg_clipfrac_lower": negative_BT & (pessimistic_BT > ceiling_BT),
    }
    return TokenLoss(loss_BT, metrics)


@policy_loss("gspo", reduction="seq-mean-token-mean")
def gspo_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip: ClipRange,
) -> TokenLoss:
    """GSPO-token (arXiv:2507.18071): one clipped ratio a row, the geometric mean of its tokens'."""
    log_ratio_BT = log_prob - old_log_prob
    row_log_ratio_B1 = _row_mean(log_ratio_BT.detach(), response_mask).unsqueeze(-1)
    # the value is the row's ratio, the gradient flows through each token's log-prob
    ratio_BT = (log_prob - log_prob.detach() + row_log_ratio_B1).clamp(max=10.0).exp()
    plain_BT = -advantages * ratio_BT
    clipped_BT = -advantages * ratio_BT.clamp(1.0 - clip.low, 1.0 + clip.high)
    metrics = {"actor/pg_clipfrac": clipped_BT > plain_BT, "actor/ppo_kl": -log_ratio_BT}
    return TokenLoss(torch.maximum(plain_BT, clipped_BT), metrics)


@policy_loss("geo_mean", reduction="seq-mean-token-mean")
def geo_mean_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip: ClipRange,
) -> TokenLoss:
    """GMPO (arXiv:2507.20673): the log-ratios are clipped a token and averaged a row.

    The row's loss stands at each of its tokens; aggregate with ``seq-mean-token-mean``.
    """
    log_ratio_BT = log_prob - old_log_prob
    clamped_BT = log_ratio_BT.clamp(-clip.low, clip.high)
    sign_BT = advantages.sign()
    pessimistic_BT = sign_BT * torch.minimum(sign_BT * log_ratio_BT, sign_BT * clamped_BT)
    ratio_B = _row_mean(pessimistic_BT, response_mask).exp()
    loss_B = -_row_mean(advantages, response_mask) * ratio_B
    was_clipped_BT = log_ratio_BT != clamped_BT
    metrics = {
        "actor/pg_clipfrac": was_clipped_BT & (advantages > 0),
        "actor/ppo_kl": -log_ratio_BT,
        "actor/pg_clipfrac_lower": was_clipped_BT & (advantages < 0),
    }
    return TokenLoss(loss_B.unsqueeze(-1).expand_as(log_prob), metrics)


@policy_loss("cispo")
def cispo_loss(
    old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, *, clip: ClipRange
) -> TokenLoss:
    """CISPO (arXiv:2506.13585): -sg(clip(r)) * A * log_prob; clipped tokens keep a gradient."""
    log_ratio_BT = _log_ratio(log_prob, old_log_prob)
    ratio_BT = log_ratio_BT.detach().exp()
    weight_BT = ratio_BT.clamp(1.0 - clip.low, 1.0 + clip.high)
    metrics = {"actor/pg_clipfrac": ratio_BT != weight_BT, "actor/ppo_kl": -log_ratio_BT}
    return TokenLoss(-weight_BT * advantages * log_prob, metrics)


@policy_loss("gpg")
def gpg_loss(old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor) -> TokenLoss:
    """The plain policy gradient (arXiv:2504.02546), -A * log_prob, without an old policy."""
    return TokenLoss(-advantages * log_prob, {})


def value_loss(
    vpreds: Tensor, returns: Tensor, values: Tensor, cliprange_value: float
) -> TokenLoss:
    """Half the larger squared error of the prediction and of its clip to `values` +- the range."""
    clipped_BT = vpreds.clamp(values - cliprange_value, values + cliprange_value)
    plain_error_BT = (vpreds - returns).square()
    clipped_error_BT = (clipped_BT - returns).square()
    loss_BT = 0.5 * torch.maximum(plain_error_BT, clipped_error_BT)
    return TokenLoss(loss_BT, {"critic/vf_clipfrac": clipped_error_BT > plain_error_BT})


def compute_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    cliprange: float | None = None,
    cliprange_low: float | None = None,
    cliprange_high: float | None = None,
    clip_ratio_c: float = 3.0,
    loss_agg_mode: str = "token-mean",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`ppo_clip_loss` with the clip ranges as arguments.

    Returns:
        (pg_loss, pg_clipfrac, ppo_kl, pg_clipfrac_lower), all 0-d.
    """
    low = cliprange if cliprange_low is None else cliprange_low
    high = cliprange if cliprange_high is None else cliprange_high
    assert low is not None and high is not None, "give cliprange, or both of its sides"
    clip = ClipRange(low, high)
    loss = ppo_clip_loss(old_log_prob, log_prob, advantages, clip=clip, clip_ratio_c=clip_ratio_c)
    pg_loss = agg_loss(loss.loss_BT, response_mask, loss_agg_mode)
    mean = {name: masked_mean(x_BT.float(), response_mask) for name, x_BT in loss.metrics.items()}
    return pg_loss, mean["actor/pg_clipfrac"], mean["actor/ppo_kl"], mean["actor/pg_clipfrac_lower"]


def compute_value_loss(
    vpreds: Tensor,
    returns: Tensor,
    values: Tensor,
    response_mask: Tensor,
    cliprange_value: float,
    loss_agg_mode: str = "token-mean",
    **normalizers: Any,
) -> tuple[Tensor, Tensor]:
    """`value_loss`, aggregated.

    Args:
        vpreds, returns, values, response_mask: (B, T); `values` are those of the rollout.

    Returns:
        (vf_loss, vf_clipfrac), both 0-d.
    """
    loss = value_loss(vpreds, returns, values, cliprange_value)
    vf_loss = agg_loss(loss.loss_BT, response_mask, loss_agg_mode, **normalizers)
    return vf_loss, _token_mean(loss.metrics["critic/vf_clipfrac"], response_mask, normalizers)


def _log_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    return (log_prob - old_log_prob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _row_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return (x_BT * mask_BT).sum(dim=-1) / mask_BT.sum(dim=-1).clamp(min=1)


def _token_mean(x_BT: Tensor, mask_BT: Tensor, normalizers: dict[str, Any]) -> Tensor:
    count = normalizers.get("batch_num_tokens")
    return agg_loss(x_BT.detach().float(), mask_BT, "token-mean", batch_num_tokens=count)


def _aggregate(
    loss: TokenLoss,
    mask_BT: Tensor,
    loss_agg_mode: str,
    rollout_is_weights: Tensor | None,
    normalizers: dict[str, Any],
) -> tuple[Tensor, dict[str, float]]:
    loss_BT = loss.loss_BT if rollout_is_weights is None else loss.loss_BT * rollout_is_weights
    scalar = agg_loss(loss_BT, mask_BT, loss_agg_mode, **normalizers)
    if not loss.metrics:
        return scalar, {}
    means = torch.stack([_token_mean(x_BT, mask_BT, normalizers) for x_BT in loss.metrics.values()])
    return scalar, dict(zip(loss.metrics, means.tolist(), strict=True))  # one device sync for all
