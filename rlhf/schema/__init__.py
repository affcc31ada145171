"""Every setting of the recipe: its type, its default, and where that default comes from.

A default is the paper's value and names its section, or it is ours and says why. `rlhf show` prints both.
Models are frozen and refuse unknown keys; checks that need two settings at once live beside them.
Torch-free, so that help, plan and typos answer at once.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from rlhf.schema.base import BaseConfig
from rlhf.schema.data import DataConfig
from rlhf.schema.distill import DistillConfig
from rlhf.schema.evaluate import EvaluateConfig
from rlhf.schema.gatt import GAttConfig
from rlhf.schema.generation import GenerationConfig
from rlhf.schema.microworld import MicroworldConfig
from rlhf.schema.model import ModelConfig
from rlhf.schema.ppo import PPOConfig
from rlhf.schema.preferences import PreferencesConfig
from rlhf.schema.rejection import RejectionConfig
from rlhf.schema.reward import RewardConfig
from rlhf.schema.scaling import ScalingConfig
from rlhf.schema.setting import RUN, Count, Duration, Positive, Section, ours, paper
from rlhf.schema.sft import SFTConfig
from rlhf.schema.shared import AdamW, Combine, FineTune, Gate, Source

__all__ = [
    "MICROWORLD",
    "STAGES",
    "AdamW",
    "BaseConfig",
    "Combine",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "FineTune",
    "GAttConfig",
    "Gate",
    "GenerationConfig",
    "MicroworldConfig",
    "ModelConfig",
    "PPOConfig",
    "PreferencesConfig",
    "Recipe",
    "RejectionConfig",
    "RewardConfig",
    "SFTConfig",
    "ScalingConfig",
    "Section",
    "Source",
]

STAGES = ("base", "sft", "preferences", "reward", "rejection", "distill", "gatt", "ppo", "scaling", "evaluate")
WHEN_LISTED = ("distill", "scaling")  # part of a recipe only where it lists them
MICROWORLD = "microworld"


class Recipe(Section):
    """One run: which stages, how many rounds, and the settings of each."""

    run: str = ours("run", "folder under runs/", "the config file's name", pattern=RUN)
    seed: Count = ours(0, "every random number derives from it and the step's name", "any will do")
    rounds: Positive = paper(5, "3.2.3", "RLHF-V1 to V5: preferences, reward models and rejection sampling, anew")
    refresh: bool = paper(True, "3.2.1", "fresh pairs and reward models every round, or the first round's for all")
    stages: tuple[Literal[STAGES], ...] = ours(  # type: ignore[valid-type]
        tuple(name for name in STAGES if name not in WHEN_LISTED),
        "stages of this recipe, in order",
        "all but distill, which asks for a policy that heeds preprompts, and scaling, an experiment",
        min_length=1,
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = ours("auto", "online when logged in, offline otherwise")
    tensorboard: bool = ours(False, "event files for TensorBoard, too, in runs/RUN/tensorboard", "an extra package")
    trackio: bool = ours(False, "a Trackio project, too, in runs/RUN/trackio", "an extra package")
    on_disk_full: Literal["pause", "stop"] = ours(
        "pause", "on a full disk or quota: wait half an hour for room, or stop", "a run costs more than a wait"
    )
    threads: Positive | None = ours(None, "CPU threads of torch", "all cores")
    save_every: Duration = ours(
        "10min", "time between saves: 90s, 10min, 1h; 0s after every step", "so much can be lost"
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    microworld: MicroworldConfig = MicroworldConfig()
    generation: GenerationConfig = GenerationConfig()
    base: BaseConfig = BaseConfig()
    sft: SFTConfig = SFTConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    reward: RewardConfig = RewardConfig()
    rejection: RejectionConfig = RejectionConfig()
    distill: DistillConfig = DistillConfig()
    gatt: GAttConfig = GAttConfig()
    ppo: PPOConfig = PPOConfig()
    scaling: ScalingConfig = ScalingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _fits_the_context(self) -> Self:
        """Of the stages that run: a prompt needs room before its answer, and no row is longer than the context."""
        limit = self.model.max_length
        for stage in self.stages:
            longest = getattr(getattr(self, stage), "max_new_tokens", 0)
            if longest >= limit:
                raise ValueError(f"{stage}.max_new_tokens ({longest}) must be less than model.max_length ({limit})")
        if "base" in self.stages and self.model.path is None:
            lengths = {"row_length": self.base.row_length}
            if self.base.extension_steps:
                lengths["extension_length"] = self.base.extension_length
            for name, length in lengths.items():
                if length > limit:
                    raise ValueError(f"base.{name} ({length}) must not be more than model.max_length ({limit})")
        return self
