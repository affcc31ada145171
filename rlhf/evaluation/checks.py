"""Instructions whose keeping needs no judge, in the manner of IFEval: a rule reads the reply and says yes or no.

A row names its rules and their arguments as the public set does (`instruction_id_list`, `kwargs`). Rules that need
more than the reply's own text, such as telling languages apart, are not here; rows with one of them are counted and
left out, never guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.data.lines import json_lines
from rlhf.errors import DataError
from rlhf.evaluation.intervals import wilson

Rule = Callable[..., bool]


@dataclass(frozen=True, slots=True)
class Checked:
    """A prompt, or an instruction for a whole dialogue, with the rules that replies have to keep."""

    prompt: str
    rules: tuple[str, ...]
    arguments: tuple[Mapping[str, Any], ...]

    @property
    def known(self) -> bool:
        return all(rule in RULES for rule in self.rules)

    def kept(self, reply: str) -> list[bool]:
        """For every rule, whether the reply keeps it; silence keeps none."""
        said = bool(reply.strip())
        return [
            said and RULES[rule](reply, **{name: value for name, value in given.items() if value is not None})
            for rule, given in zip(self.rules, self.arguments, strict=True)
        ]

    @classmethod
    def from_row(cls, row: Mapping[str, Any], *, where: str = "") -> Checked:
        """A row as the public set has it.

        Raises:
            DataError: if it has other columns, or a rule other arguments.
        """
        try:
            made = cls(row["prompt"], tuple(row["instruction_id_list"]), tuple(row["kwargs"]))
            if not isinstance(made.prompt, str) or not made.prompt.strip() or not made.rules:
                raise TypeError("prompt is a text, not empty, and instruction_id_list names at least one rule")
            if made.known:
                made.kept("some reply")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            said = f"no {error}" if isinstance(error, KeyError) else error
            hints = ["a row has prompt, instruction_id_list and, for each of those, kwargs, as IFEval's rows have"]
            raise DataError(f"not a prompt with rules: {said}", where=where or None, hints=hints) from None
        return made


def read(path: str | None) -> tuple[Checked, ...]:
    """The rows of a file, at least one; none of no file."""
    rows = json_lines(Path(path).expanduser()) if path else ()
    found = tuple(Checked.from_row(row, where=f"{path}:{number}") for number, row in rows)
    if path and not found:
        raise DataError("no prompt with rules in it", where=path)
    return found


def known(rows: Sequence[Checked]) -> dict[str, Checked]:
    """Those whose rules can be checked, by their text; of two with the same text the later one."""
    return {row.prompt: row for row in rows if row.known}


def of_instruction(rules: Mapping[str, Checked], instruction: str) -> list[Checked]:
    """Those whose text stands in the instruction, as whole words: one constraint of a combination, or all of it."""
    return [rule for text, rule in rules.items() if re.search(rf"(?<!\w){re.escape(text.strip())}(?!\w)", instruction)]


def rates(rows: Sequence[Checked], replies: Sequence[str]) -> dict[str, Any]:
    """Shares of prompts with every rule kept and of rules kept, with 95% intervals."""
    kept = [row.kept(reply) for row, reply in zip(rows, replies, strict=True)]
    prompts, rules = [all(found) for found in kept], [flag for found in kept for flag in found]
    return {
        "prompts": sum(prompts) / max(1, len(prompts)),
        "rules": sum(rules) / max(1, len(rules)),
        "n": len(prompts),
        "interval": {"prompts": wilson(sum(prompts), len(prompts)), "rules": wilson(sum(rules), len(rules))},
    }


# ── reading a reply ──────────────────────────────────────────────────────────────────────────────────────────────────


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part.strip()]


def _paragraphs(text: str, separator: str = r"\n\s*\*\*\*\s*\n|\*\*\*") -> list[str]:
    return [part for part in re.split(separator, text) if part.strip()]


def _compared(count: int, relation: str, wanted: int) -> bool:
    return count >= wanted if relation == "at least" else count < wanted


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


# ── the rules ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _frequency(text: str, *, keyword: str, relation: str, frequency: int) -> bool:
    return _compared(len(re.findall(re.escape(keyword), text, re.IGNORECASE)), relation, frequency)


def _letters(text: str, *, letter: str, let_relation: str, let_frequency: int) -> bool:
    return _compared(text.lower().count(letter.lower()), let_relation, let_frequency)


def _first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = _paragraphs(text, r"\n\n")
    if len(parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    words = _words(parts[nth_paragraph - 1])
    return bool(words) and words[0].lower() == first_word.lower()


def _json(text: str) -> bool:
    body = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) >= num_sections


def _two_answers(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _capitals(text: str, *, capital_relation: str, capital_frequency: int) -> bool:
    return _compared(sum(word.isupper() for word in _words(text)), capital_relation, capital_frequency)


def _postscript(text: str, *, postscript_marker: str) -> bool:
    pattern = r"p\.\s?p\.\s?s" if postscript_marker == "P.P.S" else r"p\.\s?s\."
    return re.search(rf"\s*{pattern}.*$", text.lower(), re.MULTILINE) is not None


def _bullets(text: str, *, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*].*|-.*)$", text, re.MULTILINE)) == num_bullets


def _highlights(text: str, *, num_highlights: int) -> bool:
    found = re.findall(r"\*\*[^*\n]*\*\*|\*[^*\n]*\*", text)
    return sum(bool(part.strip("*").strip()) for part in found) >= num_highlights


RULES: Mapping[str, Rule] = {
    "punctuation:no_comma": lambda text: "," not in text,
    "length_constraints:number_words": lambda text, *, relation, num_words: _compared(
        len(_words(text)), relation, num_words
    ),
    "length_constraints:number_sentences": lambda text, *, relation, num_sentences: _compared(
        len(_sentences(text)), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": lambda text, *, num_paragraphs: len(_paragraphs(text)) == num_paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "keywords:existence": lambda text, *, keywords: all(_has(text, word) for word in keywords),
    "keywords:forbidden_words": lambda text, *, forbidden_words: not any(_has(text, word) for word in forbidden_words),
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letters,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:title": lambda text: re.search(r"<<[^\n]*\S[^\n]*>>", text) is not None,
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": lambda text: any(
        f"My answer is {word}." in text for word in ("yes", "no", "maybe")
    ),
    "startend:quotation": lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "startend:end_checker": lambda text, *, end_phrase: (
        text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    "change_case:english_lowercase": lambda text: text.islower(),
    "change_case:english_capital": lambda text: text.isupper(),
    "change_case:capital_word_frequency": _capitals,
    "detectable_content:postscript": _postscript,
    "detectable_content:number_placeholders": lambda text, *, num_placeholders: (
        len(re.findall(r"\[.*?\]", text)) >= num_placeholders
    ),
    "combination:two_responses": _two_answers,
    "combination:repeat_prompt": lambda text, *, prompt_to_repeat: (
        text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
}


def _always(text: str, rule: str, **given: Any) -> Checked:
    return Checked(text, (rule,), (given,))


INSTRUCTIONS = (
    _always("Always answer in lowercase letters only.", "change_case:english_lowercase"),
    _always("Always answer in capital letters only.", "change_case:english_capital"),
    _always("Never use a comma in your answers.", "punctuation:no_comma"),
    _always("Always put your whole answer in double quotation marks.", "startend:quotation"),
    _always(
        "Always end your answer with the words: Is there anything else?",
        "startend:end_checker", end_phrase="Is there anything else?",
    ),
    _always(
        "Always give your answer a title in double angular brackets, such as <<title>>.", "detectable_format:title"
    ),
    _always(
        "Always add a postscript to your answer, which starts with P.S.",
        "detectable_content:postscript", postscript_marker="P.S.",
    ),
    _always(
        "Always answer with exactly three bullet points, and nothing else.",
        "detectable_format:number_bullet_lists", num_bullets=3,
    ),
    _always(
        "Always answer in fewer than 20 words.",
        "length_constraints:number_words", relation="less than", num_words=20,
    ),
    _always("Always use the word indeed in your answer.", "keywords:existence", keywords=["indeed"]),
    _always("Always answer in JSON, and write nothing else.", "detectable_format:json_format"),
)  # fmt: skip
"""For dialogues of people, where `evaluate.instructions.path` names no others. Some are kept by chance now and then."""
