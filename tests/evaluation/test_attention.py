"""Attention to the instruction, against the weights that transformers returns, looked up one by one."""

import pytest
import torch

from rlhf.data.chat import encode_dialogue
from rlhf.data.types import Turn
from rlhf.evaluation.attention import on_instruction

TURNS = (
    Turn("system", "end : key"),
    Turn("user", "how ?"),
    Turn("assistant", "take the key"),
    Turn("user", "and then ?"),
    Turn("assistant", "open it . key"),
)


def test_the_highest_weight_of_any_layer_head_and_token(policy, tokenizer):
    ids = encode_dialogue(tokenizer, TURNS).input_ids
    pieces = tokenizer.convert_ids_to_tokens(ids)
    # <s> [INST] <<SYS>> ... <</SYS>> how ? [/INST] answer </s> <s> [INST] and then ? [/INST] answer </s>
    opened, closed = (next(i for i, piece in enumerate(pieces) if mark in piece) for mark in ("<<SYS>>", "<</SYS>>"))
    ends = [i for i, piece in enumerate(pieces) if piece == "</s>"]
    starts = [i for i, piece in enumerate(pieces) if "[/INST]" in piece]
    policy.set_attn_implementation("eager")
    with torch.no_grad():
        layers = policy(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    policy.set_attn_implementation("sdpa")
    wanted = {}
    for turn, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        # The token at `start` says the answer's first, the one before </s> says </s>.
        wanted[turn] = max(
            layer[0, head, at, seen].item()
            for layer in layers
            for head in range(4)
            for at in range(start, end)
            for seen in range(opened, closed + 1)
        )
    found = on_instruction(policy, tokenizer, TURNS)
    assert set(found) == {1, 2}
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found[1] != pytest.approx(found[2], abs=1e-3)
    assert policy.config._attn_implementation == "sdpa"
