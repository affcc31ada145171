"""How much a policy still looks at the instruction, late in a dialogue (Fig 10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.chat import encode_dialogue
from rlhf.data.types import Turn
from rlhf.errors import ConfigError
from rlhf.models.shared import whole


@contextmanager
def each_layer(policy: PreTrainedModel, told: Callable[[Tensor], Any]) -> Iterator[None]:
    """Inside, `told` is called with the attention [1, heads, S, S] of every layer as it is made.

    A layer at a time: the attention of all layers of a large model over a long dialogue fits no machine.
    """

    def tell(_module: nn.Module, _given: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, Tensor) and weights.ndim == 4:
            told(weights)

    before, hooks = policy.config._attn_implementation, []
    try:
        try:
            policy.set_attn_implementation("eager")  # the others do not say what they looked at
        except ValueError as error:
            raise ConfigError(f"{type(policy).__name__} does not say what it attends to: {error}") from None
        hooks += [module.register_forward_hook(tell) for module in policy.modules()]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        policy.set_attn_implementation(before)


@torch.no_grad()
def on_instruction(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]
) -> dict[int, float]:
    """By user turn (1 is the first): the highest attention that any token of its answer pays to the instruction.

    "The maximum attention activation across the network": over layers, heads, the answer's tokens and the
    instruction's. The instruction is the system message, whose tokens are those before the first question.

    Args:
        turns: system, then user and assistant in turn. The same dialogue for every policy that is compared.

    Raises:
        ConfigError: for a model whose layers do not return their attention, or a template without system messages.
    """
    encoded = encode_dialogue(tokenizer, turns)
    without = encode_dialogue(tokenizer, turns[1:])
    # Between what both begin and end with: without a system message some templates put one of their own there.
    pairs = list(zip(encoded.input_ids, without.input_ids, strict=False))
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    backwards = list(zip(reversed(encoded.input_ids[start:]), reversed(without.input_ids[start:]), strict=False))
    alike = next((i for i, (a, b) in enumerate(backwards) if a != b), len(backwards))
    instruction = slice(start, len(encoded.input_ids) - alike)
    if instruction.start == instruction.stop:
        raise ConfigError("the chat template leaves a system message out")
    ids = torch.tensor([encoded.input_ids], device=policy.device)
    layers: list[Tensor] = []  # of each, the highest that a token pays to the instruction [S]
    with whole(policy), each_layer(policy, lambda paid: layers.append(paid[0, :, :, instruction].amax((0, 2)).cpu())):
        policy(input_ids=ids, use_cache=False)
    if not layers:
        raise ConfigError(f"{type(policy).__name__} does not say what it attends to")
    looked = torch.stack(layers).amax(0)
    owner = torch.tensor(encoded.owner)
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    # The token before an answer's token is the one whose output says it.
    return {n: looked[:-1][owner[1:] == index].max().item() for n, index in enumerate(answers, start=1)}
