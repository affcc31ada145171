"""Settings: supervised fine-tuning."""

from __future__ import annotations

from rlhf.schema.setting import ours
from rlhf.schema.shared import FineTune, Source


class SFTConfig(FineTune):
    """Supervised fine-tuning on demonstrations (3.1)."""

    data: tuple[Source, ...] = ours((), "demonstrations", "no honest default")
