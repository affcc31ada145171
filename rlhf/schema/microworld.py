"""What the embedded world asks for."""

from __future__ import annotations

from pydantic import field_validator

from rlhf.schema.setting import Section, Share, ours

KINDS = ("safe", "border", "unsafe")
"""What a prompt of the micro-world can be."""


class MicroworldConfig(Section):
    """What the embedded world asks for; without effect on recipes that bring their own data."""

    instruction_share: Share = ours(0.5, "share of prompts with an instruction", "enough to learn to follow them")
    caution_share: Share = ours(
        0.0, "share of demonstrations under a safety preprompt", "only distill has a use for what they teach"
    )
    helpfulness_mix: dict[str, float] = ours(
        {"safe": 0.64, "border": 0.20, "unsafe": 0.16}, "kinds of helpfulness prompts", "mostly ordinary ones"
    )
    safety_mix: dict[str, float] = ours(
        {"safe": 0.20, "border": 0.25, "unsafe": 0.55}, "kinds of safety prompts", "mostly adversarial ones (3.2.1)"
    )

    @field_validator("helpfulness_mix", "safety_mix")
    @classmethod
    def _shares(cls, mix: dict[str, float]) -> dict[str, float]:
        """A kind that is not mentioned has no share."""
        if unknown := sorted(set(mix) - set(KINDS)):
            raise ValueError(f"there is no kind {', '.join(unknown)}; the kinds of prompts are {', '.join(KINDS)}")
        if min(mix.values(), default=0.0) < 0 or not sum(mix.values()) > 0:
            raise ValueError(
                f"shares must be 0 or more and not all 0 (got {', '.join(f'{k}: {mix[k]:g}' for k in mix)})"
            )
        return {kind: mix.get(kind, 0.0) for kind in KINDS}
