"""The shape of a Llama, and what follows from it exactly: parameters, and bytes of the key-value cache. Torch-free."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import ConfigError
from rlhf.schema.model import LoraConfig, ModelConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths and counts of a decoder with RMSNorm, SwiGLU and grouped-query attention (2.2)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False
    """Whether the output layer is the embedding."""

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one decoder layer: name -> (inputs, outputs)."""
        h, i = self.hidden_size, self.intermediate_size
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        return attention | {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}

    @property
    def linear(self) -> int:
        """Weights of all linear layers of the body."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def body(self) -> int:
        """Parameters without a head: embeddings, layers with two norms each, the last norm."""
        h = self.hidden_size
        return self.vocab_size * h + self.linear + self.layers * 2 * h + h

    @property
    def policy(self) -> int:
        """Parameters of the language model."""
        return self.body + (0 if self.tied else self.vocab_size * self.hidden_size)

    @property
    def scored(self) -> int:
        """Parameters of a reward model or critic: the body under one row of weights."""
        return self.body + self.hidden_size

    def adapter(self, lora: LoraConfig) -> int:
        """Parameters of an adapter: rank * (inputs + outputs) beside each matrix it is put to."""
        names = self.matrices if lora.target == "all-linear" else ("q_proj", "k_proj", "v_proj", "o_proj")
        return self.layers * sum((lora.rank or 0) * sum(self.matrices[name]) for name in names)

    def cache(self, rows: int, tokens: int, *, bytes_each: int) -> int:
        """Bytes of keys and values of so many rows, each with room for so many tokens."""
        return 2 * self.layers * rows * tokens * self.kv_heads * self.head_dim * bytes_each


LLAMA_2 = {
    "7b": Shape(32000, 4096, 11008, 32, 32, 32, 128),
    "13b": Shape(32000, 5120, 13824, 40, 40, 40, 128),
    "70b": Shape(32000, 8192, 28672, 80, 64, 8, 128),
}
KNOWN = {f"meta-llama/Llama-2-{size}{chat}-hf": shape for size, shape in LLAMA_2.items() for chat in ("", "-chat")}


def shape_of(model: ModelConfig) -> Shape:
    """The shape of a recipe's model: known by name, in the folder's config.json, or from the settings."""
    if model.path is None:
        head_dim = model.hidden_size // model.heads
        widths = (model.vocab_size, model.hidden_size, model.intermediate_size)
        return Shape(*widths, model.layers, model.heads, model.kv_heads, head_dim)
    if model.path in KNOWN:
        return KNOWN[model.path]
    file = Path(model.path).expanduser() / "config.json"
    if not file.is_file():
        raise ConfigError(
            f"the shape of {model.path} is not known before it is downloaded",
            where="model.path",
            hints=["download it, and point model.path at the folder", f"known by name: {', '.join(list(KNOWN)[::2])}"],
        )
    read = json.loads(file.read_text(encoding="utf-8"))
    heads = read["num_attention_heads"]
    return Shape(
        read["vocab_size"],
        read["hidden_size"],
        read["intermediate_size"],
        read["num_hidden_layers"],
        heads,
        read.get("num_key_value_heads") or heads,
        read.get("head_dim") or read["hidden_size"] // heads,
        tied=bool(read.get("tie_word_embeddings")),
    )
