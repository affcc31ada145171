"""The embedded default: a small language with facts, an oracle that judges it, and annotators with human failings.

``language`` and ``instructions`` say what can be said, ``oracle`` what a reply is worth, ``annotator`` how people rate
it, and ``corpus`` writes the data sets.
"""

from rlhf.microworld.annotator import annotate
from rlhf.microworld.corpus import (
    DemonstrationMix,
    conversations,
    demonstrations,
    is_creative,
    pretraining_texts,
    prompts,
    vocabulary,
)
from rlhf.microworld.instructions import short_form
from rlhf.microworld.oracle import Verdict, ideal, judge

__all__ = [
    "DemonstrationMix",
    "Verdict",
    "annotate",
    "conversations",
    "demonstrations",
    "ideal",
    "is_creative",
    "judge",
    "pretraining_texts",
    "prompts",
    "short_form",
    "vocabulary",
]
