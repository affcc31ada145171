"""The formulas of the recipe: tensors in, tensors out, no state, nothing imported but torch.

* margin       what a rating is worth, and the ranking loss of a reward model     (paper 3.2.2, equations 1 and 2)
* safety_loss  the auxiliary loss that teaches a score which side of 0.5 is safe  (3.2.2, A.3.3)
* piecewise    which of the two reward models speaks for a completion             (3.2.3)
* combine      other ways to make one score of two, to compare with                (ours)
* best_of      what the best of K samples is worth                               (3.2.3, Figures 7 and 8)
* logprobs     what a model thinks of the tokens that were chosen                 (3.2.3)
* kl           the penalty for leaving the reference, and rewards per token       (3.2.3, equation 4)
* whiten       mean 0 and variance 1                                              (3.2.3)
* gae          advantages and returns                                             (ours: the paper is silent)
* ppo          the clipped losses of policy and critic                            (3.2.3)
"""

from rlhf.functional.best_of import expected_at_max, expected_max, expected_median
from rlhf.functional.combine import lagrangian_score, next_multiplier, weighted_score
from rlhf.functional.gae import gae
from rlhf.functional.kl import exact_kl, kl_estimate, last_token, token_rewards
from rlhf.functional.logprobs import chosen_logprobs, entropy
from rlhf.functional.margin import MARGINS, margin_of, ranking_loss
from rlhf.functional.piecewise import piecewise_score
from rlhf.functional.ppo import PolicyStats, explained_variance, policy_loss, value_loss
from rlhf.functional.safety_loss import safety_loss
from rlhf.functional.whiten import Moments, moments, whiten

__all__ = [
    "MARGINS",
    "Moments",
    "PolicyStats",
    "chosen_logprobs",
    "entropy",
    "exact_kl",
    "expected_at_max",
    "expected_max",
    "expected_median",
    "explained_variance",
    "gae",
    "kl_estimate",
    "lagrangian_score",
    "last_token",
    "margin_of",
    "moments",
    "next_multiplier",
    "piecewise_score",
    "policy_loss",
    "ranking_loss",
    "safety_loss",
    "token_rewards",
    "value_loss",
    "weighted_score",
    "whiten",
]
