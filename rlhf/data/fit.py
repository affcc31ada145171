"""Rows that are longer than the context: an error, left out, or cut, by the recipe's word and always counted.

What is cut is the start of the prompt. Its first token (BOS) stays, and so do the answer and the token that ends it:
without them nothing would be learned, or never to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.data.types import Preference
from rlhf.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class Fit:
    """How rows are made to fit into ``limit`` tokens, and how many had to be; prints as one line."""

    limit: int
    too_long: Literal["error", "drop", "truncate_left"]
    dropped: int = 0
    cut: int = 0

    def prompt(self, prompt: Sequence[int], longest: int, *, where: str) -> list[int] | None:
        """The prompt's ids that fit before an answer of ``longest`` tokens; None if the row is to be left out.

        Raises:
            DataError: if they don't fit and the recipe wants to know; or if the answer alone doesn't.
        """
        room = self.limit - longest
        if len(prompt) <= room:
            return list(prompt)
        if self.too_long == "drop":
            self.dropped += 1
            return None
        if self.too_long == "error" or room < 2:
            hints = ["raise model.max_length", "or leave such rows out: data.too_long=drop"]
            if room >= 2:
                hints.append("or cut the start of their prompts: data.too_long=truncate_left")
            raise DataError(f"{len(prompt) + longest} tokens, the context holds {self.limit}", where=where, hints=hints)
        self.cut += 1
        return [prompt[0], *prompt[len(prompt) - room + 1 :]]

    def __str__(self) -> str:
        found = [(self.dropped, "left out"), (self.cut, "cut at the start of their prompts")]
        return "too long: " + ", ".join(f"{n:,} rows {what}" for n, what in found if n)

    def __bool__(self) -> bool:
        return bool(self.dropped or self.cut)


def ids_of(tokenizer: PreTrainedTokenizerBase, pair: Preference, fit: Fit) -> tuple[list[int], list[int]] | None:
    """The two sides of a pair as ids, prompt and answer, its prompt cut alike for both; None if it is to be left out.

    Raises:
        DataError: with the pair's name, for what the chat format can't hold or the context doesn't, and for two
            answers that are the same tokens.
    """
    where = f"pair {pair.id} of {pair.source}"
    chosen, rejected = (encode_completion(tokenizer, text, where=where) for text in (pair.chosen, pair.rejected))
    if chosen == rejected:
        raise DataError("chosen and rejected are the same tokens", where=where, hints=["leave the pair out"])
    longest = max(len(chosen), len(rejected))
    prompt = fit.prompt(encode_prompt(tokenizer, pair.prompt, where=where), longest, where=where)
    return None if prompt is None else (prompt + chosen, prompt + rejected)
