"""Public preference sets as they are published, to pairs of one shape (data/README.md has the rules as a table).

A shape is a function from a published row to plain pairs, {prompt, chosen, rejected} and what grades there are; what is
the same for all (turns, tags, empty texts) is checked afterwards, in `formats`. No set's degrees mean the same, so each
has a rule of its own for the paper's four levels. A tie has no winner and is no pair. The rules are ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, groupby
from typing import Any

from rlhf.data.formats import HH_TURN, Refused, Row
from rlhf.data.types import Domain, Rating
from rlhf.errors import DataError

Pair = dict[str, Any]
Rule = tuple[tuple[float, Rating], ...]  # least difference -> level, from the highest
MOST_PAIRS = 10  # of one prompt with many answers, drawn by a hash; as StackLLaMA did

# Helpsteer: 3 much, 2, 1 slightly better. Ultrafeedback: points of 10. Severity: of harm, 0 to 3. SHP: ratio of votes.
# WebGPT: -1 to 1, in steps of a quarter or a half. Stack: log2 of votes. Nectar: ranks 1 to 7. Quality: 0 to 1.
HELPSTEER: Rule = ((3, "significantly"), (2, "better"), (1, "slightly"))
ULTRAFEEDBACK: Rule = ((3, "significantly"), (2, "better"), (1, "slightly"), (0, "negligibly"))
SEVERITY: Rule = ((3, "significantly"), (2, "better"), (1, "slightly"))
SHP: Rule = ((8, "significantly"), (4, "better"), (2, "slightly"), (0, "negligibly"))
WEBGPT: Rule = ((0.75, "significantly"), (0.5, "better"), (0, "slightly"))
STACK: Rule = ((3, "significantly"), (2, "better"), (1, "slightly"), (0, "negligibly"))
NECTAR: Rule = ((5, "significantly"), (3, "better"), (2, "slightly"), (0, "negligibly"))
QUALITY: Rule = ((0.5, "significantly"), (0.25, "better"), (0.1, "slightly"), (0, "negligibly"))

TURN_MARK = "<extra_id_1>"  # what parts the turns of HelpSteer2's prompts


def degree(difference: float, rule: Rule) -> Rating | None:
    """The level whose least value the difference reaches; None below all of them."""
    return next((level for least, level in rule if difference >= least), None)


def pairs(shape: str, rows: Iterable[tuple[str, Row]], kind: Domain) -> Iterator[tuple[str, Pair | Refused]]:
    """``(where, pair)`` for every pair that rows of a shape hold, and ``(where, reason)`` for rows that hold none."""
    if shape == "oasst":
        yield from _oasst(rows)
        return
    read = SHAPES[shape]
    for where, row in rows:
        try:
            found = list(read(row, kind))
        except Refused as refused:
            yield where, refused
            continue
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(
                f"a row is not of the shape {shape!r}: {type(error).__name__} {error}", where=where
            ) from None
        for pair in found:
            yield where, pair


def _decided(difference: float, first: str, second: str, rule: Rule | None) -> Pair:
    """The pair in which ``first`` wins if the difference is positive; a tie is refused."""
    if not difference:
        raise Refused("a tie: neither answer was preferred")
    chosen, rejected = (first, second) if difference > 0 else (second, first)
    rating = degree(abs(difference), rule) if rule else None
    return {"chosen": chosen, "rejected": rejected, "rating": rating}


def _helpsteer2(row: Row, kind: Domain) -> Iterator[Pair]:
    """preference_strength: -3 (response 1 much better) .. 3."""
    pair = _decided(row["preference_strength"], row["response_2"], row["response_1"], HELPSTEER)
    first, *later = row["prompt"].split(TURN_MARK)
    turns = [{"role": "user", "content": first.strip()}]
    for part in later:
        speaker, _, content = part.partition("\n")
        turns.append({"role": "user" if speaker == "User" else "assistant", "content": content.strip()})
    yield {"prompt": turns, **pair}


def _helpsteer3(row: Row, kind: Domain) -> Iterator[Pair]:
    """overall_preference: -3 (response 1 much better) .. 3; 0 about the same."""
    yield {
        "prompt": row["context"],
        **_decided(row["overall_preference"], row["response2"], row["response1"], HELPSTEER),
    }


def _ultrafeedback(row: Row, kind: Domain) -> Iterator[Pair]:
    """Four answers, overall_score 1 .. 10 by GPT-4."""
    graded = [(answer["response"], float(answer["overall_score"])) for answer in row["completions"]]
    yield from _every_pair(row["instruction"], graded, ULTRAFEEDBACK, key=row["instruction"])


def _ultrafeedback_binarized(row: Row, kind: Domain) -> Iterator[Pair]:
    """Message lists, with score_chosen and score_rejected of 10."""
    difference = float(row["score_chosen"]) - float(row["score_rejected"])
    if difference <= 0:
        raise Refused("a tie: neither answer was preferred")
    yield {
        "id": row["prompt_id"],
        "chosen": row["chosen"],
        "rejected": row["rejected"],
        "rating": degree(difference, ULTRAFEEDBACK),
    }


def _saferlhf(row: Row, kind: Domain) -> Iterator[Pair]:
    """For safety the safer answer, with both labels, graded by severity; for helpfulness the better, with no label."""
    answers = (row["response_0"], row["response_1"])
    chosen = row["safer_response_id" if kind == "safety" else "better_response_id"]
    pair = {"prompt": row["prompt"], "chosen": answers[chosen], "rejected": answers[1 - chosen]}
    if kind == "helpfulness":
        yield pair
        return
    safe = (row["is_response_0_safe"], row["is_response_1_safe"])
    pair |= {"chosen_safe": safe[chosen], "rejected_safe": safe[1 - chosen], "is_safety": True}
    harm: list[Any] = [row.get("response_0_severity_level"), row.get("response_1_severity_level")]
    if harm[0] is not None and harm[1] is not None:
        pair["rating"] = degree(harm[1 - chosen] - harm[chosen], SEVERITY)
    yield pair


def _shp(row: Row, kind: Domain) -> Iterator[Pair]:
    """labels: 1 if A was preferred; score_ratio: votes of the better over votes of the other."""
    if row["score_A"] == row["score_B"]:
        raise Refused("a tie: neither answer was preferred")
    pair = _decided(1 if row["labels"] else -1, row["human_ref_A"], row["human_ref_B"], None)
    yield {"prompt": row["history"], **pair, "rating": degree(row["score_ratio"], SHP)}


def _summarize(row: Row, kind: Domain) -> Iterator[Pair]:
    """Two summaries of a post. Some batches say how sure the labeller was, on a scale nobody explains: no rating."""
    info, texts = row["info"], [summary["text"] for summary in row["summaries"]]
    post = info.get("post") or info.get("article")
    title = f"{info['title']}\n\n" if info.get("title") else ""
    chosen = row["choice"]
    yield {"prompt": f"{title}{post}\n\nTL;DR:", "chosen": texts[chosen], "rejected": texts[1 - chosen]}


def _webgpt(row: Row, kind: Domain) -> Iterator[Pair]:
    """score_0 = -score_1 in -1 .. 1: how much the first of two answers is preferred."""
    yield {
        "prompt": row["question"]["full_text"],
        **_decided(row["score_0"], row["answer_0"], row["answer_1"], WEBGPT),
    }


def _stack(row: Row, kind: Domain) -> Iterator[Pair]:
    """pm_score: log2(1 + votes), one more if accepted, -1 if voted down (Askell et al. 2021)."""
    graded = [(answer["text"], float(answer["pm_score"])) for answer in row["answers"]]
    yield from _every_pair(row["question"], graded, STACK, key=str(row["qid"]))


def _nectar(row: Row, kind: Domain) -> Iterator[Pair]:
    """Seven answers ranked by GPT-4, 1 the best, to a prompt in HH's text form that ends with an open turn."""
    _, *parts = HH_TURN.split(row["prompt"])
    turns = [
        {"role": "user" if speaker == "Human" else "assistant", "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()
    graded = [(answer["answer"], -float(answer["rank"])) for answer in row["answers"]]
    yield from _every_pair(turns, graded, NECTAR, key=row["prompt"])


SHAPES: dict[str, Callable[[Row, Domain], Iterator[Pair]]] = {
    "helpsteer2": _helpsteer2,
    "helpsteer3": _helpsteer3,
    "ultrafeedback": _ultrafeedback,
    "ultrafeedback_binarized": _ultrafeedback_binarized,
    "saferlhf": _saferlhf,
    "shp": _shp,
    "summarize": _summarize,
    "webgpt": _webgpt,
    "stack": _stack,
    "nectar": _nectar,
}


def _every_pair(prompt: Any, graded: Sequence[tuple[str, float]], rule: Rule, *, key: str) -> Iterator[Pair]:
    """Pairs of differently graded answers to one prompt, at most `MOST_PAIRS`, drawn by a hash of prompt and places."""
    found = [(i, j) for i, j in combinations(range(len(graded)), 2) if graded[i][1] != graded[j][1]]
    if not found:
        raise Refused("a tie: no answer was preferred to another")
    drawn = sorted(found, key=lambda places: hashlib.sha256(f"{key}\n{places}".encode()).digest())[:MOST_PAIRS]
    for i, j in sorted(drawn):
        yield {"prompt": prompt, **_decided(graded[i][1] - graded[j][1], graded[i][0], graded[j][0], rule)}


# ── Open Assistant: messages of trees, not pairs ─────────────────────────────────────────────────────────────────────


def _oasst(rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Pair | Refused]]:
    """Sibling replies of volunteers' trees, ranked (0 is best): every pair of them, with the turns above as the prompt.

    Trees stand together in the file, one message a row. A rank says who is better, not by how much. Where both replies
    have a mean quality label, its difference is the degree; where it contradicts the rank, nothing is claimed.
    """
    for _, tree in groupby(rows, key=lambda row: row[1].get("message_tree_id")):
        messages = {row["message_id"]: (where, row) for where, row in tree}
        replies: dict[str, list[Row]] = {}
        for _, row in messages.values():
            if row.get("role") == "assistant" and row.get("rank") is not None and not row.get("deleted"):
                replies.setdefault(row["parent_id"], []).append(row)
        for parent, siblings in replies.items():
            ranked = sorted(siblings, key=lambda row: row["rank"])
            if len(ranked) < 2:
                continue
            where, prompt = messages[ranked[0]["message_id"]][0], _above(parent, messages)
            if prompt is None:
                yield where, Refused("a message above the replies is missing")
                continue
            for better, worse in combinations(ranked, 2):
                if better["rank"] == worse["rank"]:
                    continue
                yield (
                    where,
                    {
                        "id": f"{better['message_id']}/{worse['message_id']}",
                        "prompt": prompt,
                        "chosen": better["text"],
                        "rejected": worse["text"],
                        "rating": _quality_degree(better, worse),
                    },
                )


def _above(message_id: str | None, messages: Mapping[str, tuple[str, Row]]) -> list[dict[str, str]] | None:
    turns: list[dict[str, str]] = []
    while message_id is not None:
        if message_id not in messages:
            return None
        row = messages[message_id][1]
        turns.append({"role": "user" if row["role"] == "prompter" else "assistant", "content": row["text"]})
        message_id = row.get("parent_id")
    return turns[::-1]


def _quality_degree(better: Row, worse: Row) -> Rating | None:
    qualities = []
    for row in (better, worse):
        labels = row.get("labels") or {}
        named = dict(zip(labels.get("name") or (), labels.get("value") or (), strict=True))
        qualities.append(named.get("quality"))
    if qualities[0] is None or qualities[1] is None:
        return None
    difference = float(qualities[0]) - float(qualities[1])
    return degree(difference, QUALITY) if difference > 0 else None
