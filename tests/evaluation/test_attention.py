"""Attention to the instruction, against the weights that transformers returns, looked up one by one."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.data.chat import encode_dialogue
from rlhf.data.types import Turn
from rlhf.errors import ConfigError
from rlhf.evaluation import attention
from rlhf.evaluation.attention import each_layer, on_instruction

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


OTHERS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "qwen2": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_tell_a_layer_at_a_time_what_they_return_at_the_end(kind, tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **OTHERS[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    told = []
    with torch.no_grad(), each_layer(model, told.append):
        returned = model(torch.arange(20)[None], output_attentions=True, use_cache=False).attentions
    assert len(told) == 2
    for one, other in zip(told, returned, strict=True):
        torch.testing.assert_close(one, other)


def test_the_instruction_is_found_where_a_template_has_a_system_message_of_its_own(policy, tokenizer, monkeypatch):
    """As Qwen's: without the instruction there stands another text, longer than it. Looked up one by one, as above."""
    monkeypatch.setattr(attention, "encode_dialogue", lambda _, turns: laid_out(turns))
    laid = laid_out(TURNS)
    policy.set_attn_implementation("eager")
    with torch.no_grad():
        layers = policy(torch.tensor([laid.input_ids]), output_attentions=True, use_cache=False).attentions
    policy.set_attn_implementation("sdpa")
    instruction = [i for i, owner in enumerate(laid.owner) if owner == 0]
    assert instruction == [0, 1, 2]
    wanted = {
        turn: max(
            layer[0, head, at - 1, seen].item()
            for layer in layers
            for head in range(4)
            for at in range(1, len(laid.owner))
            if laid.owner[at] == answer
            for seen in instruction
        )
        for turn, answer in ((1, 2), (2, 4))
    }
    assert attention.on_instruction(policy, tokenizer, TURNS) == pytest.approx(wanted, abs=1e-6)


def laid_out(turns):
    """A token a word; a system message of twelve tokens where none is given."""
    spoken = turns if turns[0].role == "system" else (Turn("system", "x " * 12), *turns)
    words = [(i, word) for i, turn in enumerate(spoken) for word in turn.content.split()]
    shift = len(spoken) - len(turns)
    return SimpleNamespace(
        input_ids=[20 + sum(map(ord, word)) % 250 for _, word in words], owner=[i - shift for i, _ in words]
    )


def test_a_template_that_leaves_system_messages_out_is_refused(policy, tokenizer, monkeypatch):
    without = SimpleNamespace(input_ids=[5, 6, 7], owner=[1, 1, 2])
    monkeypatch.setattr(attention, "encode_dialogue", lambda _, turns: without)
    with pytest.raises(ConfigError, match="leaves a system message out"):
        on_instruction(policy, tokenizer, TURNS)


def test_a_model_that_tells_nothing_is_refused(policy, tokenizer, monkeypatch):
    for layer in policy.model.layers:
        attend = layer.self_attn.forward
        monkeypatch.setattr(
            layer.self_attn, "forward", lambda *given, _of=attend, **more: (_of(*given, **more)[0], None)
        )
    with pytest.raises(ConfigError, match="does not say what it attends to"):
        on_instruction(policy, tokenizer, TURNS)
    assert policy.config._attn_implementation == "sdpa"


def test_a_model_that_refuses_to_tell_is_as_it_was(policy, monkeypatch):
    """Some change the setting before they find out that a part of theirs cannot."""
    before, real = policy.config._attn_implementation, policy.set_attn_implementation

    def refuse(name):
        real(name)
        if name == "eager":
            raise ValueError("no eager here")

    monkeypatch.setattr(policy, "set_attn_implementation", refuse)
    with pytest.raises(ConfigError, match="does not say what it attends to: no eager here"), each_layer(policy, print):
        pass
    assert policy.config._attn_implementation == before != "eager"
