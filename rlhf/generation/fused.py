"""One step of decoding of a Llama, with its weights laid out for it.

A step multiplies a few rows by every weight of the model. On a CPU that is up to twice as fast where projections of
the same input are one matrix and matrices lie input by output, so they are copied like that, once for a request. What
is computed is what the model's own forward computes; what this does not know is left to that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM
from transformers.cache_utils import Cache


def applies(model: PreTrainedModel) -> bool:
    """A Llama, Mistral or Qwen2 in single precision on a CPU; no adapter in it, nothing that hooks into it."""
    if type(model) not in (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM):
        return False
    config = model.config
    plain = config.hidden_act == "silu" and getattr(config, "sliding_window", None) is None
    weights = [p for p in model.parameters() if p.dim() == 2]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return (
        plain
        and not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
        and len(linears) == 7 * config.num_hidden_layers + 1
        and all(type(m) is nn.Linear for m in linears)
        and all(type(w) is nn.Parameter and w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
    )


class Joined:
    """Linear layers of the same input as one: [R, in] -> [R, out], the weight [in, out]."""

    def __init__(self, *layers: nn.Linear) -> None:
        self.weight = torch.cat([layer.weight.detach() for layer in layers]).t().contiguous()
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


class Block:
    """One layer: attention to the cache and to itself, then SwiGLU, both added to what came in."""

    def __init__(self, layer: Any, width: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.width = width
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = Joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = Joined(mlp.gate_proj, mlp.up_proj)
        self.out, self.down = Joined(attention.o_proj), Joined(mlp.down_proj)
        self.heads, self.kv_heads = (p.out_features // width for p in (attention.q_proj, attention.k_proj))

    def __call__(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache, at: int
    ) -> Tensor:
        made = self.qkv(self.before(x)).view(len(x), -1, 1, self.width)
        turned = rotated(made[:, : self.heads + self.kv_heads], *rotation)
        fresh = turned[:, self.heads :], made[:, self.heads + self.kv_heads :]
        seen = cache.layers[at].attend(turned[:, : self.heads], *fresh, mask)
        x = x + self.out(seen.flatten(1))
        gate, up = self.gate_up(self.between(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Fused:
    """The model's forward for one token a row."""

    def __init__(self, model: PreTrainedModel) -> None:
        body: Any = model.model
        width = body.layers[0].self_attn.head_dim
        self.embed, self.rotary, self.norm = body.embed_tokens, body.rotary_emb, body.norm
        self.blocks = [Block(layer, width) for layer in body.layers]
        self.head = Joined(model.lm_head)

    def __call__(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache) -> Tensor:
        """The logits [R, V] after `tokens` [R] at `positions` [R]; `mask` [R, S] is 1 where a row sees."""
        x = self.embed(tokens)
        cos, sin = self.rotary(x, positions[:, None])  # [R, 1, width]
        rotation = cos[:, None], sin[:, None]
        for at, block in enumerate(self.blocks):
            x = block(x, rotation, mask, cache, at)
        return self.head(self.norm(x))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: each number and the one half a head away turn as a pair."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin
