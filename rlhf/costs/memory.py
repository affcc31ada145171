"""Bytes that one rank holds. Weights, optimizer and cache are counted exactly; activations are an estimate. Torch-free.

AdamW keeps two moments in the dtype of what it trains, as torch does. An engine shards evenly what the Trainer trains:
zero2 gradients and moments, zero3 and fsdp the weights, too. DeepSpeed's optimizer keeps its share of them twice.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

from rlhf.costs.shapes import Shape
from rlhf.schema.model import ModelConfig

WIDTH = {"float32": 4, "bfloat16": 2}
ADAPTER = 4  # bytes: adapters and the heads beside them are float32 (rlhf/models/adapters.py)
BLOCK, SUPER_BLOCK = 64, 256  # of nf4: weights that share a scale of one byte, and scales that share one of four
SHARDED = {"ddp": (), "zero2": ("gradients", "optimizer"), "zero3": ("weights", "gradients", "optimizer")}
SHARDED["fsdp"] = SHARDED["zero3"]
LOGITS = 2**22  # numbers at a time, of PPO's log-probabilities and of KL: 16 MB (rlhf/rollout.py)
TILE = 4096 * 32768  # numbers at a time, of fine-tuning's: tokens times words (TRL's head)


@dataclass(frozen=True, slots=True)
class Bytes:
    """What one rank holds at the fullest moment of a stage."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    cache: float = 0

    @property
    def total(self) -> float:
        return float(sum(getattr(self, field.name) for field in fields(self)))

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __truediv__(self, parts: int) -> Bytes:
        return Bytes(*(getattr(self, f.name) / parts for f in fields(self)))

    def sharded(self, engine: str, ranks: int) -> Self:
        """This rank's share of it."""
        held = replace(self, optimizer=1.5 * self.optimizer) if engine.startswith("zero") else self  # moments, weights
        parts = {f.name: getattr(held, f.name) / (ranks if f.name in SHARDED[engine] else 1) for f in fields(held)}
        return type(self)(**parts)


def adapter(shape: Shape, model: ModelConfig, *, scored: bool) -> int:
    """Bytes of an adapter, and of the head that is trained whole beside it."""
    return (shape.adapter(model.lora) + (shape.hidden_size if scored else 0)) * ADAPTER


def frozen(shape: Shape, model: ModelConfig, *, scored: bool) -> Bytes:
    """A model that only answers. With LoRA its adapter and head stand beside the weights."""
    count, width = (shape.scored if scored else shape.policy), WIDTH[model.dtype]
    beside = adapter(shape, model, scored=scored) if model.lora.rank else 0
    if model.quantisation == "none":
        return Bytes(weights=count * width + beside)
    scales = shape.linear / BLOCK
    quantised = shape.linear / 2 + scales + scales / SUPER_BLOCK * 4
    return Bytes(weights=quantised + (count - shape.linear) * width + beside)


def trained(shape: Shape, model: ModelConfig, *, scored: bool) -> Bytes:
    """A model that learns: its weights, a gradient of each that does, and AdamW's two moments."""
    held = frozen(shape, model, scored=scored).weights
    learns = adapter(shape, model, scored=scored) if model.lora.rank else held
    return Bytes(weights=held, gradients=learns, optimizer=2 * learns)


def activations(shape: Shape, model: ModelConfig, *, tokens: float) -> float:
    """What the backward pass needs of one micro-batch below the head, in bytes: an estimate, by reading the forward.

    A layer keeps about eight tensors of the model's width, four of the keys' and four of the MLP's; with checkpointing
    it keeps its input, and one layer at a time the rest. Who sees whom is not counted: documents that share a row are
    attended to one by one. A model that models/packing.py does not know keeps S more a token and layer, on a CPU.
    """
    width, kv = WIDTH[model.dtype], shape.kv_heads * shape.head_dim
    layer = (8 * shape.hidden_size + 4 * kv + 4 * shape.intermediate_size) * width
    inputs = shape.layers * shape.hidden_size * width
    return tokens * (inputs + layer if model.gradient_checkpointing else shape.layers * layer)


def reading(shape: Shape, model: ModelConfig, *, tokens: float, seen: int = 0) -> float:
    """What reading so many tokens at once needs beside their cache, in bytes: an estimate, by reading the forward.

    One layer at a time: four tensors of the model's width, three of the MLP's, and which of the `seen` tokens of its
    row each sees, as booleans and, on a CPU, once more as float32.
    """
    return tokens * ((4 * shape.hidden_size + 3 * shape.intermediate_size) * WIDTH[model.dtype] + 5 * seen)


def logits(shape: Shape, *, tokens: float, copies: int, most: float) -> float:
    """Logits of so many tokens in float32, never `most` numbers of them at a time, and as many copies as stand then."""
    return 4 * copies * min(tokens * shape.vocab_size, most)


def joined(shape: Shape) -> float:
    """The copy of the weights that decoding on a CPU lays out for itself (rlhf/generation/fused.py)."""
    return 4 * (shape.linear + shape.vocab_size * shape.hidden_size)
