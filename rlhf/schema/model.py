"""The language model every stage starts from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from rlhf.schema.setting import Positive, Rate, Section, ours, paper


class LoraConfig(Section):
    """Low-rank adapters: the weights stay as they are, and each stage trains a small matrix beside each of them."""

    rank: Positive | None = ours(None, "rank of the adapters; none: all weights are trained", "the paper trains all")
    alpha: Rate = ours(32.0, "an adapter counts alpha / rank times", "twice a rank of 16, as is usual")
    target: Literal["all-linear", "attention"] = ours(
        "all-linear", "adapters beside every linear layer, or those of attention", "as good as full training in QLoRA"
    )


class ModelConfig(Section):
    """The language model every stage starts from."""

    path: str | None = ours(None, "hub id or folder; none: train a small Llama from scratch", "no honest default")
    revision: str | None = ours(None, "commit of a hub model", "newest")
    dtype: Literal["float32", "bfloat16"] = ours(
        "float32", "dtype of weights and forwards", "bfloat16 rounds steps of the paper's learning rates away"
    )
    max_length: Positive = paper(4096, "2.2", "context length in tokens")
    gradient_checkpointing: bool = ours(False, "recompute activations in the backward pass", "memory only")
    quantisation: Literal["none", "nf4"] = ours("none", "frozen weights in 4 bits, under adapters (QLoRA)", "memory")
    lora: LoraConfig = LoraConfig()
    vocab_size: int = ours(  # 256 bytes and the 8 tokens of the chat format have to fit
        512, "from scratch: byte-pair tokens", "about one token a word in the micro-world", ge=264
    )
    hidden_size: Positive = ours(128, "from scratch: width", "minutes on two cores")
    intermediate_size: Positive = ours(352, "from scratch: SwiGLU width", "8/3 of the width, as in Llama")
    layers: Positive = ours(3, "from scratch: decoder layers", "minutes on two cores")
    heads: Positive = ours(4, "from scratch: attention heads", "width 32 a head")
    kv_heads: Positive = ours(2, "from scratch: key and value heads", "grouped-query attention, as in 2.2")

    @model_validator(mode="after")
    def _quantised_weights_cannot_learn(self) -> Self:
        if self.quantisation != "none" and self.lora.rank is None:
            raise ValueError(f"quantisation ({self.quantisation}) needs adapters: set model.lora.rank, such as 16")
        return self

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of heads ({self.heads}),"
                f" and heads of kv_heads ({self.kv_heads})"
            )
        return self
