"""Whether an exported model says what the trained one says: ids, logits and greedy answers, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.data.chat import encode_prompt
from rlhf.data.types import Turn, turns_to_json
from rlhf.export import merging
from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.transformers import generate
from rlhf.models.adapters import is_adapter
from rlhf.models.load import freeze, load_policy, load_tokenizer
from rlhf.schema import ModelConfig

CONVERSATIONS = (
    (Turn("user", "how do i open the door ?"),),
    (Turn("system", "always answer in one word"), Turn("user", "where is the bread ?")),
    (Turn("user", "where is the bread ?"), Turn("assistant", "in the mill ."), Turn("user", "and the key ?")),
    (Turn("user", "  Zwölf Boxkämpfer — 拳闘 🥊\n\tover two lines  "),),
    (
        Turn("system", "be brief"),
        Turn("user", "1 + 1 = ?"),
        Turn("assistant", "2"),
        Turn("user", "2 + 2 = ?"),
        Turn("assistant", "4"),
        Turn("user", "4 + 4 = ?"),
    ),
)
"""One turn, a system prompt, several turns, letters of other scripts, blanks at the ends."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One conversation compared: the first thing that differs, or nothing."""

    tokens: int
    answered: int
    difference: str = ""


def compare(
    artefact: Path,
    exported: Path,
    config: ModelConfig,
    *,
    conversations: Sequence[Sequence[Turn]] = CONVERSATIONS,
    max_new_tokens: int = 32,
) -> list[Finding]:
    """Each conversation through the trainer's path and, as a server would take it, through the exported folder.

    Adapters are merged in both, since that is what is served; `merged_apart` says what merging itself changes.
    """
    checkpoint = artefact / "checkpoint"
    trained, tokenizer = freeze(load_policy(checkpoint, merging(config))), load_tokenizer(checkpoint)
    served = AutoModelForCausalLM.from_pretrained(str(exported), local_files_only=True).to(trained.device).eval()
    theirs = AutoTokenizer.from_pretrained(str(exported), local_files_only=True)
    return [_compared(trained, tokenizer, served, theirs, turns, max_new_tokens) for turns in conversations]


@torch.no_grad()
def merged_apart(artefact: Path, config: ModelConfig) -> float | None:
    """By how much logits differ at most between adapters beside the weights, as trained, and merged into them."""
    checkpoint = artefact / "checkpoint"
    if not is_adapter(checkpoint) or config.lora.rank is None:
        return None
    tokenizer = load_tokenizer(checkpoint)
    beside, merged = (freeze(load_policy(checkpoint, about)) for about in (config, merging(config)))
    fed = [torch.tensor([encode_prompt(tokenizer, turns)], device=beside.device) for turns in CONVERSATIONS]
    return max(float((beside(ids).logits - merged(ids).logits).abs().max()) for ids in fed)


@torch.no_grad()
def _compared(
    trained: Any, tokenizer: Any, served: Any, theirs: Any, turns: Sequence[Turn], max_new_tokens: int
) -> Finding:
    ours = encode_prompt(tokenizer, turns)
    rendered = theirs.apply_chat_template(
        turns_to_json(turns), tokenize=True, add_generation_prompt=True, return_dict=False
    )
    if list(rendered) != ours:
        return Finding(len(ours), 0, f"prompt: {_first_difference(ours, list(rendered), tokenizer)}")
    fed = torch.tensor([ours], device=trained.device)
    mask = torch.ones_like(fed)
    a, b = trained(fed, attention_mask=mask).logits, served(fed, attention_mask=mask).logits
    if not torch.equal(a, b):
        return Finding(len(ours), 0, f"logits differ by up to {(a - b).abs().max().item():.3g}")
    asked = Request([ours], ["parity"], Sampling(1, 0.0, max_new_tokens), seed=0, eos_token_id=tokenizer.eos_token_id)
    [[answer]] = generate(trained, asked)
    out = served.generate(fed, attention_mask=mask, do_sample=False, temperature=None, top_k=None, top_p=None,
                          max_new_tokens=max_new_tokens)  # fmt: skip
    continued = out[0, len(ours) :].tolist()
    if continued != list(answer.token_ids):
        what = _first_difference(list(answer.token_ids), continued, tokenizer)
        return Finding(len(ours), len(answer.token_ids), f"answer: {what}")
    return Finding(len(ours), len(continued))


def _first_difference(a: Sequence[int], b: Sequence[int], tokenizer: Any) -> str:
    """`token 7 is 'the' (12) in training and 'a' (9) when served`."""
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    trained, served = (f"{tokenizer.decode([ids[at]])!r} ({ids[at]})" if at < len(ids) else "nothing" for ids in (a, b))
    return f"token {at + 1} is {trained} in training and {served} when served"
