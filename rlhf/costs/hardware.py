"""What a recipe is to run on. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hardware:
    """What it is to run on, and what is assumed of data that nobody has read yet."""

    gpus: int = 1
    engine: str = "ddp"
    cpu: bool = False
    """Processes on a CPU instead of GPUs: weights laid out for decoding, no padding."""
    gpu_memory: float | None = None
    """Bytes of one GPU; None: not said."""
    tflops: float | None = None
    """Peak of one GPU in the dtype of the weights, in 10^12 operations a second; None: not said."""
    mfu: float = 0.4
    prompt_tokens: int = 512
    """Mean length of a prompt."""
    longest_pair: int | None = None
    """Tokens of the longest pair; None: one may fill the context."""
    rows: int = 30_000
    """Of a set without a limit whose rows are not counted: they are in a local file of JSON lines."""
