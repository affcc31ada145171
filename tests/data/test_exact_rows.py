"""Rows, byte for byte and gradient by gradient: what Ghost Attention and distillation train on, and what bears loss.

The reference encoder below follows Meta's llama/generation.py, and has nothing of rlhf.data.chat.
"""

import gzip
import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlhf.data.chat import encode_dialogue, labels
from rlhf.data.collate import share_prefixes
from rlhf.data.conversations import said_in, under_instructions, with_changes
from rlhf.data.instructions import Lists
from rlhf.data.sources import Counts, Raw
from rlhf.data.types import Dialogue, Prompt, Turn
from rlhf.doctor.problems import Problems
from rlhf.doctor.rows import Read
from rlhf.doctor.tokens import Tokens
from rlhf.generation.protocol import Completion
from rlhf.rollout import Sample
from rlhf.schema import GAttConfig, Recipe, Source
from rlhf.training.finetune import encode
from stages import gatt

REAL = Path(os.environ.get("RLHF_DATA_REAL", "data-real")) / "sft"
LISTS = Lists({"hobbies": ["chess"], "languages": ["French"], "figures": ["Napoleon", "Oscar Wilde"]})


def reference(tokenizer, messages, trained=None):
    """ids and, for each, whether it is a trained answer's: every exchange by itself, BOS before it, EOS behind it.

    Args:
        trained: the answers that bear loss, 0 is the first; the last one, unless they are given.
    """
    if messages[0][0] == "system":
        folded = "<<SYS>>\n" + messages[0][1] + "\n<</SYS>>\n\n" + messages[1][1]
        messages = [("user", folded), *messages[2:]]
    trained = {len(messages) // 2 - 1} if trained is None else trained
    ids, marked = [], []
    for i in range(0, len(messages), 2):
        question, answer = messages[i][1].strip(), messages[i + 1][1].strip()
        prompt = tokenizer(f"[INST] {question} [/INST]", add_special_tokens=False)["input_ids"]
        whole = tokenizer(f"[INST] {question} [/INST] {answer} ", add_special_tokens=False)["input_ids"]
        assert whole[: len(prompt)] == prompt
        exchange = [tokenizer.bos_token_id, *whole, tokenizer.eos_token_id]
        ids += exchange
        marked += [False] * (1 + len(prompt)) + [i // 2 in trained] * (len(exchange) - 1 - len(prompt))
    return ids, marked


def messages_of(c, *, short):
    """What stands in a row: the instruction before all, what the user said as given, and where it changes what changes
    it before that turn's question; the instruction nowhere else."""
    messages = [("system", c.short if short else c.instruction)]
    for i, question in enumerate(c.user_turns):
        if c.change is not None and i == c.change.turn:
            question = f"{c.change.says.short if short else c.change.says.text} {question}"
        messages += [("user", question), ("assistant", f"answer {i}")]
    return messages


def answer(i):
    prompt = Prompt("p", (Turn("user", "q"),), "x", is_safety=False)
    return Sample(prompt, (0, 8), Completion((9, 1), (0.0, 0.0), "stop"), f"answer {i}")


def rows_of(tokenizer, conversations, *, short):
    """The stage's own rows, as ids and labels."""
    recipe = Recipe.model_validate({"stages": ["gatt"], "model": {"max_length": 10**6}})
    config = GAttConfig(cuts=3, short_share=float(short))
    job = SimpleNamespace(config=config, recipe=recipe, seed=0, name="gatt")
    answers = [[answer(i) for i in range(len(c.user_turns))] for c in conversations]
    dialogues, rows = gatt.training_rows(job, conversations, answers), []
    encode(job, tokenizer, dialogues, frozenset(dialogue.id for dialogue in dialogues), rows)
    return rows


def check_rows(tokenizer, dialogues, count):
    """Every row made of these dialogues, by itself and read in one pass with those that begin alike: the reference's
    ids and the reference's mask, of messages put together here; in long and in short form."""
    conversations = {c.id: c for c in under(dialogues, count)}
    said = {tuple(turn.content for turn in dialogue.turns if turn.role == "user")[:12] for dialogue in dialogues}
    assert {c.user_turns for c in conversations.values()} <= said
    assert sum(c.change is not None for c in conversations.values()) > count / 4
    assert all(c.short not in ("", c.instruction) for c in conversations.values())
    for short in (False, True):
        rows = rows_of(tokenizer, list(conversations.values()), short=short)
        together = share_prefixes(rows)
        assert {row.id.split("/")[0] for row in rows} == set(conversations)
        assert sorted(name for row in together for name in row.id.split(", ")) == sorted(row.id for row in rows)
        assert (len(together) < len(rows)) == any(len(c.user_turns) > 2 for c in conversations.values())
        for row in (*rows, *together):
            ends = [int(name.split("/")[1]) for name in row.id.split(", ")]
            messages = messages_of(conversations[row.id.split(", ")[-1].split("/")[0]], short=short)
            ids, trained = reference(tokenizer, messages[: 1 + 2 * max(ends)], {end - 1 for end in ends})
            assert row.input_ids == ids
            assert row.labels == [token if flag else -100 for token, flag in zip(ids, trained, strict=True)]


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
    check_rows(request.getfixturevalue(name), made_up(60), 80)


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
    check_rows(tokenizer, many, min(200, len(many)))
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
