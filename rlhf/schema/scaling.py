"""Settings: safety data scaling."""

from __future__ import annotations

from rlhf.schema.setting import Positive, Rate, Share, ours, paper
from rlhf.schema.shared import Combine, FineTune, Source


class ScalingConfig(FineTune, Combine):
    """The same helpfulness data with more and more safety data (4.2.3): an experiment, which makes no policy."""

    data: tuple[Source, ...] = ours((), "prompts of the measurements", "no honest default")
    shares: tuple[Share, ...] = paper(
        (0.0, 0.01, 0.1, 0.25, 0.5, 1.0), "4.2.3", "shares of the safety data, a model each", min_length=2
    )
    prompts: Positive = ours(300, "prompts of the measurements: a third each ordinary, borderline, unsafe")
    temperature: Rate = ours(1.0, "of the measured answers", "what was trained")
    max_new_tokens: Positive = ours(512, "longest answer in tokens")
