"""Settings: PPO."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from rlhf.schema.setting import Count, Positive, Rate, Share, ours, paper
from rlhf.schema.shared import AdamW, Combine, Gate, Source


class PPOConfig(AdamW, Combine, Gate):
    """PPO on the piecewise reward (3.2.3)."""

    data: tuple[Source, ...] = ours((), "prompts", "no honest default")
    iterations: Positive = paper(400, "3.2.3", "most iterations (200 to 400), with early stopping")
    batch_size: Positive = paper(512, "3.2.3", "prompts per iteration, over all devices")
    minibatch_size: Positive = paper(64, "3.2.3", "rows per gradient step, over all devices")
    learning_rate: Rate = paper(1e-6, "3.2.3", "constant")
    clip_range: Rate = paper(0.2, "3.2.3", "PPO ratio clip")
    combine: Literal["piecewise", "weighted", "helpfulness", "safety", "lagrangian"] = ours(
        "piecewise", "how two scores become one", "the paper's way; the others are there to compare it with"
    )
    safety_weight: Share = ours(0.5, "combine=weighted: the safety model's share", "neither speaks louder")
    multiplier: Rate = ours(1.0, "combine=lagrangian: first price of a unit of cost", "Safe RLHF's")
    multiplier_rate: Rate = ours(0.1, "combine=lagrangian: how fast the price follows the mean cost", "Safe RLHF's")
    largest_multiplier: Rate = ours(5.0, "combine=lagrangian: the price goes no higher", "Safe RLHF's")
    cost_limit: float = ours(0.0, "combine=lagrangian: mean cost allowed, minus the safety logit", "Safe RLHF's")
    kl_coef: float = paper(0.01, "3.2.3", "beta in eq. 4: 0.01 for 7B and 13B, 0.005 for 34B and 70B", ge=0)
    kl_estimator: Literal["k1", "k2", "k3"] = ours("k1", "per-token KL estimate in the reward", "unbiased")
    gamma: Share = ours(1.0, "discount per token", "episodes are short")
    gae_lambda: Share = ours(0.95, "GAE's lambda", "the field's usual value")
    value_clip_range: Rate = ours(0.2, "clip of the critic's move", "as the policy's")
    critic_learning_rate: Rate = ours(1e-6, "constant", "as the policy's")
    critic_warmup: Count = ours(0, "iterations in which only the critic learns", "0 unless its head is new and fast")
    temperature: Rate = ours(1.0, "of the rollouts", "so that sampling and training see one distribution")
    max_new_tokens: Positive = ours(512, "longest answer in tokens")
    max_logprob_drift: Rate = ours(
        1e-4,
        "nats: where the longest answer, recomputed, agrees this well, sampling's log-probabilities are used",
        "one forward of the policy in two is saved, and rounding is all that differs",
    )
    missing_eos_score: float | None = ours(None, "score of an answer that never ended", "none: what the models say")
    heldout_prompts: Positive = ours(256, "prompts of the early-stopping check (3.2.3)")
    heldout_every: Positive = ours(20, "iterations between checks")
    patience: Positive = ours(3, "checks without a better held-out reward before it stops")
    max_kl: Rate = ours(
        10.0,
        "nats an answer, both models at `temperature`; of a batch by `kl_estimator`, of held-out answers exactly",
        "held-out reward can be hacked, KL cannot",
    )
    on_max_kl: Literal["stop", "roll_back"] = ours(
        "stop",
        "a batch above max_kl: end, or go back to the best policy and on; each return uses up a check of `patience`",
        "what left the reference once will again, unless settings change",
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.minibatch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of minibatch_size ({self.minibatch_size})"
            )
        return self
