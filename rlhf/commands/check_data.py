"""`rlhf check data`: what would become of a recipe's data, row by row and token by token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.commands.request import Request
from rlhf.errors import ConfigError, DataError, RlhfError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf.schema import Recipe


def main(request: Request) -> int:
    """rlhf check data."""
    from rich.console import Console

    from rlhf.doctor import show
    from rlhf.doctor.problems import Problems
    from rlhf.doctor.rows import examine
    from rlhf.doctor.tokens import Tokens
    from rlhf.planning.context import require_context

    if request.words[1:]:
        raise ConfigError(f"rlhf check data takes no {request.words[1]}", hints=["name stages: stage=reward,sft"])
    loaded = request.load()
    require_context(loaded.recipe.model)
    problems, console = Problems(), Console()
    chosen = stages(loaded.recipe, request.stage)
    tokenizer, why = _tokenizer(loaded.recipe, loaded.run_dir)
    if why:
        problems.notes.append(why)
    tokens = Tokens(tokenizer, loaded.recipe, problems) if tokenizer is not None else None
    found = examine(loaded.recipe, chosen, problems, tokens.look if tokens else lambda read, raw, record: True)
    tallies = tokens.tallies if tokens else {}
    if not found:
        problems.notes.append("these stages read the micro-world alone, which is written on the spot")
    show.sources(console, found, tallies)
    show.views(console, tallies)
    show.problems(console, problems)
    return DataError.exit_code if problems.first else 0


def stages(recipe: Recipe, wanted: str | None) -> tuple[str, ...]:
    """The stages whose data is read: those asked for, or all of the recipe."""
    names = [name.strip() for name in (wanted or ",".join(recipe.stages)).split(",")]
    for name in names:
        if name not in recipe.stages:
            hints = [did_you_mean(name, recipe.stages), f"in this recipe: {', '.join(recipe.stages)}"]
            raise ConfigError(f"unknown stage {name}", hints=[hint for hint in hints if hint])
    return tuple(name for name in recipe.stages if name in names)


def _tokenizer(recipe: Recipe, run_dir: Path) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The recipe's own tokenizer: that of the base model if it was made, else the one of model.path; or why not."""
    made = run_dir / "base" / "checkpoint"
    given = Path(recipe.model.path).expanduser() if recipe.model.path else None
    if not made.is_dir() and (given is None or not given.is_dir()):
        missing = "base is not made" + (f", and {recipe.model.path} is no folder here" if given else "")
        return None, f"tokens are not checked: {missing}; make it with `rlhf run stage=base`"
    from rlhf.models.load import load_given_tokenizer, load_tokenizer

    try:
        if made.is_dir():
            return load_tokenizer(made), ""
        return load_given_tokenizer(str(given), revision=recipe.model.revision), ""
    except RlhfError as error:
        return None, f"tokens are not checked: {error.what}"
