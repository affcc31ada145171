"""Settings: what is held out of public sets, and what becomes of rows that are too long."""

from __future__ import annotations

from typing import Literal

from rlhf.schema.setting import Section, Share, ours


class DataConfig(Section):
    """What all stages do alike with data, or one would train on what another tests (3.2.1)."""

    test_share: Share = ours(
        0.1, "share of the prompts of public sets held out for testing", "they hold no batch of 1000"
    )
    too_long: Literal["error", "drop", "truncate_left"] = ours(
        "error", "a row longer than the context stops the stage, is left out, or loses the start of its prompt"
    )
