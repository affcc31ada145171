"""RowTrainer: TRL's trainer on packed rows of tokens, their documents apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from transformers import Trainer
from trl import SFTTrainer
from trl.trainer.utils import entropy_from_logits

from rlhf.data.chat import IGNORED
from rlhf.data.order import filled
from rlhf.models.packing import documents
from rlhf.processes import team
from rlhf.training.resumable import ResumableTrainer

FEW_LOGITS = 2**24
"""A step of so many logits makes them at once: 64 MiB in float32."""


class RowTrainer(ResumableTrainer, SFTTrainer):
    """All tokens of a row are counted, which TRL's own count does not; logits that are few are made at once."""

    def __init__(self, *, rows: int, together: int, **given: Any) -> None:
        self.rows_in_all, self.together = rows, together
        super().__init__(**given)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if team.size() == 1:
            return super()._get_train_sampler(train_dataset)
        places = range(self.rows_in_all)
        shuffled = SeedableRandomSampler(places, generator=torch.Generator(), data_seed=self.args.seed)
        return filled(shuffled, multiple=self.together, epoch=self.epoch)

    def training_step(self, model: Any, inputs: Mapping[str, Tensor], *more: Any) -> Any:
        self.track.tokens += int((inputs["input_ids"] != self.processing_class.pad_token_id).sum())
        return super().training_step(model, inputs, *more)

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over the step's labelled tokens, wherever they are.

        TRL's head makes logits in pieces, a second time in the backward pass, and on a CPU for tokens without loss,
        too: a fifth of a step. Where rows are laid end to end (a CPU) and the step's logits are few, the model makes
        them itself, once, where there is loss.
        """
        inputs = dict(documents(self.model.base_model, inputs))
        # The tokens of all processes count, so that all go the same way: each way has collectives of its own.
        end_to_end = "cu_seq_lens_q" in inputs and num_items_in_batch is not None and not return_outputs
        if not end_to_end or num_items_in_batch * self.model.config.vocab_size > FEW_LOGITS:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        where = (inputs["labels"][0, 1:] != IGNORED).nonzero()[:, 0]
        targets = inputs["labels"][:, where + 1]
        read = {"logits_to_keep": where, "labels": targets, "shift_labels": targets, "use_cache": False}
        loss, made = Trainer.compute_loss(self, model, inputs | read, True, num_items_in_batch.clamp(min=1))
        coming = self.state.global_step + 1
        first = coming == 1 and self.args.logging_first_step
        if first or coming % self.args.logging_steps == 0:  # not of all since then: they take a 20th of a step
            self._note_predictions(made.logits.detach().float(), targets)
        return loss

    def _note_predictions(self, logits: Tensor, targets: Tensor) -> None:
        """What TRL notes of its own head: entropy in nats, and the share of right first guesses, of all processes.

        Logged is the step's own, where TRL logs the mean since the step before that was logged.
        """
        sums = (entropy_from_logits(logits).sum(), (logits.argmax(-1) == targets).sum(), targets.numel())
        entropy, right, count = team.summed(torch.tensor([float(value) for value in sums])).tolist()
        self._metrics["train"]["entropy"].append(entropy / max(count, 1))
        self._metrics["train"]["mean_token_accuracy"].append(right / max(count, 1))
