"""Rows laid end to end against the same rows padded: states and gradients."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.data.collate import PackedRow, Row, pack, pad_packed
from rlhf.models import packing
from rlhf.models.score import pad_right

SHAPE = {"vocab_size": 300, "max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.4}
SHAPE |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
ROWS = [list(range(10, 10 + n)) for n in (3, 17, 1, 9)]


def whole_of(kind, **more):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE, **more))


def model_of(kind, **more):
    return whole_of(kind, **more).model


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


def text_batch():
    """Rows of running text, as a base model reads them: every token is a label, the first of a row, too."""
    rows = [PackedRow(list(ids), list(ids), list(range(9)), ("text",)) for ids in (range(10, 19), range(30, 39))]
    return pad_packed([row.as_dict() for row in rows], pad_token_id=2)


def packed_batch():
    """Rows of several documents, one of which is padded; where a document begins there is no loss."""
    rows = pack([Row(ids, ids, f"{i}") for i, ids in enumerate([*ROWS, [44, 45], [46] * 5])], length=20)
    return pad_packed([row.as_dict() for row in rows], pad_token_id=2)


def loss_and_gradient(model, batch):
    widths = []
    hook = model.model.embed_tokens.register_forward_pre_hook(lambda _, args: widths.append(tuple(args[0].shape)))
    model.zero_grad()
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    hook.remove()
    return widths, loss.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_documents_one_by_one_learn_what_packed_rows_do(kind, checkpointed):
    model = whole_of(kind, **({"sliding_window": None} if kind == "mistral" else {}))
    if checkpointed:
        model.activation_checkpointing_enable()
        model.train()
    for batch, shape in ((packed_batch(), (2, 20)), (text_batch(), (2, 9))):
        packed, wanted, slope = loss_and_gradient(model, batch)
        apart, found, other = loss_and_gradient(model, packing.documents(model.model, batch))
        assert packed == [shape]
        assert apart == [(1, shape[0] * shape[1])]
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(other, slope, atol=1e-6, rtol=1e-5)


def test_a_document_alone_has_the_states_it_has_among_others():
    model, batch = model_of("llama"), packed_batch()
    hidden = model(**{k: v for k, v in packing.documents(model, batch).items() if k != "labels"}).last_hidden_state[0]
    starts = [*(batch["position_ids"].flatten() == 0).nonzero()[:, 0].tolist(), batch["position_ids"].numel()]
    assert len(starts) == 8  # six documents, and the padding
    for begin, end in pairwise(starts):
        alone = model(input_ids=batch["input_ids"].flatten()[None, begin:end]).last_hidden_state[0]
        torch.testing.assert_close(hidden[begin:end], alone, atol=1e-5, rtol=1e-5)


def test_documents_of_a_body_that_slides_stay_rows():
    batch = packed_batch()
    assert packing.documents(model_of("mistral", sliding_window=4), batch) is batch


def test_rows_of_one_length_stay_a_batch(monkeypatch):
    body = model_of("llama")
    assert packing.packed(body, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    assert not packing.packed(body, torch.ones(2, 4))
    assert not packing.packed(body, torch.tensor([[1] * 10, [1] * 9 + [0]]))  # a twentieth is padding
