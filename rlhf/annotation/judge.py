"""A judge model as annotator: an OpenAI-compatible endpoint, asked twice about every pair, the second time swapped.

Judges favour what they read first. Two verdicts that contradict each other cancel: what is left is the mean, and where
nothing is left, no pair. A local checkpoint is judged with by serving it (vLLM, llama.cpp and TGI all speak this).
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, get_args

from rlhf.annotation.pairs import Candidate
from rlhf.annotation.people import shown
from rlhf.data.types import RATINGS, Preference, Rating
from rlhf.errors import MissingError

KEY = "RLHF_JUDGE_KEY"  # in the environment: a key has no place in a recipe
AT_ONCE = 8
TRIES = 3
SECONDS = 120
STRENGTH: dict[str, int] = {"significantly": 4, "better": 3, "slightly": 2, "negligibly": 1}
GUIDELINES = {
    "helpfulness": "Which answer is more helpful: does it do what the user asks, truthfully and well?",
    "safety": "Which answer is safer? Then say of each answer whether it is safe.",
}
FORM = (
    'Reply with one line of JSON and nothing else: {"choice": 1 or 2, "degree": "significantly" or "better" or '
    '"slightly" or "negligibly"'
)
Reason = Literal["pairs undecided in both orders", "replies not understood", "chosen although only the other is safe"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One reply of the judge: strength 4 .. 1 for the first answer, -1 .. -4 for the second, and two safety labels."""

    strength: int
    safe: tuple[bool | None, bool | None]


@dataclass(slots=True)
class Judge:
    """Where the judge is, and why pairs it was asked about came to nothing."""

    endpoint: str
    model: str
    dropped: Counter[Reason] = field(default_factory=Counter)

    def rate(self, pairs: Sequence[Candidate]) -> list[Preference]:
        """The preferences of pairs, in their order; those the judge can't decide are counted."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(self._rate, pairs))
        self.dropped.update(reason for reason in found if not isinstance(reason, Preference))
        return [rated for rated in found if isinstance(rated, Preference)]

    def __str__(self) -> str:
        return f"judge {self.model}: " + ", ".join(f"{self.dropped[reason]:,} {reason}" for reason in get_args(Reason))

    def _rate(self, pair: Candidate) -> Preference | Reason:
        given = parse(self._ask(prompt(pair, swapped=False)), pair.domain)
        again = parse(self._ask(prompt(pair, swapped=True)), pair.domain)
        if given is None or again is None:
            return "replies not understood"
        strength = given.strength - again.strength  # twice the mean: the second reply counts from the other side
        if not strength:
            return "pairs undecided in both orders"
        safe = tuple(one if one == other else None for one, other in zip(given.safe, again.safe[::-1], strict=True))
        labels = (safe[0], safe[1])
        found = pair.rated(1 if strength > 0 else 2, degree(abs(strength) / 2), labels, source=f"judge {self.model}")
        return found or "chosen although only the other is safe"

    def _ask(self, text: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": 128,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.endpoint.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        for attempt in range(1, TRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                    return str(json.load(reply)["choices"][0]["message"]["content"])
            except (OSError, ValueError, LookupError, TypeError) as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code in (400, 401, 403, 404)
                if attempt == TRIES or refused:
                    hints = ["is it running, and does its address end in /v1?", f"a key is read from ${KEY}"]
                    raise MissingError(f"the judge does not answer: {error}", where=url, hints=hints) from None
                time.sleep(0.5 * attempt)
        raise AssertionError


def prompt(pair: Candidate, *, swapped: bool) -> str:
    """What the judge is asked about a pair, in the order shown to people or in the other."""
    _, question, first, second = shown(pair)
    answers = (second, first) if swapped else (first, second)
    form = FORM + (', "safe_1": true or false, "safe_2": true or false}' if pair.domain == "safety" else "}")
    parts = [GUIDELINES[pair.domain], f"[Question]\n{question}"]
    parts += [f"[Answer {number}]\n{answer}" for number, answer in enumerate(answers, start=1)]
    return "\n\n".join([*parts, "[End]", form])


def parse(reply: str, domain: str) -> Verdict | None:
    """The verdict in a reply; None where there is none to be read."""
    found = re.search(r"\{[^{}]*\}", reply)
    try:
        row = json.loads(found[0]) if found else {}
    except ValueError:
        return None
    choice, given = row.get("choice"), row.get("degree")
    safe = (row.get("safe_1"), row.get("safe_2"))
    if choice not in (1, 2) or given not in RATINGS:
        return None
    if domain != "safety":
        safe = (None, None)
    elif not all(isinstance(label, bool) for label in safe):
        return None
    return Verdict(STRENGTH[given] if choice == 1 else -STRENGTH[given], safe)


def degree(strength: float) -> Rating:
    """The level nearest to a mean strength of 0 to 4, the weaker one in doubt."""
    return next((level for level in RATINGS if strength > STRENGTH[level] - 0.5), "negligibly")
