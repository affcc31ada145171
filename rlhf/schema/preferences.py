"""Settings: fresh preference pairs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from rlhf.schema.setting import Positive, Rate, Section, ours, paper
from rlhf.schema.shared import Source


class PreferencesConfig(Section):
    """Two answers a prompt by different variants and temperatures, rated on four levels (3.2.1)."""

    annotator: Literal["oracle", "file", "judge"] = ours(
        "oracle",
        "the micro-world's oracle, people (rlhf annotate), or a judge model",
        "the only one that is always there",
    )
    ratings: str | None = ours(None, "file: folder where pairs wait and ratings come back", "no honest default")
    judge: str | None = ours(None, "judge: address of an OpenAI-compatible endpoint, up to /v1", "no honest default")
    judge_model: str | None = ours(None, "judge: name of the model there", "no honest default")
    data: tuple[Source, ...] = ours((), "prompts", "no honest default")
    helpfulness_prompts: Positive = ours(4000, "prompts of the helpfulness annotators, a round")
    safety_prompts: Positive = ours(2800, "prompts of the safety annotators, a round")
    test_prompts: Positive = paper(1000, "3.2.1", "prompts held out for testing, a round and domain")
    temperatures: tuple[Rate, ...] = ours(
        (0.7, 1.0, 1.3), "drawn per answer", "'varying the temperature' (3.2.1)", min_length=1
    )
    max_new_tokens: Positive = ours(512, "longest answer in tokens")

    @model_validator(mode="after")
    def _has_an_annotator(self) -> Self:
        needs = {"file": ("ratings",), "judge": ("judge", "judge_model")}.get(self.annotator, ())
        for name in needs:
            if getattr(self, name) is None:
                raise ValueError(f"annotator {self.annotator} needs {name}")
        if self.judge is not None and not self.judge.startswith(("http://", "https://")):
            raise ValueError(f"judge must be the address of an endpoint, http://... (got {self.judge})")
        return self
