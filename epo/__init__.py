"""EPO: entropy-regularised policy optimisation (arXiv:2509.22576).

An entropy bonus whose entropies are held inside a corridor around the policy's own past:

    L_H      = mean_j mean_t mean_i H[j,t,i]                          trajectory j, turn t, token i
    Hbar_W   = (1/k) * sum_{m<k} Hbar_m                               the past rollout steps m < k
    P[j,t,i] = relu(kappa_l*Hbar_W - H) + relu(H - kappa_r*Hbar_W)    0 inside the corridor
    L_smooth = mean_j mean_t mean_i alpha*P[j,t,i]                    0 at k = 0
    beta_k   = 1 + exp(-gamma * k / floor(K/2))                       of K steps
    L_EPO    = L_policy - lambda * (L_H - beta_k * L_smooth)          minimised

Reading order: `history` (Hbar), `corridor` (P), `schedule` (beta), `regularizer` (the term of
the loss, on the workers), `plugin` (the state between steps, on the driver), `config`. Needs torch
and nothing else.
"""

from epo.config import EPOConfig, validate
from epo.history import EntropyHistory
from epo.plugin import EPOHook, EPOPlugin, build
from epo.regularizer import EPORegularizer

__all__ = [
    "EPOConfig",
    "EPOHook",
    "EPOPlugin",
    "EPORegularizer",
    "EntropyHistory",
    "build",
    "validate",
]
