"""Rows laid end to end against the same rows padded: states and gradients."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.models import packing
from rlhf.models.score import pad_right

SHAPE = {"vocab_size": 300, "max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.4}
SHAPE |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
ROWS = [list(range(10, 10 + n)) for n in (3, 17, 1, 9)]


def model_of(kind, **more):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE, **more)).model


def states_and_gradient(body, most_padding, monkeypatch):
    monkeypatch.setattr(packing, "MOST_PADDING", most_padding)
    ids, mask = pad_right(ROWS, pad_token_id=2, device="cpu")
    shapes = []
    hook = body.embed_tokens.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    hidden = packing.states(body, ids, mask)
    hook.remove()
    body.zero_grad()
    (hidden * torch.linspace(-1, 1, hidden.numel()).view(hidden.shape))[mask.bool()].square().sum().backward()
    gradient = torch.cat([weight.grad.flatten() for weight in body.parameters()])
    return shapes, hidden[mask.bool()], gradient / gradient.norm()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_rows_end_to_end_are_the_rows_padded(kind, checkpointed, monkeypatch):
    body = model_of(kind, **({"sliding_window": None} if kind == "mistral" else {}))
    if checkpointed:
        body.activation_checkpointing_enable()
        body.train()
    padded, wanted, slope = states_and_gradient(body, 0.999, monkeypatch)
    joined, found, other = states_and_gradient(body, 0.1, monkeypatch)
    assert padded == [(4, 17)]
    assert joined == [(1, 3 + 17 + 1 + 9)]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other, slope, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "more"), [("mistral", {"sliding_window": 4}), ("gemma2", {"head_dim": 8})])
def test_what_does_not_see_all_is_padded(kind, more, monkeypatch):
    shapes, *_ = states_and_gradient(model_of(kind, **more), 0.1, monkeypatch)
    assert shapes == [(4, 17)]


def test_rows_of_one_length_stay_a_batch(monkeypatch):
    body = model_of("llama")
    assert packing.packed(body, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    assert not packing.packed(body, torch.ones(2, 4))
    assert not packing.packed(body, torch.tensor([[1] * 10, [1] * 9 + [0]]))  # a twentieth is padding
