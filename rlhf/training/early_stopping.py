"""Early stopping (paper 3.2.3): which iteration was best on held-out prompts, and whether to go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from rlhf.schema import PPOConfig

KEPT = ("best_reward", "best_weights", "best_iteration", "bad")


class EarlyStopping(ABC):
    """A check now and then, patience for those without a better reward, and a ceiling on KL.

    A policy is the best only under the ceiling: a held-out reward can be gamed, KL cannot. A policy above it ends the
    run, or gives way to the best one, which costs as much patience as a check without a better reward.
    """

    def __init__(self, config: PPOConfig) -> None:
        self.config = config
        self.best_reward, self.best_iteration, self.bad = float("-inf"), 0, 0
        self.best_weights: dict[str, Any] | None = None
        self.why = f"all {config.iterations} iterations"

    @abstractmethod
    def check(self, iteration: int) -> None:
        """Measure the policy on held-out prompts, and `judge` it."""

    @abstractmethod
    def weights(self) -> dict[str, Any]:
        """A copy of the policy as it is now."""

    @abstractmethod
    def roll_back(self, why: str) -> None:
        """Make the policy the best one again, and say why."""

    def judge(self, iteration: int, *, reward: float, kl: float) -> None:
        """Keep the policy if it is the best so far."""
        if reward > self.best_reward and kl <= self.config.max_kl:
            self.best_reward, self.best_iteration, self.bad = reward, iteration, 0
            self.best_weights = self.weights()
        else:
            self.bad += 1

    def stop(self, iteration: int, *, kl: float) -> bool:
        """After an iteration with this KL on its batch: is it enough?"""
        config = self.config
        if not kl <= config.max_kl:  # a KL that is not a number is too much, too
            too_much = f"KL of {kl:.1f} nats an answer is above ppo.max_kl ({config.max_kl:g})"
            if config.on_max_kl == "stop":
                self.why = too_much
                return True
            self.roll_back(too_much)
            self.bad += 1
        elif iteration % config.heldout_every == 0 or iteration == config.iterations:
            self.check(iteration)
        if self.bad >= config.patience:
            self.why = f"no better held-out reward in {config.patience} checks"
        return self.bad >= config.patience

    def state_dict(self) -> dict[str, Any]:
        """What a killed run goes on with."""
        return {name: getattr(self, name) for name in KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)
