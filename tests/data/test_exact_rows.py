"""Rows, byte for byte and gradient by gradient: what Ghost Attention and distillation train on, and what bears loss.

The reference encoder below follows Meta's llama/generation.py, and has nothing of rlhf.data.chat.
"""

import gzip
import json
import os
import random
from pathlib import Path

import pytest
import torch

from rlhf.data.chat import encode_dialogue, labels
from rlhf.data.conversations import said_in, under_instructions, with_changes
from rlhf.data.gatt import training_dialogue
from rlhf.data.instructions import Lists
from rlhf.data.sources import Counts, Raw
from rlhf.data.types import Dialogue, Turn
from rlhf.doctor.problems import Problems
from rlhf.doctor.rows import Read
from rlhf.doctor.tokens import Tokens
from rlhf.schema import Recipe, Source

REAL = Path(os.environ.get("RLHF_DATA_REAL", "data-real")) / "sft"
LISTS = Lists({"hobbies": ["chess"], "languages": ["French"], "figures": ["Napoleon", "Oscar Wilde"]})


def reference(tokenizer, messages):
    """ids and, for each, whether it is the last answer's: every exchange by itself, BOS before it, EOS behind it."""
    if messages[0][0] == "system":
        folded = "<<SYS>>\n" + messages[0][1] + "\n<</SYS>>\n\n" + messages[1][1]
        messages = [("user", folded), *messages[2:]]
    ids, last = [], []
    for i in range(0, len(messages), 2):
        question, answer = messages[i][1].strip(), messages[i + 1][1].strip()
        prompt = tokenizer(f"[INST] {question} [/INST]", add_special_tokens=False)["input_ids"]
        whole = tokenizer(f"[INST] {question} [/INST] {answer} ", add_special_tokens=False)["input_ids"]
        assert whole[: len(prompt)] == prompt
        exchange = [tokenizer.bos_token_id, *whole, tokenizer.eos_token_id]
        final = i + 2 == len(messages)
        ids += exchange
        last += [False] * (1 + len(prompt)) + [final] * (len(exchange) - 1 - len(prompt))
    return ids, last


def check_rows(tokenizer, conversations):
    """Every row of these conversations: the reference's ids, the reference's mask, the instruction where it belongs."""
    rng, trained = random.Random(0), 0
    for c in conversations:
        end = rng.randint(1, len(c.user_turns))
        users = [c.said(turn) for turn in range(end)]
        row = training_dialogue(c.id, c.instruction, users, [f"answer {i}" for i in range(end)], source="gatt")
        encoded = encode_dialogue(tokenizer, row.turns)
        ids, last = reference(tokenizer, [(turn.role, turn.content) for turn in row.turns])
        assert encoded.input_ids == ids
        marked = [label != -100 for label in labels(encoded, "last_answer")]
        assert marked == last
        assert sum(c.instruction in turn.content for turn in row.turns) >= 1
        assert c.instruction == row.turns[0].content
        trained += sum(marked)
    return trained


def made_up(n):
    """Dialogues of 1 to 6 exchanges, with odd blanks at the ends of messages."""
    rng = random.Random(1)
    rows = []
    for i in range(n):
        blank = rng.choice(("", " ", "\n"))
        roles = ("user", "assistant") * (1 + i % 6)
        turns = [Turn(role, f"{blank}{role} {i}.{k}{blank}") for k, role in enumerate(roles)]
        rows.append(Dialogue(f"d{i}", tuple(turns), "x"))
    return rows


def under(dialogues, count):
    said = [said_in(dialogue, is_safety=False) for dialogue in dialogues]
    rows = under_instructions(said, LISTS, count, turns=(2, 12), seed=0, prefix="t", source="x")
    return with_changes(rows, 0.5, lists=LISTS, seed=0)


@pytest.mark.parametrize("name", ["tokenizer", "sentencepiece_like"])
def test_rows_equal_the_reference_byte_for_byte(name, request):
    """S3, S11: BOS and EOS of every exchange, the instruction in the first, loss on the last answer alone."""
    rows = under(made_up(60), 80)
    assert sum(c.change is not None for c in rows) > 20
    assert check_rows(request.getfixturevalue(name), rows) > 0


@pytest.mark.parametrize("train_on", ["all_answers", "last_answer"])
def test_only_trained_positions_have_a_gradient(policy, tokenizer, train_on):
    """S1: the loss does not move with the logits anywhere but before a trained token, nor with an untrained label."""
    roles = ("system", "user", "assistant", "user", "assistant")
    texts = ("end : key", "how ?", "take it", "and ?", "open it . key")
    turns = tuple(Turn(role, text) for role, text in zip(roles, texts, strict=True))
    encoded = encode_dialogue(tokenizer, turns)
    wanted = torch.tensor([labels(encoded, train_on)])
    logits = policy(input_ids=torch.tensor([encoded.input_ids])).logits.detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], wanted[0, 1:], ignore_index=-100)
    loss.backward()
    moved = logits.grad[0].abs().sum(-1) > 0
    _, last = reference(tokenizer, [(t.role, t.content) for t in turns])
    ends = [i for i, token in enumerate(encoded.input_ids) if token == tokenizer.eos_token_id]
    trained = {i for i, flag in enumerate(last) if flag}
    if train_on == "all_answers":
        first = len(tokenizer(" take it ", add_special_tokens=False)["input_ids"])
        trained |= set(range(ends[0] - first, ends[0] + 1))
    assert {i + 1 for i, flag in enumerate(moved.tolist()) if flag} == trained


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real dialogues: {REAL} (set RLHF_DATA_REAL)")
@pytest.mark.parametrize("name", ["oasst_best_path", "caia_safety", "persona_chat"])
def test_real_dialogues_go_through_without_one_masked_wrong_token(name, tokenizer):
    with gzip.open(REAL / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    dialogues = [Dialogue(row["id"], spoken(row), name) for row in rows]
    tags = ("<s>", "</s>", "[INST]", "<pad>", "<unk>")  # what the loader refuses
    many = [d for d in dialogues if len(d.turns) >= 4 and not any(tag in t.content for t in d.turns for tag in tags)]
    assert len(many) > 20
    conversations = under(many, min(200, len(many)))
    assert conversations
    assert check_rows(tokenizer, conversations) > 0
    recipe, problems = Recipe.model_validate({"stages": ["gatt"], "model": {"max_length": 10**6}}), Problems()
    for dialogue in many[:50]:
        doctor, read = Tokens(tokenizer, recipe, problems), Read("gatt", "gatt.data.0", Source(name=name), Counts(name))
        assert doctor.look(read, Raw("rows.jsonl:1", {}, ""), dialogue)
        users = sum(turn.role == "user" for turn in dialogue.turns)
        _, last = reference(tokenizer, [(t.role, t.content) for t in dialogue.turns[: 2 * min(users, 20)]])
        (view,) = doctor.tallies["gatt.data.0"].views
        assert [mark == "trained" for _, mark in view.tokens] == last
    assert not len(problems)


def spoken(row):
    """Messages as they are; personas as user and assistant, one speaker's neighbours joined, cut after an answer."""
    if "messages" in row:
        turns = [Turn(m["role"], m["content"]) for m in row["messages"]]
    else:
        turns = []
        for speaker, text in row["turns"]:
            role = "user" if speaker == row["turns"][0][0] else "assistant"
            if turns and turns[-1].role == role:
                turns[-1] = Turn(role, f"{turns[-1].content} {text}")
            else:
                turns.append(Turn(role, text))
    return tuple(turns[:-1] if turns[-1].role == "user" else turns)
