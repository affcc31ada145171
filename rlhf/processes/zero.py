"""DeepSpeed's ZeRO in the Trainer's hands: zero2 cuts gradients and moments in parts, zero3 weights too. The one door
to deepspeed.

Accelerate and transformers hear of it only while a model is read or trained. They keep what they hear in variables of
the environment and of modules, and would cut in parts, too, what samples or scores afterwards.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

from rlhf.processes import engine, team

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BATCH = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
SIZES = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
"""What the Trainer knows: how large a batch is, and from the model's width how much is sent, or kept whole, at once."""

PARTS = ("single_partition_of_fp32_groups", "base_optimizer_state", "fp32_flat_groups", "optimizer_state_dict")
"""What changes while DeepSpeed's optimizer steps: weights and moments, of zero1 and zero2, and of zero3."""


def stage() -> int:
    """1, 2 or 3; 0 where DeepSpeed has no part."""
    return int(engine.named().removeprefix("zero")) if engine.named().startswith("zero") and team.size() > 1 else 0


@contextmanager
def reading() -> Iterator[None]:
    """Around the reading of a model that is to learn: under zero3 a process keeps its part of it."""
    if stage() < 3:
        yield
        return
    with _told():
        from transformers.integrations import HfDeepSpeedConfig

        config = HfDeepSpeedConfig(_settings(train_micro_batch_size_per_gpu=1))  # a number is asked for, and not used
        yield
        del config  # it counts for as long as it lives


@contextmanager
def training() -> Iterator[dict[str, Any]]:
    """Around a training: what the Trainer is told."""
    if not stage():
        yield {}
        return
    with _told():
        from accelerate import PartialState
        from accelerate.state import AcceleratorState
        from torch import distributed

        logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)  # it warns that this is DeepSpeed's to say
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState(backend=distributed.get_backend())  # unsaid, there is none on a CPU, and one process only
        yield {
            "deepspeed": _settings(dict.fromkeys(SIZES, "auto"), **dict.fromkeys(BATCH, "auto")),
            "accelerator_config": {"use_configured_state": True},
        }


@contextmanager
def whole(*parameters: Tensor) -> Iterator[None]:
    """Inside, these parameters are whole, and what the first process makes of them is so afterwards."""
    with _gathered(parameters, changes=True):
        yield


def part(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter; of one that zero3 has cut, the parameter itself is empty."""
    return getattr(parameter, "ds_tensor", parameter)


def held(optimizer: Any) -> dict[str, Any]:
    """This process's part of the weights that learn and of their moments, out of DeepSpeed's optimizer."""
    return {name: value for name, value in optimizer.state_dict().items() if name in PARTS}


def restore(optimizer: Any, held: Mapping[str, Any]) -> None:
    """Put this process's part back, and the weights together from all parts."""
    inner = optimizer.optimizer  # accelerate's wrapper hands on one argument only
    of_all = [{**inner.state_dict(), **held}] * team.size()  # it picks its own; what is no part never changes
    if stage() == 3:
        inner.checkpoint_event_prologue()
        inner.load_state_dict(of_all)
        inner.checkpoint_event_epilogue()
    else:
        inner.load_state_dict(of_all, load_from_fp32_weights=True)
        inner.update_lp_params()


def gathered(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """All weights of a model that zero3 has cut, on the first process; None: the model has them itself."""
    if not _cut(model.parameters()):
        return None
    state = {}
    for name, value in model.state_dict(keep_vars=True).items():
        with _gathered([value], changes=False):
            if team.rank() == 0:
                state[name] = value.detach().cpu().clone()
    return state


@contextmanager
def _gathered(parameters: Sequence[Tensor], *, changes: bool) -> Iterator[None]:
    if not _cut(parameters):
        yield
        return
    import deepspeed

    with _hushed(), deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if changes else None):
        yield


def _cut(parameters: Iterable[Tensor]) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in parameters)


def _settings(cut: Mapping[str, Any] = {}, **batch: Any) -> dict[str, Any]:
    """The optimizer is ours and steps where the weights are."""
    return {"zero_optimization": {"stage": stage(), **cut}, "zero_allow_untested_optimizer": True, **batch}


@contextmanager
def _told() -> Iterator[None]:
    """DeepSpeed is there, and forgotten afterwards."""
    import deepspeed
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled for minutes at first use; gloo will do
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    cpu = os.environ.pop("ACCELERATE_USE_CPU", None)  # where it is set accelerate leaves DeepSpeed out
    try:
        with _hushed():
            yield
    finally:
        del os.environ["ACCELERATE_USE_DEEPSPEED"]
        if cpu is not None:
            os.environ["ACCELERATE_USE_CPU"] = cpu
        unset_hf_deepspeed_config()


def _hushed() -> catch_warnings[None]:
    """DeepSpeed calls torch by old names."""
    return catch_warnings(action="ignore", category=FutureWarning)
