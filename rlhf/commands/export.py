"""`rlhf export`: a policy as a folder that other programs load unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.artefacts import chosen_policies, step_of
from rlhf.checkpoint import shown
from rlhf.commands.request import Request
from rlhf.errors import ConfigError

if TYPE_CHECKING:
    from rlhf.config import Loaded


def main(request: Request) -> int:
    """rlhf export."""
    folder = exported(request)
    print(f"exported: {shown(folder)}   (the same model? rlhf check parity path={shown(folder)})")
    return 0


def exported(request: Request) -> Path:
    """Write the export that was asked for, and return its folder."""
    loaded = request.load()
    artefact = chosen_policy(request, loaded)
    to = Path(request.options.get("to") or default_folder(loaded, artefact)).expanduser()

    from rlhf.export import export
    from rlhf.models.load import load_tokenizer
    from rlhf.reporting.card import card

    suggested = {
        "temperature": loaded.recipe.evaluate.temperature,
        "max_new_tokens": loaded.recipe.evaluate.max_new_tokens,
    }
    text = card(artefact, run=loaded.recipe.run, eos=str(load_tokenizer(artefact / "checkpoint").eos_token))
    export(artefact, to, loaded.recipe.model, card=text, sampling=suggested)
    return to


def chosen_policy(request: Request, loaded: Loaded) -> Path:
    """The artefact of the one policy that was asked for."""
    chosen = chosen_policies(loaded, request.options.get("policy"))
    if len(chosen) > 1:
        raise ConfigError(f"one policy at a time, got {', '.join(chosen)}", where="given on the command line")
    return next(iter(chosen.values()))


def default_folder(loaded: Loaded, artefact: Path) -> Path:
    """Where an export goes unless the reader says so."""
    return loaded.run_dir / "export" / step_of(artefact)
