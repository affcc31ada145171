"""Groups of settings that several stages have: sources of data, the optimizer, fine-tuning, combining two scores."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from rlhf.data.types import Domain
from rlhf.schema.setting import Positive, Rate, Section, Share, ours, paper


class Source(Section):
    """A set of data: a name listed in data/sources.yaml, or the embedded `microworld`."""

    name: str = ours(..., "a key of data/sources.yaml, or microworld", "no honest default")
    path: str | None = ours(None, "a local file or folder to read instead of the hub", "the hub is the usual place")
    split: str = ours("train", "split of the set", "the usual name")
    limit: Positive | None = ours(None, "read this many rows", "all of them")
    kind: Domain = ours("helpfulness", "which reward model's domain", "the larger one")
    use: Literal["split", "train", "test"] | None = ours(
        None,
        "split it by prompt, train on all of it, or test with all of it",
        "none: prompts and pairs are split, demonstrations are all trained on",
    )
    revision: str | None = ours(None, "commit on the hub", "the one in data/sources.yaml")
    on_bad_row: Literal["error", "drop"] = ours("error", "malformed rows stop the stage, or are dropped and counted")


class RulesAt(Section):
    """Instructions and the rules that keep them, which need no judge; the micro-world has its oracle instead."""

    path: str | None = ours(None, "rows of instructions and their rules, as IFEval's; none: eleven of ours", "no judge")


class AdamW(Section):
    """The optimizer of every fine-tune: 'the same optimizer parameters as for the base model' (2.2, 3.2.2)."""

    beta1: Share = paper(0.9, "2.2", "AdamW beta1")
    beta2: Share = paper(0.95, "2.2", "AdamW beta2")
    eps: Rate = paper(1e-5, "2.2", "AdamW epsilon")
    weight_decay: float = paper(0.1, "2.2", "AdamW weight decay", ge=0)
    max_grad_norm: Rate = paper(1.0, "2.2", "gradients are clipped to this norm")
    microbatch_size: Positive | None = ours(None, "rows per forward on one device", "memory only, no effect on numbers")

    @model_validator(mode="after")
    def _microbatches(self) -> Self:
        name = "minibatch_size" if hasattr(self, "minibatch_size") else "batch_size"
        rows = getattr(self, name, None)
        if rows and self.microbatch_size and rows % self.microbatch_size:
            raise ValueError(f"{name} ({rows}) must be a multiple of microbatch_size ({self.microbatch_size})")
        return self


class FineTune(AdamW):
    """Supervised fine-tuning, shared by sft, rejection and gatt ('similar to SFT', 3.2.3)."""

    epochs: Positive = paper(2, "3.1", "passes over the rows")
    learning_rate: Rate = paper(2e-5, "3.1", "initial learning rate, cosine schedule")
    batch_size: Positive = paper(64, "3.1", "packed rows per step, over all devices")
    final_lr_ratio: Share = ours(0.0, "cosine ends at this share of the learning rate")
    warmup_ratio: Share = ours(0.03, "share of the steps that warm up", "as for the reward models (3.2.2)")
    row_length: Positive | None = ours(None, "tokens per packed row", "model.max_length: rows are filled (3.1)")


class Gate(Section):
    """When a stage refuses to learn from reward models (ours; 3.2.2 calls their accuracy a proxy of the result)."""

    reward_gate: Literal["refuse", "warn", "ignore"] = ours(
        "refuse", "what happens below `min_accuracy`", "a policy that climbs a coin's score learns nothing"
    )
    min_accuracy: Share = ours(0.55, "least accuracy of each reward model on its domain's test pairs", "chance is 0.5")


class Combine(Section):
    """How two scores become one (3.2.3)."""

    safety_threshold: float = paper(0.15, "3.2.3", "below this probability the safety model decides", gt=0, lt=1)
