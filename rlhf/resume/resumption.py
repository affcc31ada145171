"""Whether what a killed step left may be gone on from: only if it was being made from the same. Torch-free."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf.checkpoint import read_manifest, resumable, write_manifest
from rlhf.errors import MissingError
from rlhf.planning.decision import changes
from rlhf.planning.steps import Step


def prepare(out: Path, step: Step, about: Mapping[str, Any], *, accept_code: bool, say: Callable[[str], None]) -> str:
    """The fingerprint that saves in `out/resume` must bear; what was made from anything else is cleared, and said.

    With `accept_code` a step whose code alone has changed goes on, under the fingerprint it began with.
    """
    resume = out / "resume"
    key = str(about["fingerprint"])
    if resumable(out):
        try:
            begun = read_manifest(resume)
        except MissingError:
            return key  # every save bears the fingerprint itself
        if begun["fingerprint"] == key:
            return key
        reasons = changes(step, begun, about)
        if accept_code and not reasons:
            say(f"{step.name} goes on with other code, accepted with --reuse")
            return str(begun["fingerprint"])
        say(f"{step.name} starts over: {(reasons or ['its code changed'])[0]} since it was interrupted")
    shutil.rmtree(resume, ignore_errors=True)
    resume.mkdir()
    write_manifest(resume, about)
    return key
