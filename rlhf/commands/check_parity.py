"""`rlhf check parity`: an export against the policy it was made from."""

from __future__ import annotations

from pathlib import Path

from rlhf.checkpoint import shown
from rlhf.commands.export import chosen_policy, default_folder
from rlhf.commands.request import Request
from rlhf.errors import MissingError


def main(request: Request) -> int:
    """rlhf check parity."""
    loaded = request.load()
    artefact = chosen_policy(request, loaded)
    folder = Path(request.options.get("path") or default_folder(loaded, artefact)).expanduser()
    if not folder.is_dir():
        raise MissingError(f"{shown(folder)} does not exist", hints=["make it: rlhf export"])

    from rlhf.export.parity import compare, merged_apart

    findings = compare(artefact, folder, loaded.recipe.model)
    for number, finding in enumerate(findings, start=1):
        verdict = finding.difference or f"the same: {finding.tokens} prompt tokens, logits, {finding.answered} answered"
        print(f"conversation {number}  {verdict}")
    if (apart := merged_apart(artefact, loaded.recipe.model)) is not None:
        print(f"its adapters are merged: logits differ by up to {apart:.1e} from those beside the weights, as trained")
    wrong = sum(bool(finding.difference) for finding in findings)
    print(f"{len(findings) - wrong} of {len(findings)} conversations are the same in {shown(folder)}")
    return 1 if wrong else 0
