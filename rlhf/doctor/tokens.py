"""Rows as tokens: which bear loss, whether they end in the token that stops, and which are too long.

The first rows of every source are encoded; of the others only those that could be too long, since text of n bytes
never gives more than about n tokens, and pairs whose answers differ in letter case, blanks or Unicode form alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rlhf.data.chat import IGNORED, encode_completion, encode_dialogue, encode_prompt, ensure_pad, labels
from rlhf.data.conversations import said_in
from rlhf.data.formats import Refused, require_apart
from rlhf.data.gatt import exchange
from rlhf.data.lines import Fault
from rlhf.data.sources import DROP, Raw
from rlhf.data.split import normal
from rlhf.data.types import Dialogue, Preference, Prompt
from rlhf.doctor.problems import Problems
from rlhf.doctor.rows import Read, Record
from rlhf.errors import DataError
from rlhf.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENCODED = 500  # rows of a source
SHOWN = 1  # of them are shown token by token
SLACK = 64  # tokens a turn of any template may add
Mark = Literal["context", "trained", "score", "padding"]


@dataclass(frozen=True, slots=True)
class View:
    """A row token by token: each token's text and what it is for."""

    title: str
    tokens: list[tuple[str, Mark]]


@dataclass(slots=True)
class Tally:
    """What the encoded rows of one source come to."""

    rows: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    too_long: int = 0
    views: list[View] = field(default_factory=list)


class Tokens:
    """Encodes what the rows' reader shows it, with the tokenizer that the stages will use."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, problems: Problems) -> None:
        self.tokenizer, self.recipe, self.problems = tokenizer, recipe, problems
        self.tallies: dict[str, Tally] = {}
        if ensure_pad(tokenizer):  # with the stop token in its place a model would not learn to stop
            what, hint = "it has no token to pad with", "add one and resize the embeddings of its model"
            problems.add(Fault(what, f"the tokenizer {tokenizer.name_or_path}", hint))

    def look(self, read: Read, raw: Raw, record: Record) -> bool:
        """Encode a row if it is among the first, long or suspicious; False if the recipe leaves it out."""
        if isinstance(record, str):
            return True
        tally = self.tallies.setdefault(read.setting, Tally())
        if tally.rows >= ENCODED and not self._may_be_long(record) and not _may_be_same(record):
            return True
        try:
            match record:
                case Preference():
                    require_apart(record, self.tokenizer)
                    self._pair(record, raw, tally)
                case Dialogue() if read.stage == "gatt":
                    self._conversation(record, raw, tally)
                case Dialogue():
                    self._dialogue(record, raw, tally)
                case Prompt():
                    self._prompt(record, raw, tally, read.stage)
        except DataError as error:
            self.problems.add(raw.fault(error.what, error.hints[0] if error.hints else ""))
        except Refused as refused:
            if read.source.on_bad_row == "drop":
                read.counts.drop(refused.reason)
                return False
            self.problems.add(raw.fault(refused.reason, DROP, refused.column))
        return True

    def _dialogue(self, row: Dialogue, raw: Raw, tally: Tally) -> None:
        encoded = encode_dialogue(self.tokenizer, row.turns)
        targets = labels(encoded, train_on="all_answers")
        trained = sum(label != IGNORED for label in targets)
        if not trained:
            self.problems.add(raw.fault("no token of it would be trained", "is its answer empty? leave the row out"))
        elif targets[-1] != self.tokenizer.eos_token_id:
            hint = "set eos_token to the token that ends a turn"
            self.problems.add(raw.fault("the token that stops is not trained", hint))
        self._count(tally, encoded.input_ids, trained, raw)
        if len(tally.views) < SHOWN:
            tally.views.append(View(raw.where, self._spelt(encoded.input_ids, targets)))

    def _conversation(self, row: Dialogue, raw: Raw, tally: Tally) -> None:
        """What Ghost Attention makes of a dialogue: the data's answers stand in for those the policy will give."""
        config, users = self.recipe.gatt, said_in(row, is_safety=False).users
        if len(users) < config.min_turns:
            return
        users = users[: config.max_turns]
        asked = [turn for user in users for turn in exchange(user, ".")][:-1]
        self._prompt(Prompt(row.id, tuple(asked), row.source, is_safety=False), raw, tally, "gatt")
        encoded = encode_dialogue(self.tokenizer, row.turns[: 2 * len(users)])
        targets = labels(encoded, config.train_on)
        if len(tally.views) < SHOWN:
            tally.views.append(View(raw.where, self._spelt(encoded.input_ids, targets)))

    def _pair(self, row: Preference, raw: Raw, tally: Tally) -> None:
        prompt = encode_prompt(self.tokenizer, row.prompt)
        answers = [encode_completion(self.tokenizer, text) for text in (row.chosen, row.rejected)]
        width = len(prompt) + max(map(len, answers))
        for answer in answers:
            if answer[-1] != self.tokenizer.eos_token_id:
                hint = "set eos_token to the token that ends a turn"
                self.problems.add(raw.fault("an answer doesn't end in the token that stops", hint))
            self._count(tally, prompt + answer, len(answer), raw, rows=0)
        tally.rows += 1
        if len(tally.views) < SHOWN:
            for side, answer in zip(("chosen", "rejected"), answers, strict=True):
                shown = self._spelt(prompt + answer, [IGNORED] * len(prompt) + answer)
                shown[-1] = (shown[-1][0], "score")
                pad = [("_", "padding")] * (width - len(shown))
                tally.views.append(View(f"{raw.where} {side}", [*shown, *pad]))  # type: ignore[list-item]

    def _prompt(self, row: Prompt, raw: Raw, tally: Tally, stage: str) -> None:
        ids = encode_prompt(self.tokenizer, row.turns)
        room = getattr(self.recipe, stage).max_new_tokens
        tally.rows, tally.tokens = tally.rows + 1, tally.tokens + len(ids)
        tally.longest = max(tally.longest, len(ids))
        if len(ids) + room > self.recipe.model.max_length:
            what = f"a prompt of {len(ids)} tokens and an answer of {room}; the context holds"
            hint = f"leave it out, or lower {stage}.max_new_tokens"
            self.problems.add(raw.fault(f"{what} {self.recipe.model.max_length}", hint, "prompt"))

    def _count(self, tally: Tally, ids: list[int], trained: int, raw: Raw, rows: int = 1) -> None:
        limit = self.recipe.model.max_length
        tally.rows, tally.tokens, tally.trained = tally.rows + rows, tally.tokens + len(ids), tally.trained + trained
        tally.longest = max(tally.longest, len(ids))
        if len(ids) <= limit:
            return
        tally.too_long += 1
        if self.recipe.data.too_long == "error":
            hint = "data.too_long=drop leaves such rows out, truncate_left cuts their prompts"
            self.problems.add(raw.fault(f"{len(ids)} tokens, the context holds {limit}", hint))

    def _may_be_long(self, row: Preference | Dialogue | Prompt) -> bool:
        turns = row.prompt if isinstance(row, Preference) else row.turns
        texts = [turn.content for turn in turns]
        if isinstance(row, Preference):
            texts += [max(row.chosen, row.rejected, key=len)]
        return sum(4 * len(text) + SLACK for text in texts) > self.recipe.model.max_length and (
            sum(len(text.encode("utf-8", errors="replace")) + SLACK for text in texts) > self.recipe.model.max_length
        )

    def _spelt(self, ids: list[int], targets: list[int]) -> list[tuple[str, Mark]]:
        texts = [self.tokenizer.decode([token]) for token in ids]
        return [(t, "context" if to == IGNORED else "trained") for t, to in zip(texts, targets, strict=True)]


def _may_be_same(row: Preference | Dialogue | Prompt) -> bool:
    return isinstance(row, Preference) and normal(row.chosen) == normal(row.rejected)
