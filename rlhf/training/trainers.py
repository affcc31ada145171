"""fit_lm and fit_reward: training by gradient descent on rows and on pairs. The door to TRL.

TRL and the Hugging Face Trainer bring the loop: accumulation, several processes, schedules. What is ours is put in from
outside: rows that are already tokens and labels, a collator that never lets attention leak from one packed document
into the next, and the reward models' loss from `rlhf.functional`. No mixed precision: weights keep their dtype.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer, SFTConfig

from rlhf.data.collate import PackedRow, pad_packed
from rlhf.data.order import SimilarLengths, filled
from rlhf.data.spool import Named
from rlhf.errors import ConfigError, NonFiniteError
from rlhf.functional.margin import ranking_loss
from rlhf.functional.safety_loss import safety_loss
from rlhf.models import pair_batches
from rlhf.models.pair_batches import LAYOUTS, Batching, Layout, Pair, Sizes
from rlhf.models.score import called_as
from rlhf.processes import team, zero
from rlhf.resume.saves import Saves
from rlhf.schema import AdamW
from rlhf.tracking.track import Progress, Tracker
from rlhf.training.resumable import ResumableTrainer
from rlhf.training.row_trainer import RowTrainer

NUMBERS = ("margin", "chosen_safe", "rejected_safe")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Cosine from `learning_rate` to `final_lr_ratio` of it, after `warmup_steps`; `steps` or `epochs` long."""

    learning_rate: float
    final_lr_ratio: float
    batch_size: int
    warmup_steps: int
    epochs: int = 1
    steps: int = -1


def warmup_steps(total: int, *, ratio: float, least: int = 0) -> int:
    """max(least, ratio of the steps), never more than there are (3.2.2: '3% of the total, with a minimum of 5')."""
    return min(total, max(least, round(ratio * total)))


def steps_of(rows: int, *, batch_size: int, epochs: int) -> int:
    """Optimizer steps of so many passes over the rows; the last step of a pass may have fewer rows."""
    return max(1, math.ceil(rows / batch_size)) * epochs


def fit_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[PackedRow],
    schedule: Schedule,
    optimizer: AdamW,
    *,
    seed: int,
    track: Tracker,
    saves: Saves,
    what: str,
    first_step: int = 0,
) -> None:
    """Next-token training on packed rows; a token whose label is -100 bears no loss (3.1)."""
    if saves.passed(what):
        return

    def collate(batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return {**pad_packed(batch, pad_token_id=tokenizer.pad_token_id), "row": rows_of(batch)}

    silent = [-100] * len(rows[0].labels)
    table = [{**row.as_dict(), "row": i} for i, row in enumerate((*rows, replace(rows[0], labels=silent)))]
    with _arguments(SFTConfig, schedule, optimizer, seed=seed, dataset_kwargs={"skip_prepare_dataset": True}) as args:
        trainer = RowTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(table[: len(rows) + (team.size() > 1)]),
            processing_class=tokenizer,
            data_collator=collate,
            callbacks=[Report(track, what, first_step)],
            rows=len(rows),
            together=_together(schedule, optimizer),
        )
        _train(trainer, schedule, [row.documents for row in rows], saves, track, what)


def fit_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    schedule: Schedule,
    optimizer: AdamW,
    *,
    safety_loss_coef: float,
    center_coef: float,
    seed: int,
    track: Tracker,
    saves: Saves,
    what: str,
) -> Batching:
    """Rank the chosen completion above the rejected by at least the margin (3.2.2, eq. 2).

        L = -log sigmoid(r_c - r_r - m) + safety_loss_coef * L_safety + center_coef * (r_c + r_r)^2

    L_safety is the auxiliary loss of Table 29 (see functional/safety_loss.py), and counts labelled pairs only. Returned
    is how the pairs were laid out, and how much of that was padding.
    """
    sizes = pair_batches.sizes_of(pairs)
    batching = batching_of(model, sizes, schedule, optimizer, seed=seed)
    if saves.passed(what):
        return batching
    places = np.arange(len(pairs) + (team.size() > 1))  # of several processes, one more to fill the last batch with
    # max_length=None: TRL would drop longer pairs without a word; lengths were checked when the pairs were made.
    arguments = _arguments(TrlRewardConfig, schedule, optimizer, seed=seed, max_length=None)
    with arguments as args, called_as(model, pair_batches.pair_scores):
        trainer = PairTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_dict({"row": places}),
            processing_class=tokenizer,
            data_collator=lambda batch: pairs_at(batch, pairs, batching.layout, pad_token_id=tokenizer.pad_token_id),
            callbacks=[Report(track, what, 0)],
            order=SimilarLengths(sizes[batching.layout].widths, batch_size=schedule.batch_size, seed=seed),
            together=_together(schedule, optimizer),
            loss=partial(reward_loss, safety_loss_coef=safety_loss_coef, center_coef=center_coef),
        )
        _train(trainer, schedule, Named(pairs), saves, track, what)
    return batching


class PairTrainer(ResumableTrainer, RewardTrainer):
    """TRL's trainer with our loss: its own has no safety term, and reads the score at a place of its own."""

    loss_is_scaled_for_ga = True  # it is a mean over the pairs of the step, not of the micro-batch

    def __init__(self, *, order: SimilarLengths, together: int, loss: Callable[..., Any], **given: Any) -> None:
        self.order, self.together, self.pair_loss = order, together, loss
        super().__init__(**given)

    def _prepare_dataset(self, dataset: Any, *more: Any) -> Any:
        return dataset  # the places of pairs that are tokens already

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return filled(self.order, multiple=self.together, epoch=self.epoch)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        return team.summed(sum(batch["real"].sum() for batch in batch_samples).to(device))

    def training_step(self, model: Any, inputs: Mapping[str, Tensor], *more: Any) -> Any:
        self.track.tokens += pair_batches.tokens_of(inputs)
        return super().training_step(model, inputs, *more)

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        chosen, rejected = model(inputs)
        real = inputs["real"] > 0
        if not bool(real.any()):  # fillers of a last batch, which only keep this process in step
            return 0.0 * (chosen + rejected).sum()
        loss, parts = self.pair_loss(chosen[real], rejected[real], {key: inputs[key][real] for key in NUMBERS})
        if num_items_in_batch is not None:  # a mean over the step's pairs, wherever they are; DDP divides by ranks
            loss = loss * real.sum() * team.size() / num_items_in_batch
        for name, value in parts.items():
            self._metrics["train"][name].append(float(value))
        return (loss, {"scores": torch.stack([chosen, rejected])}) if return_outputs else loss


def pairs_at(
    batch: Sequence[Mapping[str, Any]], pairs: Sequence[Pair], layout: Layout, *, pad_token_id: int
) -> dict[str, Tensor]:
    """The pairs at the places of a batch as tensors; a place after the last pair is a filler, and not `real`."""
    rows = rows_of(batch)
    found = [pairs[row if row < len(pairs) else 0] for row in rows.tolist()]
    sides = [(pair.chosen_ids, pair.rejected_ids) for pair in found]
    made = pair_batches.collate(sides, layout, pad_token_id=pad_token_id)
    numbers = {name: torch.tensor([getattr(pair, name) for pair in found]) for name in NUMBERS}
    return made | numbers | {"real": (rows < len(pairs)).float(), "row": rows}


def rows_of(batch: Sequence[Mapping[str, Any]]) -> Tensor:
    """Where the samples of a batch stand among all, for the ledger."""
    return torch.tensor([row["row"] for row in batch])


def batching_of(
    model: PreTrainedModel, sizes: Mapping[Layout, Sizes], schedule: Schedule, optimizer: AdamW, *, seed: int
) -> Batching:
    """The cheaper of the two layouts, by the very batches of the first epoch."""
    micro = optimizer.microbatch_size or schedule.batch_size

    def batches(layout: Layout) -> Iterator[Sequence[int]]:
        order = array("q", SimilarLengths(sizes[layout].widths, batch_size=schedule.batch_size, seed=seed))
        return (order[i : i + micro] for i in range(0, len(order), micro))

    return pair_batches.cheapest(model, sizes, {layout: batches(layout) for layout in LAYOUTS})


def reward_loss(
    chosen: Tensor, rejected: Tensor, labels: Mapping[str, Tensor], *, safety_loss_coef: float, center_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of `fit_reward`, averaged over pairs, and its parts for the dashboards."""
    ranking = ranking_loss(chosen, rejected, labels["margin"].to(chosen)).mean()
    labelled = labels["chosen_safe"].isfinite() & labels["rejected_safe"].isfinite()
    safe = [labels[key].to(chosen.device) > 0.5 for key in ("chosen_safe", "rejected_safe")]
    safety = safety_loss(chosen, rejected, safe[0], safe[1], labelled.to(chosen.device)).mean()
    center = (chosen + rejected).square().mean()
    parts = {
        "loss/ranking": ranking.detach(),
        "loss/safety": safety.detach(),
        "accuracy": (chosen > rejected).float().mean().detach(),
        "mean_score": torch.cat([chosen, rejected]).mean().detach(),
        "score_gap": (chosen - rejected).mean().detach(),
    }
    return ranking + safety_loss_coef * safety + center_coef * center, parts


class Report(TrainerCallback):
    """The Trainer's numbers to our tracker."""

    bar: Progress

    def __init__(self, track: Tracker, what: str, first_step: int) -> None:
        self.track, self.what, self.first_step = track, what, first_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        values = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, int | float)}
        if "train_runtime" in values:
            return
        names = {key: f"{self.what}/{key}" for key in values if key not in ("epoch", "num_tokens")}
        self.track.log({names[key]: values[key] for key in names}, step=self.first_step + state.global_step)


def _together(schedule: Schedule, optimizer: AdamW) -> int:
    """Rows that all processes do at once: a micro-batch each."""
    return (optimizer.microbatch_size or max(1, schedule.batch_size // team.size())) * team.size()


@contextmanager
def _arguments(kind: Any, schedule: Schedule, optimizer: AdamW, *, seed: int, **more: Any) -> Iterator[Any]:
    """TRL's arguments for a schedule; the Trainer's own output folder is a scratch folder that stays empty."""
    together = _together(schedule, optimizer)
    if schedule.batch_size % together:
        raise ConfigError(
            f"batch_size ({schedule.batch_size}) must be a multiple of microbatch_size * processes ({together})"
        )
    scratch = TemporaryDirectory(prefix="rlhf-trainer-", ignore_cleanup_errors=True)
    with scratch as folder, zero.training() as engine:
        yield kind(
            output_dir=folder,
            seed=seed % 2**32,
            per_device_train_batch_size=together // team.size(),
            gradient_accumulation_steps=schedule.batch_size // together,
            num_train_epochs=schedule.epochs,
            max_steps=schedule.steps,
            learning_rate=schedule.learning_rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": schedule.final_lr_ratio},
            warmup_steps=schedule.warmup_steps,
            optim="adamw_torch_fused",
            adam_beta1=optimizer.beta1,
            adam_beta2=optimizer.beta2,
            adam_epsilon=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            max_grad_norm=optimizer.max_grad_norm,
            bf16=False,  # the model's own dtype decides; no second, silent cast
            activation_checkpointing=False,  # TRL's default is to switch it on; models are loaded with it where asked
            logging_steps=10,
            logging_first_step=True,
            logging_nan_inf_filter=False,  # the Trainer's default logs a NaN loss as 0.0
            save_strategy="no",
            report_to="none",
            ddp_find_unused_parameters=False,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            **engine,
            **more,
        )


def _train(
    trainer: Any, schedule: Schedule, ids: Sequence[str | Sequence[str]], saves: Saves, track: Tracker, what: str
) -> None:
    """Run it, and leave nothing of the Trainer's on the terminal: the tracker shows what there is to see."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    per_epoch = steps_of(len(ids), batch_size=schedule.batch_size, epochs=1)
    total = schedule.steps if schedule.steps > 0 else per_epoch * schedule.epochs
    (report,) = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Report)]
    with track.progress(total, what) as report.bar:
        epochs = math.ceil(total / per_epoch)
        trainer.fit(saves=saves, track=track, part=what, ids=ids, steps_per_epoch=per_epoch, epochs=epochs)
    bad = [name for name, p in trainer.model.named_parameters() if not bool(torch.isfinite(zero.part(p)).all())]
    if bad:
        raise NonFiniteError(f"parameter {bad[0]} is not finite after training", hints=["lower the learning rate"])
