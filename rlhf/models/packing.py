"""Rows of unlike length laid end to end, so that a forward computes no padding.

Everything in a layer but attention is done token by token, and attention is done row by row. transformers' flash
attention takes rows like this (`cu_seq_lens_q`); its scaled-dot-product attention does not, and gets it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, LlamaModel, MistralModel, PreTrainedModel, Qwen2Model
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlhf.data.chat import IGNORED

MOST_PADDING = 0.1
"""The share of padding up to which a batch is computed as it is: whole rows of one length are faster together."""


def states(body: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The last hidden states [B, S, H] of rows padded on the right, of which `attention_mask` [B, S] is what exists.

    Where nothing exists they are zero, or whatever the model makes of padding.
    """
    if not packed(body, attention_mask):
        return _last(body, input_ids=input_ids, attention_mask=attention_mask)
    real = attention_mask.bool()
    hidden = _last(body, **_one_after_another(input_ids[real], (real.cumsum(-1) - 1)[real]))
    empty = hidden.new_zeros(real.numel(), hidden.shape[-1])
    return empty.index_copy(0, real.flatten().nonzero()[:, 0], hidden[0]).view(*real.shape, -1)


def documents(body: PreTrainedModel, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A batch of packed rows [B, S] as one row [1, B * S] of documents that are attended to one by one.

    A document begins where positions begin again, at 0; what stands before it does not predict its first token. Where
    the body does not know rows like this the batch stays as it is, and a mask over S x S tokens keeps its documents
    apart; the numbers are the same.
    """
    if not _splits(body):
        return batch
    ids, labels, positions = (batch[name].flatten() for name in ("input_ids", "labels", "position_ids"))
    return {"labels": labels.masked_fill(positions == 0, IGNORED)[None], **_one_after_another(ids, positions)}


def packed(body: PreTrainedModel, attention_mask: Tensor) -> bool:
    """Whether these rows are laid end to end."""
    return _splits(body) and float(attention_mask.float().mean()) < 1 - MOST_PADDING


def _splits(body: PreTrainedModel) -> bool:
    """Whether the body's attention goes row by row where it is told where they end."""
    known = isinstance(body, (LlamaModel, MistralModel, Qwen2Model)) and body.device.type == "cpu"
    return known and sees_all(body)


def _one_after_another(input_ids: Tensor, position_ids: Tensor) -> dict[str, Tensor]:
    """Inputs of a body: tokens [N] of several rows, whose positions begin at 0 in each."""
    starts = (position_ids == 0).nonzero()[:, 0]
    return {
        "input_ids": input_ids[None],
        "position_ids": position_ids[None],
        "attention_mask": input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool),  # four dimensions: the model makes none
        "cu_seq_lens_q": F.pad(starts, (0, 1), value=len(input_ids)),
    }


def sees_all(model: PreTrainedModel) -> bool:
    """Whether all attention is scaled-dot-product attention over the whole context."""
    by_position = getattr(model.config, "alibi", False)  # Falcon makes its biases of a mask over tokens
    return model.config._attn_implementation == "sdpa" and not by_position and unlimited(model)


def unlimited(model: PreTrainedModel) -> bool:
    """Whether every token attends to all before it, in every layer: none slides, and none goes chunk by chunk."""
    kinds = getattr(model.config, "layer_types", None) or getattr(model.config, "attention_layers", None)
    if kinds:
        return set(kinds) <= {"full_attention", "global"}
    return getattr(model.config, "sliding_window", None) is None


def _last(body: PreTrainedModel, **given: Any) -> Tensor:
    hidden: Tensor = body(**given, use_cache=False).last_hidden_state
    return hidden


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """Scaled-dot-product attention [1, heads, N, width] -> [1, N, heads, width], row by row where rows are told."""
    if given.get("cu_seq_lens_q") is None:
        made: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return made
    lengths = given["cu_seq_lens_q"].diff().tolist()
    how: dict[str, Any] = {"dropout_p": given.get("dropout", 0.0), "scale": given.get("scaling"), "is_causal": True}
    how["enable_gqa"] = query.shape[1] != key.shape[1]
    rows = zip(*(torch.split(x, lengths, 2) for x in (query, key, value)), strict=True)
    seen = [F.scaled_dot_product_attention(q, k, v, **how) for q, k, v in rows]
    return torch.cat(seen, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register("sdpa", attend)
