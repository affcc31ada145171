"""State as it is saved: nested Python values to JSON and named tensors, and back, bit for bit. No pickle."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


class Stateful(Protocol):
    """What models, optimizers, schedulers and whoever counts something have in common."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def pack(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """A JSON value, and the tensors it names. Tensors that share their memory are stored once.

    Of a tensor that is cut over processes it is this one's part; see `cut_like`.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[int, torch.Size, tuple[int, ...], torch.dtype], str] = {}

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, DTensor):
            value = value.to_local()
        if isinstance(value, Tensor):
            same = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if value.numel() == 0 or same not in names:
                names[same] = path
                tensors[path] = value.detach().cpu().contiguous()
            return {"tensor": names[same]}
        if isinstance(value, Mapping):
            return {"dict": [[key, visit(item, f"{path}/{key}" if path else str(key))] for key, item in value.items()]}
        if isinstance(value, list):
            return [visit(item, f"{path}/{i}") for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": [visit(item, f"{path}/{i}") for i, item in enumerate(value)]}
        if isinstance(value, np.ndarray):
            return {"array": value.tolist(), "dtype": str(value.dtype)}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{path}: {type(value).__name__} cannot be saved")

    return visit(value, ""), tensors


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dict" in value:
        return {key: unpack(item, tensors) for key, item in value["dict"]}
    if "tuple" in value:
        return tuple(unpack(item, tensors) for item in value["tuple"])
    return np.array(value["array"], dtype=value["dtype"])


def cut_like(part: Any, whole: Any) -> Any:
    """A tensor, or this process's part of it, as one that is cut like `whole`; anything else as it is."""
    if not isinstance(whole, DTensor) or not isinstance(part, Tensor) or part.dim() != whole.dim():
        return part
    mesh, placements = whole.device_mesh, whole.placements
    if part.shape == whole.shape:  # saved by processes that each held all of it
        return distribute_tensor(part, mesh, placements, src_data_rank=None)
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


def random_state() -> dict[str, Any]:
    """The state of every global random number generator of this process."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, keys, *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every generator back to where `random_state` found it."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
