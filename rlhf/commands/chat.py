"""`rlhf chat`: talk to policies of a run, side by side, with both scores under each answer."""

from __future__ import annotations

import sys

from rlhf.artefacts import chosen_policies, newest_reward
from rlhf.commands.request import Request
from rlhf.errors import ConfigError


def main(request: Request) -> int:
    """rlhf chat."""
    loaded = request.load()
    chosen = chosen_policies(loaded, request.options.get("policy"))
    reward = newest_reward(loaded)
    temperature = number(request, "temperature", loaded.recipe.evaluate.temperature)
    longest = number(request, "max_new_tokens", loaded.recipe.evaluate.max_new_tokens)
    port = int(number(request, "port", 8080))

    from pathlib import Path

    from rich.console import Console

    from rlhf.generation.protocol import Sampling
    from rlhf.models.reward_models import RewardModels
    from rlhf.talk.answer import Voice
    from rlhf.talk.conversation import Conversation
    from rlhf.talk.terminal import talk

    model = loaded.recipe.model
    voices = [Voice.load(name, folder, model) for name, folder in chosen.items()]
    conversation = Conversation(
        voices,
        RewardModels.load(reward, model, reads=voices[0].tokenizer) if reward else None,
        Sampling(1, temperature, int(longest)),
        loaded.recipe.seed,
        request.options.get("system", ""),
    )
    save_to = Path(request.options.get("save", str(loaded.run_dir / "chat.jsonl")))
    if "--web" in request.flags:
        from rlhf.talk.web import serve

        serve(conversation, save_to=save_to, port=port, title=loaded.recipe.run)
        return 0
    interactive = sys.stdin.isatty()
    talk(conversation, Console(highlight=False), save_to=save_to, lines=None if interactive else sys.stdin)
    return 0


def number(request: Request, name: str, default: float) -> float:
    """An option that is a number, not below zero."""
    text = request.options.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name} must be a number, zero or more (got {text})", where="given on the command line")
    return value
