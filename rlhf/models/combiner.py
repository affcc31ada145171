"""The score that PPO climbs, out of the scores of two reward models, in the way that `ppo.combine` names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rlhf.functional.combine import lagrangian_score, next_multiplier, weighted_score
from rlhf.models.reward_models import Scores
from rlhf.schema import PPOConfig


@dataclass
class Combiner:
    """One score out of two. Only the Lagrangian remembers anything: what a unit of cost is worth by now."""

    config: PPOConfig = field(default_factory=PPOConfig)
    multiplier: float = 1.0

    @classmethod
    def of(cls, config: PPOConfig) -> Combiner:
        return cls(config, config.multiplier)

    def __call__(self, scores: Scores) -> Tensor:
        """[N] in logits, not yet whitened."""
        helpfulness, safety = scores.helpfulness, scores.safety
        match self.config.combine:
            case "piecewise":
                return scores.combined
            case "weighted":
                return weighted_score(helpfulness, safety, safety_weight=self.config.safety_weight)
            case "helpfulness":
                return helpfulness
            case "safety":
                return safety
            case "lagrangian":
                return lagrangian_score(helpfulness, safety, multiplier=self.multiplier)

    def follow(self, mean_safety: float) -> dict[str, float]:
        """After a batch: the Lagrangian's price of cost moves with the mean cost; others have nothing to learn."""
        if self.config.combine != "lagrangian":
            return {}
        used = self.multiplier
        self.multiplier = next_multiplier(
            used,
            -mean_safety,
            cost_limit=self.config.cost_limit,
            rate=self.config.multiplier_rate,
            largest=self.config.largest_multiplier,
        )
        return {"reward/multiplier": used}

    def state_dict(self) -> dict[str, Any]:
        """What a killed run goes on with."""
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.multiplier = state_dict["multiplier"]
