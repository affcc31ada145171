"""Settings: fresh preference pairs."""

from __future__ import annotations

from rlhf.schema.setting import Positive, Rate, Section, ours, paper
from rlhf.schema.shared import Source


class PreferencesConfig(Section):
    """Two answers a prompt by different variants and temperatures, rated on four levels (3.2.1)."""

    data: tuple[Source, ...] = ours((), "prompts", "no honest default")
    helpfulness_prompts: Positive = ours(4000, "prompts of the helpfulness annotators, a round")
    safety_prompts: Positive = ours(2800, "prompts of the safety annotators, a round")
    test_prompts: Positive = paper(1000, "3.2.1", "prompts held out for testing, a round and domain")
    temperatures: tuple[Rate, ...] = ours(
        (0.7, 1.0, 1.3), "drawn per answer", "'varying the temperature' (3.2.1)", min_length=1
    )
    max_new_tokens: Positive = ours(512, "longest answer in tokens")
