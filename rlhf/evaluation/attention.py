"""How much a policy still looks at the instruction, late in a dialogue (Fig 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.chat import encode_dialogue
from rlhf.data.types import Turn
from rlhf.models.shared import whole


@torch.no_grad()
def on_instruction(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]
) -> dict[int, float]:
    """By user turn (1 is the first): the highest attention that any token of its answer pays to the instruction.

    "The maximum attention activation across the network": over layers, heads, the answer's tokens and the
    instruction's. The instruction is the system message, whose tokens are those before the first question.

    Args:
        turns: system, then user and assistant in turn. The same dialogue for every policy that is compared.
    """
    encoded = encode_dialogue(tokenizer, turns)
    without = encode_dialogue(tokenizer, turns[1:])
    added = len(encoded.input_ids) - len(without.input_ids)
    start = next(i for i, (a, b) in enumerate(zip(encoded.input_ids, without.input_ids, strict=False)) if a != b)
    instruction = slice(start, start + added)
    before = policy.config._attn_implementation
    policy.set_attn_implementation("eager")  # the others do not say what they looked at
    try:
        ids = torch.tensor([encoded.input_ids], device=policy.device)
        with whole(policy):
            layers = policy(input_ids=ids, use_cache=False, output_attentions=True).attentions
    finally:
        policy.set_attn_implementation(before)
    looked = torch.stack([layer[0, :, :, instruction].amax(dim=(0, 2)) for layer in layers]).amax(0)  # [S]
    owner = torch.tensor(encoded.owner)
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    # The token before an answer's token is the one whose output says it.
    return {n: looked[:-1][owner[1:] == index].max().item() for n, index in enumerate(answers, start=1)}
