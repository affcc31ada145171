"""Which token belongs to which turn: the one place that turns dialogues into ids and back (Llama 2's chat format).

Llama 2 writes every finished exchange as BOS + ids("[INST] question [/INST] answer ") + EOS, each exchange encoded on
its own, and an open one as BOS + ids("[INST] question [/INST]"). A system message is folded into the first question.
A tokenizer with a chat template of its own is obeyed instead, and checked: a longer dialogue may only append.

Text never becomes a control token: a message that spells one is refused, as Meta's own code flags it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from rlhf.data.types import Turn, check_turns, turns_to_json
from rlhf.errors import DataError, UnsafeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

INST, END_INST = "[INST]", "[/INST]"
SYS, END_SYS = "<<SYS>>\n", "\n<</SYS>>\n\n"
TAGS = (INST, END_INST, SYS.strip(), END_SYS.strip())

IGNORED = -100  # the label of a token that bears no loss
SHORT = 500  # characters of a text whose ids are kept
PADS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<unk>")  # tokens of others that may serve as padding

# Written out for whoever serves the checkpoint. {% generation %} marks what transformers calls assistant tokens.
LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set spoken = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set spoken = messages %}{% endif %}"
    "{% for message in spoken %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{% set content = system + message['content'] if loop.first else message['content'] %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('only user and assistant may speak after a system message') }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A dialogue as ids, and whose they are.

    Attributes:
        input_ids: [S]
        owner: [S] index, in the turns given, of the answer a token belongs to (its EOS included); -1 for prompts and
            template.
    """

    input_ids: list[int]
    owner: list[int]


def encode_dialogue(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, where: str | None = None) -> Encoded:
    """The ids of a dialogue that ends with an answer, up to and including that answer's EOS.

    Args:
        where: the row's id, named in errors.

    Raises:
        DataError: if roles don't alternate, a message holds a control tag, or the template can't be followed exactly.
    """
    check_turns(turns, last="assistant", where=where)
    _refuse_tags(tokenizer, turns, where)
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    ids: list[int] = []
    owner: list[int] = []
    for index in answers:
        if is_llama2(tokenizer):
            start = 0 if index == answers[0] else index - 1
            prompt = ids + _exchange(tokenizer, turns[start:index])
            whole = ids + _exchange(tokenizer, turns[start : index + 1])
        else:
            prompt = _templated(tokenizer, turns[:index], where)
            whole = _cut_after_eos(tokenizer, _templated(tokenizer, turns[: index + 1], where), len(prompt), where)
        if prompt[: len(ids)] != ids or whole[: len(prompt)] != prompt:
            what = (
                f"the chat format rewrites what stands before turn {index + 1}, so tokens can't be told apart by turn"
            )
            raise DataError(what, where=where, hints=["use a chat template under which longer dialogues only append"])
        owner += [-1] * (len(prompt) - len(ids)) + [index] * (len(whole) - len(prompt))
        ids = whole
    return Encoded(ids, owner)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, where: str | None = None) -> list[int]:
    """The ids of turns that end with the user's, ready for the answer: a prefix of the answered dialogue's ids."""
    check_turns(turns, last="user", where=where)
    _refuse_tags(tokenizer, turns, where)
    if not is_llama2(tokenizer):
        return _templated(tokenizer, turns, where)
    start = len(turns) - 1
    if start < 2:  # the first question, and the system message folded into it
        return _exchange(tokenizer, turns)
    earlier = encode_dialogue(tokenizer, turns[:start], where=where)
    return earlier.input_ids + _exchange(tokenizer, turns[start:])


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str, *, where: str | None = None) -> list[int]:
    """The ids of an answer as they follow any prompt: prompt ids + these = the dialogue's ids, EOS included."""
    question = Turn("user", "a")
    whole = encode_dialogue(tokenizer, (question, Turn("assistant", text)), where=where)
    return [token for token, owner in zip(whole.input_ids, whole.owner, strict=True) if owner >= 0]


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of sampled ids: control tokens and tags removed, blanks at both ends too, so it can be encoded again."""
    control = _control_ids(tokenizer)
    kept = [token for token in ids if token not in control]
    text = str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    tags = forbidden_tags(tokenizer)
    while found := [tag for tag in tags if tag in text]:  # removing one may join another: "[IN[INST]ST]"
        for tag in found:
            text = text.replace(tag, "")
    return text.strip()


def labels(encoded: Encoded, train_on: Literal["all_answers", "last_answer"]) -> list[int]:
    """The ids that bear loss, -100 elsewhere: every answer (3.1), or only the last one (Ghost Attention, 3.3)."""
    last = max(encoded.owner)
    least = {"all_answers": 0, "last_answer": max(last, 0)}[train_on]
    pairs = zip(encoded.input_ids, encoded.owner, strict=True)
    return [token if owner >= least else IGNORED for token, owner in pairs]


def is_llama2(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether dialogues are written in Llama 2's format by us: the tokenizer brings no template, or carries ours."""
    return not tokenizer.chat_template or tokenizer.chat_template == LLAMA2_TEMPLATE


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what decides how a dialogue is written: the template and the text of BOS and EOS."""
    template = LLAMA2_TEMPLATE if is_llama2(tokenizer) else tokenizer.chat_template
    parts = [template, _content(tokenizer.bos_token), _content(tokenizer.eos_token)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_template(tokenizer: PreTrainedTokenizerBase, digest: str) -> None:
    """Raise ``DataError`` unless the tokenizer writes dialogues as those were that the model was trained on."""
    found = template_digest(tokenizer)
    if found != digest:
        raise DataError(
            f"the chat template has digest {found}, the model was trained with {digest}",
            where=str(tokenizer.name_or_path) or None,
            hints=["use the tokenizer saved with the checkpoint", "or train again with this one"],
        )


def ensure_pad(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give the tokenizer a pad token that is neither EOS nor BOS; True if it is new, so that embeddings must grow.

    With pad = EOS a model never learns to stop, and a score is read one token early. One that exists is kept; else a
    known spare token serves; else ``<pad>`` is added. What was done is logged.

    Raises:
        DataError: if the tokenizer has no EOS, so that an answer could never end.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no end-of-sequence token, so an answer could never end",
            where=str(tokenizer.name_or_path) or None,
            hints=["set eos_token in its tokenizer_config.json"],
        )
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, None}
    if tokenizer.pad_token_id not in taken:
        return False
    size, known = len(tokenizer), tokenizer.get_vocab()
    pad = next((pad for pad in PADS if pad in known and known[pad] not in taken), "<pad>")
    tokenizer.add_special_tokens({"pad_token": pad})
    grew = len(tokenizer) > size
    action = "added to the vocabulary" if grew else "already in the vocabulary"
    logger.warning("padding with %r (id %d, %s)", tokenizer.pad_token, tokenizer.pad_token_id, action)
    return grew


def forbidden_tags(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Texts that no message may hold: they would be read as control tokens, or as the template's own marks."""
    special = [token.content.strip() for token in tokenizer.added_tokens_decoder.values() if token.special]
    named = [_content(token).strip() for token in tokenizer.all_special_tokens]
    tags = TAGS if is_llama2(tokenizer) else ()
    return tuple(sorted({*special, *named, *tags} - {""}, key=lambda tag: (-len(tag), tag)))


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _exchange(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[int]:
    """One exchange of Llama 2: [system] user, and the assistant's answer if there is one."""
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise DataError(
            f"Llama 2's chat format needs BOS and EOS (got {tokenizer.bos_token!r} and {tokenizer.eos_token!r})",
            where=str(tokenizer.name_or_path) or None,
            hints=["give the tokenizer a chat_template of its own", "or set its bos_token and eos_token"],
        )
    system = f"{SYS}{turns[0].content}{END_SYS}" if turns[0].role == "system" else ""
    question = turns[1 if system else 0].content
    text = f"{INST} {(system + question).strip()} {END_INST}"
    answer = turns[-1].content if turns[-1].role == "assistant" else None
    if answer is None:
        return [tokenizer.bos_token_id, *_plain_ids(tokenizer, text)]
    return [tokenizer.bos_token_id, *_plain_ids(tokenizer, f"{text} {answer.strip()} "), tokenizer.eos_token_id]


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids_of = _known_ids if len(text) <= SHORT else _known_ids.__wrapped__
    return ids_of(tokenizer, len(tokenizer), text).tolist()


@lru_cache(maxsize=2**14)
def _known_ids(tokenizer: PreTrainedTokenizerBase, size: int, text: str) -> array[int]:
    """The ids of a text, by a tokenizer that had so many tokens; a dialogue of twenty turns asks for its first often.

    Those of 16,384 short texts are kept, four bytes a token: some 45 MB if every letter is one.
    """
    # verbose=False: it would warn of what is longer than the context, which is refused by us, or cut.
    return array("i", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _templated(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], where: str | None) -> list[int]:
    """The ids by the tokenizer's own template, ready for the answer if the last turn is the user's."""
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError

    open_ended = turns[-1].role == "user"
    try:
        ids: Any = tokenizer.apply_chat_template(
            turns_to_json(turns), tokenize=True, add_generation_prompt=open_ended, return_dict=False
        )
    except SecurityError as error:
        raise UnsafeError(f"the chat template reaches for what it must not: {error}", where=where) from None
    except (TemplateError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"the tokenizer's chat template refused the dialogue: {error}", where=where) from None
    return list(ids)


def _cut_after_eos(tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int, where: str | None) -> list[int]:
    """``ids`` up to the first EOS at or after ``start``: what a template writes behind it is not the answer's."""
    try:
        return ids[: ids.index(tokenizer.eos_token_id, start) + 1]
    except ValueError:
        raise DataError(
            f"the tokenizer's chat template doesn't end an answer with its EOS {tokenizer.eos_token!r}",
            where=where,
            hints=["set eos_token to the token that ends a turn, or the model would never learn to stop"],
        ) from None


def _refuse_tags(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], where: str | None) -> None:
    tags = forbidden_tags(tokenizer)
    for number, turn in enumerate(turns, start=1):
        found = [tag for tag in tags if tag in turn.content]
        if found:
            raise DataError(
                f"the {turn.role}'s turn {number} holds {found[0]!r}, which would be read as a control token",
                where=where,
                hints=["leave the row out, or write the tag differently"],
            )


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    special = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*special, *tokenizer.all_special_ids])


def _content(token: Any) -> str:
    return "" if token is None else str(token)
