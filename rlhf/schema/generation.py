"""Settings: who samples."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from rlhf.schema.setting import Positive, Section, Share, ours


class GenerationConfig(Section):
    """Who samples the answers of preferences and rejection, and how many a model in this process decodes at once."""

    engine: Literal["transformers", "vllm"] = ours(
        "transformers", "the model's own forward, or vLLM (the extra `vllm`)", "it runs everywhere, and samples repeat"
    )
    server: str | None = ours(None, "address of a vLLM server, http://HOST:8000", "none: vLLM in this process")
    rows_per_batch: Positive = ours(
        256, "answers that a process decodes together", "memory and speed only; the cache of 256 fills GPUs at 7B"
    )
    memory_share: Share = ours(0.5, "of the GPU's memory, for vLLM in this process", "the rest is for reward models")

    @model_validator(mode="after")
    def _server_of_vllm(self) -> Self:
        if self.server is not None and self.engine != "vllm":
            raise ValueError(f"server ({self.server}) is an address of vLLM, and engine is {self.engine}")
        return self
