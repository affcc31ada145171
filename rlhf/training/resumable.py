"""A Hugging Face Trainer that keeps its place in our saves, writes the ledger, and takes no step that is not finite.

The Trainer's own checkpoints are pickles in part, and one that is half written blocks the run. Its hooks for writing
and reading them are filled with ours; the loop, and how it finds its place in an epoch again, stay its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from rlhf.errors import NonFiniteError
from rlhf.processes import team, zero
from rlhf.resume.saves import Saves
from rlhf.resume.state import cut_like, random_state, set_random_state
from rlhf.tracking.track import Tracker


class ResumableTrainer(Trainer):
    """Mixed into TRL's trainers. A batch must have a column `row`, the places of its samples in `ids`."""

    def fit(
        self,
        *,
        saves: Saves,
        track: Tracker,
        part: str,
        ids: Sequence[str | Sequence[str]],
        steps_per_epoch: int,
        epochs: int,
    ) -> None:
        """Train, from the last save of this part on if there is one."""
        self.saves, self.track, self.part, self.ids, self.steps_per_epoch = saves, track, part, ids, steps_per_epoch
        self.micro_batches: list[Mapping[str, Tensor]] = []
        self.losses: list[Tensor] = []
        self.rows: list[int] = []
        track.ledger_of(part, ids, draws=len(ids), epochs=epochs)
        self.add_callback(AfterStep(self))
        if team.size() > 1:  # it would leave out what it takes for rows that were doubled to fill a last batch
            self.accelerator.gather_for_metrics = self.accelerator.gather
        save = saves.begin(part)
        with saves.stop.patience():
            if save is None:
                self.train()
            else:
                self.own = save.own() or {}
                self.held = save.state() | self.own
                if "optimizer" not in self.held or (zero.stage() and not save.alike):
                    raise save.refused(track.step, held="all of it" if "optimizer" in self.held else "a part")
                place = Path(self.args.output_dir) / TRAINER_STATE_NAME  # the one file it insists on reading itself
                place.write_text(json.dumps(self.held["trainer"]), encoding="utf-8")
                self.train(resume_from_checkpoint=self.args.output_dir)
        saves.finish(part)

    # --- the Trainer's hooks ---

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        state = {"trainer": dataclasses.asdict(self.state), "scheduler": self.lr_scheduler.state_dict()}
        own = {
            "random": random_state(),
            # what the next line of metrics will be the mean of
            "loss": self._tr_loss,
            "loss_logged": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "metrics": dict(self._metrics["train"]),
            "tokens": self._total_train_tokens,
        }
        if zero.stage():
            own["optimizer"] = zero.held(self.optimizer)
        else:
            weights = own if any(isinstance(parameter, DTensor) for parameter in self.model.parameters()) else state
            weights |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.saves.write(self.part, state, own)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        # DeepSpeed would read pickles of its own.
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        whole = self.model.state_dict()
        self.model.load_state_dict({name: cut_like(part, whole[name]) for name, part in self.held["model"].items()})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if zero.stage():
            zero.restore(self.optimizer, self.held["optimizer"])
        else:
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            moments = {
                i: {name: cut_like(part, parameters[i]) for name, part in held.items()}
                for i, held in self.held["optimizer"]["state"].items()
            }
            self.optimizer.load_state_dict({**self.held["optimizer"], "state": moments})
        self.lr_scheduler.load_state_dict(self.held["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # Called where the loop goes on, after it has set its running means to zero.
        if not self.own:
            return
        set_random_state(self.own["random"])
        self._tr_loss = self.own["loss"].to(self.args.device)
        self._total_loss_scalar, self._globalstep_last_logged = self.own["loss_logged"], self.own["last_logged"]
        self._metrics["train"].update(self.own["metrics"])
        self._total_train_tokens = self.own["tokens"]

    def training_step(self, model: Any, inputs: Mapping[str, Tensor], *more: Any) -> Tensor:
        """Forward and backward of one micro-batch."""
        tensors = {name: tensor for name, tensor in inputs.items() if name != "row"}
        self.rows += inputs["row"].tolist()
        self.micro_batches.append(tensors)
        loss: Tensor = super().training_step(model, tensors, *more)
        self.losses.append(loss.detach())
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        finite = torch.isfinite(torch.stack([torch.as_tensor(norm).to(self.losses[0]), *self.losses])).all()
        if any(team.any_of(not finite)):  # of several processes all stop, and the first leaves the bundle
            raise self._garbage()
        return norm

    # --- the steps ---

    def epoch(self) -> int:
        """The pass over the rows that the next step belongs to, from 0."""
        return int(self.state.global_step // self.steps_per_epoch)

    def after_step(self) -> None:
        """The optimizer has made a step: enter what it was made from."""
        step = self.state.global_step
        rows = [row for row in team.gathered(self.rows) if row < len(self.ids)]  # beyond are fillers
        self.track.ledger(self.part, step=step, epoch=(step - 1) // self.steps_per_epoch, rows=rows)
        self.rows, self.micro_batches, self.losses = [], [], []

    def _garbage(self) -> NonFiniteError:
        """What of the step is not finite, row by row: the first tensor, and the samples it comes from."""
        bad, tensor = [], ""
        # Row by row on one process only: of several, each would wait for the others' gradients.
        for place in self.rows if team.size() == 1 else ():
            found = self._first_bad(self._prepare_inputs(self.data_collator([self.train_dataset[place]])))
            if found:
                bad.append(place)
                tensor = tensor or found
        if not bad:  # finite row by row, so that it is the sum that overflows; or rows of some process
            rows = [row for row in self.rows if row < len(self.ids)]
            finite = bool(torch.isfinite(torch.stack(self.losses)).all())
            bad = team.gathered([] if finite else rows) or team.gathered(rows)
            tensor = "the loss" if any(team.any_of(not finite)) else "the gradient"
        batch = {f"{i}.{name}": value for i, inputs in enumerate(self.micro_batches) for name, value in inputs.items()}
        return NonFiniteError(
            f"{tensor} is not finite at step {self.state.global_step + 1} of {self.part}",
            where=f"{self.track.step}, before the optimizer's step; samples {named(self.ids, bad)}",
            hints=["a smaller learning rate is the usual cure"],
            tensor=tensor,
            part=self.part,
            step=self.state.global_step + 1,
            rows=bad,
            batch=batch,
        )

    def _first_bad(self, inputs: Mapping[str, Tensor]) -> str | None:
        self.model.zero_grad()
        loss = self.compute_loss(self.model, {name: tensor for name, tensor in inputs.items() if name != "row"})
        if not bool(torch.isfinite(loss).all()):
            return "the loss"
        loss.backward()
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return f"the gradient of {name}"
        return None


class AfterStep(TrainerCallback):
    """After every optimizer step: the ledger, and a save if one is due."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.after_step()
        if self.trainer.saves.due():
            control.should_save = True


def named(ids: Sequence[str | Sequence[str]], rows: Sequence[int]) -> str:
    """The first few samples by name."""
    names = [ids[row] if isinstance(ids[row], str) else "+".join(ids[row]) for row in rows]
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if names[5:] else "")
