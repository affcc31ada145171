"""Dialogues to a fine-tuned policy: what sft, rejection and gatt have in common (3.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.chat import encode_dialogue, labels
from rlhf.data.collate import Row, pack, share_prefixes
from rlhf.data.fit import Fit
from rlhf.data.spool import Spool
from rlhf.data.types import Dialogue
from rlhf.errors import DataError
from rlhf.pipeline import Job
from rlhf.processes import once
from rlhf.schema import FineTune
from rlhf.training.trainers import Schedule, fit_lm, steps_of, warmup_steps

TrainOn = Literal["all_answers", "last_answer"]
SHOWN_ROWS, SHOWN_TOKENS = 3, 240


def fine_tune(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dialogues: Sequence[Dialogue],
    job: Job,
    *,
    last_answer_only: frozenset[str] = frozenset(),
    part: str | None = None,
) -> None:
    """Fine-tune in place on packed dialogues.

    Args:
        last_answer_only: ids of dialogues whose earlier answers are context and bear no loss (Ghost Attention, 3.3).
        part: its name in metrics, ledger and saves, where a stage trains several models; the stage's otherwise.

    Raises:
        DataError: if a dialogue is longer than the context, and the recipe doesn't say what to do then.
    """
    config: FineTune = job.config
    length = job.recipe.model.max_length

    def fill(spools: once.Spools) -> None:
        encode(job, tokenizer, dialogues, last_answer_only, spools["rows"])

    rows = list(once.filled(job.out.parent / job.name, {"rows": Row}, fill)["rows"])
    if not rows:
        raise DataError("every dialogue is longer than the context", where=job.name, hints=["raise model.max_length"])
    read = share_prefixes(rows) if last_answer_only else rows
    packed = pack(read, length=max(config.row_length or length, max(len(row.input_ids) for row in read)))
    total = steps_of(len(packed), batch_size=config.batch_size, epochs=config.epochs)
    schedule = Schedule(
        learning_rate=config.learning_rate,
        final_lr_ratio=config.final_lr_ratio,
        batch_size=config.batch_size,
        warmup_steps=warmup_steps(total, ratio=config.warmup_ratio),
        epochs=config.epochs,
    )
    show_loss_mask(job.out / "loss_mask.jsonl", tokenizer, rows)
    trained = sum(label != -100 for row in rows for label in row.labels)
    tokens = sum(len(row.input_ids) for row in read)
    job.track.say(f"{len(rows):,} dialogues, {tokens:,} tokens, {trained / tokens:.0%} of them bear loss")
    job.track.say(f"packed into {len(packed):,} rows, {total} steps")
    what = part or job.stage
    fit_lm(policy, tokenizer, packed, schedule, config, seed=job.seed, track=job.track, saves=job.saves, what=what)


def encode(
    job: Job,
    tokenizer: PreTrainedTokenizerBase,
    dialogues: Sequence[Dialogue],
    last_answer_only: frozenset[str],
    rows: Spool[Row],
) -> None:
    """Dialogues as ids and labels; one that is too long is an error with its name, left out or cut."""
    fit = Fit(job.recipe.model.max_length, job.recipe.data.too_long)
    for dialogue in dialogues:
        where = f"{job.name}, dialogue {dialogue.id} of {dialogue.source}"
        encoded = encode_dialogue(tokenizer, dialogue.turns, where=where)
        train_on: TrainOn = "last_answer" if dialogue.id in last_answer_only else "all_answers"
        row = fitted(Row(encoded.input_ids, labels(encoded, train_on=train_on), dialogue.id), encoded.owner, fit, where)
        if row is not None:
            rows.append(row)
    if fit:
        job.track.say(str(fit))


def fitted(row: Row, owner: Sequence[int], fit: Fit, where: str) -> Row | None:
    """The dialogue without its start where it is too long: all but the last answer counts as prompt then."""
    last = owner.index(max(owner))
    kept = fit.prompt(range(last), len(owner) - last, where=where)
    if kept is None or len(kept) == last:
        return None if kept is None else row
    places = [*kept, *range(last, len(owner))]
    return Row([row.input_ids[i] for i in places], [row.labels[i] for i in places], row.id)


def show_loss_mask(path: Path, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> None:
    """For the report: of the first rows, every token as text and whether it bears loss; null for what is left out.

    Of a long row its beginning and its end are shown: of a dialogue it may be the last answer alone that bears loss.
    """
    lines = []
    for row in rows[:SHOWN_ROWS]:
        shown = [[tokenizer.decode([i]), label != -100] for i, label in zip(row.input_ids, row.labels, strict=True)]
        if left_out := max(0, len(shown) - SHOWN_TOKENS):
            begins = SHOWN_TOKENS // 3
            shown[begins : begins + left_out] = [[f" … {left_out:,} tokens … ", None]]
        lines.append(json.dumps({"tokens": shown}, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
