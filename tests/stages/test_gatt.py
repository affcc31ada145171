"""Ghost Attention: where the instruction stands, what bears loss, which answers are kept."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from rlhf.data.chat import encode_dialogue, encode_prompt, labels
from rlhf.data.collate import Row, share_prefixes
from rlhf.data.conversations import Change, Conversation
from rlhf.data.gatt import training_dialogue
from rlhf.data.instructions import Instruction
from rlhf.data.types import Dialogue, Prompt, Turn, read_jsonl
from rlhf.errors import ConfigError, DataError, RlhfError
from rlhf.generation.protocol import Completion, Sampling
from rlhf.generation.transformers import InProcess
from rlhf.models.score import score
from rlhf.rollout import Sample
from rlhf.training import finetune
from rlhf.training import rehearsal as best_of_k
from stages import gatt

LONG, SHORT = "always end with lantern", "end : lantern"


def conversation(turns, name="c", *, instruction=LONG, unsafe=(), change=None):
    tags, users = tuple(i in unsafe for i in range(turns)), tuple(f"{name} asks {i} ?" for i in range(turns))
    return Conversation(name, instruction, users, tags, "microworld", SHORT, change)


def said(text, *, finished=True, ids=(9, 1)):
    prompt = Prompt("p", (Turn("user", "q"),), "microworld", is_safety=False)
    completion = Completion(ids, (0.0,) * len(ids), "stop" if finished else "length")
    return Sample(prompt, (0, 8), completion, text)


def answers(turns):
    return [said(f"answer {i} lantern") for i in range(turns)]


# ── rows to train on ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_instruction_stands_in_the_first_turn_only(job_of):
    held = [conversation(turns, f"c{turns}") for turns in (2, 5, 9)]
    rows = gatt.training_rows(job_of("gatt"), held, [answers(len(c.user_turns)) for c in held])
    assert rows
    for row in rows:
        c = next(c for c in held if c.id == row.id.split("/")[0])
        system, *spoken = row.turns
        assert (system.role, system.content in (LONG, SHORT)) == ("system", True)
        assert [turn.content for turn in spoken[::2]] == list(c.user_turns[: len(spoken) // 2])
        assert [turn.content for turn in spoken[1::2]] == [f"answer {i} lantern" for i in range(len(spoken) // 2)]
        assert {turn.role for turn in spoken[::2]} == {"user"}


def ends(rows, name):
    """How many user turns each row of a conversation has."""
    return [(len(row.turns) - 1) // 2 for row in rows if row.id.startswith(f"{name}/")]


@pytest.mark.parametrize("cuts", [1, 3, 20])
def test_every_conversation_is_cut_at_so_many_turns(job_of, cuts):
    held = [conversation(turns, f"c{turns}") for turns in (3, 4, 8)]
    rows = gatt.training_rows(job_of("gatt", cuts=cuts), held, [answers(len(c.user_turns)) for c in held])
    assert len({row.id for row in rows}) == len(rows)
    for c in held:
        found, turns = ends(rows, c.id), len(c.user_turns)
        assert len(set(found)) == len(found) == min(cuts, turns - 1)
        assert all(2 <= end <= turns for end in found)


def test_late_turns_are_trained_as_often_as_early_ones(job_of):
    """3 cuts of 6 possible ends, 400 times: each end 200 times, give or take 4.5 standard deviations of 10."""
    held = [conversation(7, f"c{i}") for i in range(400)]
    rows = gatt.training_rows(job_of("gatt", cuts=3), held, [answers(7) for _ in held])
    found = Counter(end for c in held for end in ends(rows, c.id))
    assert set(found) == {2, 3, 4, 5, 6, 7}
    assert all(155 <= count <= 245 for count in found.values())


def test_rows_of_a_conversation_begin_alike(job_of):
    """So that they can be read in one pass: the instruction is short in all of them, or in none."""
    held = [conversation(8, f"c{i}") for i in range(20)]
    rows = gatt.training_rows(job_of("gatt", cuts=4), held, [answers(8) for _ in held])
    assert {row.turns[0].content for row in rows} == {LONG, SHORT}
    for c in held:
        own = [row.turns for row in rows if row.id.startswith(f"{c.id}/")]
        assert all(turns == own[-1][: len(turns)] for turns in own)


@pytest.mark.parametrize(("share", "least", "most"), [(0.5, 155, 245), (0.0, 0, 0), (1.0, 400, 400)])
def test_half_of_the_instructions_are_made_less_verbose(job_of, share, least, most):
    held = [conversation(2, f"c{i}") for i in range(400)]
    rows = gatt.training_rows(job_of("gatt", cuts=1, short_share=share), held, [answers(2) for _ in held])
    # 400 fair coins have a standard deviation of 10; 45 on either side are 4.5 of them.
    assert len(rows) == 400
    assert least <= sum(row.turns[0].content == SHORT for row in rows) <= most


def test_no_row_ends_with_an_answer_that_is_empty_or_never_ended(job_of):
    replies = [said("one"), said("two", finished=False), said("three"), said("")]
    job = job_of("gatt", cuts=20)
    (row,) = gatt.training_rows(job, [conversation(4)], [replies])
    # Further back they are context, and silence is written as a full stop.
    assert [turn.content for turn in row.turns if turn.role == "assistant"] == ["one", "two", "three"]
    full = gatt.training_rows(job, [conversation(3)], [[said("one"), said(""), said("three")]])
    assert [turn.content for turn in full[-1].turns if turn.role == "assistant"] == ["one", ".", "three"]


# ── what bears loss ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_where_no_answer_ended_it_says_so_instead_of_training(job_of):
    endless = [said("on and on", finished=False)] * 3
    with pytest.raises(RlhfError, match="none of 1 conversations ends") as caught:
        gatt.training_rows(job_of("gatt"), [conversation(3)], [endless])
    assert any("gatt.max_new_tokens" in hint for hint in caught.value.hints)


def trained_tokens(monkeypatch, policy, tokenizer, rows, job, ghost):
    """For every document of the packed rows, in order, the tokens that bear loss."""
    packed = []
    monkeypatch.setattr(finetune, "fit_lm", lambda policy, tokenizer, rows, *rest, **options: packed.extend(rows))
    finetune.fine_tune(policy, tokenizer, rows, job, last_answer_only=ghost)
    found = []
    for row in packed:
        starts = [i for i, position in enumerate(row.position_ids) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(row.input_ids)], strict=True):
            found.append((row.input_ids[start:end], [x for x in row.labels[start:end] if x != -100]))
    return found


def test_of_each_row_the_last_answer_bears_loss_and_of_replayed_rows_every_answer(
    job_of, policy, tokenizer, monkeypatch
):
    """The rows of a conversation, which begin alike, are read in one pass."""
    job = job_of("gatt", cuts=2, model={"max_length": 512})
    said_so = [said(f"the {word}") for word in ("key", "door", "house")]
    rows = gatt.training_rows(job, [conversation(3)], [said_so])
    assert len(rows) == 2
    replayed = [
        Dialogue(
            "r", (Turn("user", "how ?"), Turn("assistant", "so"), Turn("user", "and ?"), Turn("assistant", "good")), "x"
        )
    ]
    ghost = frozenset(row.id for row in rows)
    found = trained_tokens(monkeypatch, policy, tokenizer, rows + replayed, job, ghost)
    wanted = [(rows[-1], " the door </s> the house </s>"), (replayed[0], " so </s> good </s>")]
    assert len(found) == len(wanted)
    for row, text in wanted:
        (trained,) = [labels for ids, labels in found if ids == encode_dialogue(tokenizer, row.turns).input_ids]
        assert tokenizer.decode(trained) == text


def test_rows_read_in_one_pass_give_the_loss_and_the_gradient_of_each_by_itself(policy, tokenizer):
    """The oracle: one row after the other, loss on its last answer alone (3.3), summed."""
    users, said_so = [f"how {i} ?" for i in range(4)], ["take it", "open it . key", "good luck !", "the door . key"]
    dialogues = [training_dialogue(str(n), "end : key", users[:n], said_so[:n], source="gatt") for n in (2, 3, 4)]
    encoded = [encode_dialogue(tokenizer, dialogue.turns) for dialogue in dialogues]
    apart = [Row(row.input_ids, labels(row, "last_answer"), dialogue.id)
             for row, dialogue in zip(encoded, dialogues, strict=True)]  # fmt: skip
    (together,) = share_prefixes([apart[1], apart[2], apart[0]])
    assert together.input_ids == apart[2].input_ids
    assert together.id == "2, 3, 4"

    def loss_of(row):
        logits = policy(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum")

    found = []
    for rows in (apart, [together]):
        policy.zero_grad()
        loss = sum(map(loss_of, rows))
        loss.backward()
        found.append((loss.detach(), [weight.grad.clone() for weight in policy.parameters()]))
    (one_by_one, gradients), (in_one_pass, shared) = found
    torch.testing.assert_close(in_one_pass, one_by_one)
    for ours, wanted in zip(shared, gradients, strict=True):
        assert (ours - wanted).norm() < 1e-5 * wanted.norm()


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_answers_are_sampled_with_the_instruction_in_every_user_turn():
    c = conversation(4, unsafe={2})
    prompt = gatt.context(c, [said("one"), said("")], 2)
    assert prompt.turns == (
        Turn("user", f"{LONG} c asks 0 ?"),
        Turn("assistant", "one"),
        Turn("user", f"{LONG} c asks 1 ?"),
        Turn("assistant", "."),
        Turn("user", f"{LONG} c asks 2 ?"),
    )
    assert prompt.is_safety
    assert not gatt.context(c, [], 0).is_safety


def test_conversations_of_all_lengths_are_held_to_their_ends(job_of, policy, tokenizer, rewards, monkeypatch):
    asked, real = [], best_of_k.sample

    def sample(*args, **options):
        groups = real(*args, **options)
        asked.append(groups)
        return groups

    monkeypatch.setattr(best_of_k, "sample", sample)
    held = [conversation(turns, name, instruction="end : key") for turns, name in ((1, "a"), (3, "b"), (2, "d"))]
    job = job_of("gatt", samples_per_turn=2, max_new_tokens=3)
    found = gatt.converse(job, policy, tokenizer, rewards, held)
    assert [len(replies) for replies in found] == [1, 3, 2]
    assert [len(groups) for groups in asked] == [3, 2, 1]
    for c, replies in zip(held, found, strict=True):
        for turn, reply in enumerate(replies):
            turns = reply.prompt.turns
            assert [t.content for t in turns[::2]] == [f"end : key {user}" for user in c.user_turns[: turn + 1]]
            assert [t.content for t in turns[1::2]] == [earlier.text or "." for earlier in replies[:turn]]
            assert reply in next(group for group in asked[turn] if group[0].prompt == reply.prompt)


def test_of_a_conversation_that_goes_on_the_last_turn_is_read(job_of, policy, tokenizer, rewards):
    """Five conversations by two samples a turn where six rows are a batch: three and two, the longest first."""
    policy.config.max_position_embeddings = 512
    held = [conversation(turns, f"{turns}", instruction="end : key") for turns in (2, 4, 3, 4, 3)]
    job = job_of("gatt", model={"max_length": 512}, samples_per_turn=2, max_new_tokens=3)
    read = []
    policy.model.embed_tokens.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    found = gatt.converse(job, InProcess(policy, 6), tokenizer, rewards, held)
    assert [len(replies) for replies in found] == [2, 4, 3, 4, 3]
    expected = []
    for part, longest in (((1, 3, 2), 4), ((4, 0), 3)):
        for turn in range(longest):
            lengths = [len(found[i][turn].prompt_ids) for i in part if len(found[i]) > turn]
            before = [len(found[i][turn - 1].prompt_ids) if turn else 0 for i in part if len(found[i]) > turn]
            expected.append((len(lengths), max(now - then for now, then in zip(lengths, before, strict=True))))
    assert [shape for shape in read if shape[1] > 1] == expected


# ── an instruction that changes ──────────────────────────────────────────────────────────────────────────────────────

INSTEAD = Change(2, Instruction("always start with comet", "start : comet"), "always start with comet")
TAKEN_BACK = Change(2, Instruction("forget that .", "forget that ."), "")


@pytest.mark.parametrize(("change", "then"), [(INSTEAD, "always start with comet "), (TAKEN_BACK, "")])
def test_after_a_change_answers_are_those_of_a_dialogue_that_was_never_otherwise(
    job_of, policy, tokenizer, rewards, change, then
):
    """None of its turns names the first instruction, and none of its answers was sampled under it."""
    policy.config.max_position_embeddings = 512
    c = conversation(4, change=change)
    job = job_of("gatt", model={"max_length": 512}, samples_per_turn=1, max_new_tokens=3)
    (found,) = gatt.answers_to(job, policy, tokenizer, rewards, [c])
    assert len(found) == 4
    for turn, reply in enumerate(found):
        before = then if turn >= change.turn else f"{LONG} "
        assert [t.content for t in reply.prompt.turns[::2]] == [f"{before}{user}" for user in c.user_turns[: turn + 1]]
    alone = conversation(4, "c/then", instruction=then.strip())
    alone = replace(alone, user_turns=c.user_turns)
    (held,) = gatt.converse(job, policy, tokenizer, rewards, [alone])
    assert [(s.prompt, s.completion.token_ids) for s in found[2:]] == [
        (s.prompt, s.completion.token_ids) for s in held[2:]
    ]


@pytest.mark.parametrize(
    ("short", "first", "then"), [(0.0, LONG, "always start with comet"), (1.0, SHORT, "start : comet")]
)
def test_rows_name_both_instructions_once(job_of, short, first, then):
    c = conversation(4, change=INSTEAD)
    rows = gatt.training_rows(job_of("gatt", cuts=20, short_share=short), [c], [answers(4)])
    assert [len(row.turns) for row in rows] == [5, 7, 9]
    for row in rows:
        users = [turn.content for turn in row.turns if turn.role == "user"]
        assert row.turns[0].content == first
        assert users == ["c asks 0 ?", "c asks 1 ?", f"{then} c asks 2 ?", "c asks 3 ?"][: len(users)]


# ── the best of K ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_order_of_answers():
    ranked = [
        (said(""), 9.0), (said("", finished=False), 9.5), (said("cut", finished=False), 1.0),
        (said("cut", finished=False), 8.0), (said("whole"), -7.0), (said("whole"), -2.0),
    ]  # fmt: skip
    # An empty answer is worst even if it ended; then what never ended, by score; then the rest, by score.
    wanted = [9.5, 9.0, 1.0, 8.0, -7.0, -2.0]
    shuffled = random.Random(0).sample(ranked, len(ranked))
    assert [value for _, value in sorted(shuffled, key=best_of_k.preferred)] == wanted


@pytest.mark.parametrize("judged", ["dialogue", "turn"])
def test_the_reward_models_read_the_dialogue_or_the_last_turn(tokenizer, judged):
    turns = (Turn("user", f"{LONG} how ?"), Turn("assistant", "so"), Turn("user", f"{LONG} and then ?"))
    s = replace(said("good"), prompt=Prompt("p", turns, "x", is_safety=False))
    s = replace(s, prompt_ids=tuple(encode_prompt(tokenizer, turns)))
    seen = turns if judged == "dialogue" else turns[-1:]
    assert list(gatt.judged_row(tokenizer, s, judged)) == [*encode_prompt(tokenizer, seen), 9, 1]


def test_the_last_turn_alone_keeps_the_system_message(tokenizer):
    turns = (Turn("system", LONG), Turn("user", "how ?"), Turn("assistant", "so"), Turn("user", "and then ?"))
    s = replace(said("good"), prompt=Prompt("p", turns, "x", is_safety=False))
    wanted = encode_prompt(tokenizer, (Turn("system", LONG), Turn("user", "and then ?")))
    assert list(gatt.judged_row(tokenizer, s, "turn")) == [*wanted, 9, 1]


def test_the_best_of_k_by_the_combined_score(policy, tokenizer, rewards, monkeypatch):
    drawn, real = [], best_of_k.sample
    monkeypatch.setattr(best_of_k, "sample", lambda *args, **options: drawn.append(real(*args, **options)) or drawn[-1])
    prompts = [
        Prompt(str(i), (Turn("user", text),), "x", is_safety=bool(i % 2))
        for i, text in enumerate(["how ?", "so ?"] * 3)
    ]
    best = best_of_k.best_answers(
        policy, tokenizer, rewards, prompts, Sampling(5, 1.0, 6), seed=3, safety_threshold=0.15
    )

    def worth(s):
        row = s.row if s.finished else (*s.row, tokenizer.eos_token_id)
        helpful, safe = (score(model, [row], pad_token_id=2).item() for model in (rewards.helpfulness, rewards.safety))
        unsafe = s.prompt.is_safety or torch.tensor(safe).sigmoid() < 0.15
        return (s.text != "", s.finished, safe if unsafe else helpful)

    assert [s.prompt for s in best] == prompts
    for chosen, group in zip(best, drawn[0], strict=True):
        assert len(group) == 5
        assert worth(chosen) == max(map(worth, group))


# ── replay ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("share", "ratio"), [(0.0, 0.0), (0.5, 1.0), (0.75, 3.0), (0.2, 0.25)])
def test_a_share_of_the_whole_as_a_multiple_of_the_rest(share, ratio):
    assert best_of_k.share_to_ratio(share) == pytest.approx(ratio)


def test_replayed_answers_are_whole_answers_to_single_prompts(job_of, policy, tokenizer, rewards):
    job, twice = job_of("gatt"), Sampling(2, 1.0, 6)
    rows = best_of_k.replay(job, policy, tokenizer, rewards, twice, count=12)
    assert 0 < len(rows) <= 12
    for row in rows:
        assert [turn.role for turn in row.turns if turn.role != "system"] == ["user", "assistant"]
        assert row.turns[-1].content
    assert best_of_k.replay(job, None, None, None, twice, count=0) == []


def test_the_policy_may_speak_for_the_user(job_of, policy, tokenizer):
    """From the micro-world's prompts on, and under its instructions; each dialogue as long as was drawn, or shorter."""
    job = job_of(
        "gatt", users="policy", dialogues=24, min_turns=1, max_turns=2, max_new_tokens=24, model={"max_length": 512}
    )
    policy.config.max_position_embeddings = 512
    rows = gatt.conversations_of(job, lambda: policy, tokenizer)
    assert len(rows) == 24
    assert {row.source for row in rows} == {"microworld"}
    assert all(row.instruction and 1 <= len(row.user_turns) <= 2 for row in rows)
    assert max(len(row.user_turns) for row in rows) > 1


def test_dialogues_of_a_file_go_under_instructions_of_a_file(job_of, tmp_path):
    spoken = [{"role": role, "content": f"{role} {i}"} for i in range(3) for role in ("user", "assistant")]
    rows = [{"messages": [{"role": "user", "content": f"hello {n}"}, *spoken[1:]]} for n in range(20)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lists.json").write_text(json.dumps({"figures": ["Napoleon"], "languages": ["French"]}))
    job = job_of(
        "gatt", data=[{"name": "mine", "path": str(tmp_path / "d.jsonl")}], dialogues=40, max_turns=2,
        instructions={"path": str(tmp_path / "lists.json")},
    )  # fmt: skip
    rows = gatt.conversations_of(job, None, None)
    assert len(rows) == 40
    assert {row.user_turns[1:] for row in rows} == {("user 1",)}
    texts = {row.instruction: row.short for row in rows}
    assert texts["Always act as Napoleon from now."] == "Figure: Napoleon."
    assert texts["Speak in French. Always act as Napoleon from now."] == "Language: French. Figure: Napoleon."


def test_the_stage_leaves_its_rows_and_a_policy(job_of, saved, monkeypatch):
    trained, real = [], gatt.fine_tune

    def fine_tune(policy, tokenizer, rows, job, *, last_answer_only):
        trained.append((rows, last_answer_only))
        real(policy, tokenizer, rows, job, last_answer_only=last_answer_only)

    monkeypatch.setattr(gatt, "fine_tune", fine_tune)
    reads = {"policy": [saved.policy("rejection-1")], "reward": [saved.reward("reward-1")]}
    job = job_of(
        "gatt", reads=reads, dialogues=6, min_turns=1, max_turns=2, samples_per_turn=4, max_new_tokens=4, epochs=1,
        batch_size=4, model={"max_length": 256},
    )  # fmt: skip
    gatt.run(job)
    rows = read_jsonl(job.out / "dialogues.jsonl", Dialogue)
    ghosts, replayed = ([row for row in rows if row.source == source] for source in ("gatt", "replay"))
    assert ghosts
    assert len(ghosts) + len(replayed) == len(rows)
    assert all(row.turns[0].role == "system" for row in ghosts)
    assert trained == [(rows, {row.id for row in ghosts})]  # the others bear loss on every answer
    assert (job.out / "checkpoint" / "model.safetensors").exists()


def test_loss_on_all_answers_differs_in_the_loss_alone(job_of, saved, monkeypatch):
    """The same conversations once each, the same rows of the policy's own beside them (B29)."""
    trained = {}
    monkeypatch.setattr(
        gatt, "fine_tune", lambda policy, tokenizer, rows, job, **more: trained.update(rows=rows, **more)
    )
    held = [conversation(3, f"c{i}", instruction="end : key") for i in range(6)]
    monkeypatch.setattr(gatt, "conversations_of", lambda *given: held)
    reads = {"policy": [saved.policy("rejection-1")], "reward": [saved.reward("reward-1")]}
    found = {}
    for mode in ("last_answer", "all_answers"):
        job = job_of(
            "gatt", reads=reads, samples_per_turn=4, max_new_tokens=4, cuts=2, train_on=mode, model={"max_length": 256}
        )
        gatt.run(job)
        found[mode] = {kind: [row for row in trained["rows"] if row.source == kind] for kind in ("gatt", "replay")}
        assert len(trained["last_answer_only"]) == (len(found[mode]["gatt"]) if mode == "last_answer" else 0)
    last, every = found["last_answer"], found["all_answers"]
    assert last["replay"] == every["replay"]
    longest = {row.id.split("/")[0]: row for row in last["gatt"]}  # rows of a conversation grow
    assert every["gatt"] == list(longest.values())
    assert len(every["gatt"]) < len(last["gatt"])


def test_a_bad_row_is_refused_before_any_model_is_loaded(job_of, saved, monkeypatch, tmp_path):
    monkeypatch.setattr("rlhf.rollout.load_policy", None)
    monkeypatch.setattr(gatt, "RewardModels", None)
    (tmp_path / "dialogues.jsonl").write_text('{"messages": 3}\n')
    (tmp_path / "lists.json").write_text('{"hobbies": ["chess", "golf", "judo", "running"]}')
    job = job_of(
        "gatt",
        reads={"policy": [saved.policy("sft")], "reward": [saved.reward("reward-1")]},
        data=[{"name": "mine", "path": str(tmp_path / "dialogues.jsonl")}],
        instructions={"path": str(tmp_path / "lists.json")},
    )
    with pytest.raises(DataError, match="messages"):
        gatt.run(job)


def test_the_layers_that_are_named_learn_alone(job_of, saved):
    reads = {"policy": [saved.policy("rejection-1")], "reward": [saved.reward("reward-1")]}
    job = job_of(
        "gatt", reads=reads, dialogues=6, min_turns=2, max_turns=2, samples_per_turn=4, max_new_tokens=4, epochs=1,
        batch_size=4, model={"max_length": 256}, target_modules=["q_proj", "k_proj"],
    )  # fmt: skip
    gatt.run(job)
    before, after = (load_file(at / "checkpoint" / "model.safetensors") for at in (reads["policy"][0], job.out))
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj"}


def test_a_layer_that_does_not_exist_is_named_before_any_model_is_loaded(job_of, saved, monkeypatch):
    monkeypatch.setattr("rlhf.rollout.load_policy", None)
    reads = {"policy": [saved.policy("rejection-1")], "reward": [saved.reward("reward-1")]}
    job = job_of("gatt", reads=reads, dialogues=2, model={"max_length": 256}, target_modules=["c_attn"], users="policy")
    with pytest.raises(ConfigError, match="no layer that learns is called c_attn"):
        gatt.run(job)


# ── instructions that are never trained ──────────────────────────────────────────────────────────────────────────────


def test_no_conversation_is_under_an_unseen_instruction_nor_changed_to_one(job_of, policy, tokenizer):
    """Roles are about a third of all instructions; without them the other conversations are what they were."""
    told = {}
    for unseen in ([], ["talk like"]):
        job = job_of("gatt", dialogues=40, min_turns=2, max_turns=3, change_share=0.5, unseen=unseen)
        told[bool(unseen)] = gatt.conversations_of(job, lambda: policy, tokenizer)
    assert any("talk like" in c.instruction for c in told[False])
    for before, after in zip(told[False], told[True], strict=True):
        assert "talk like" not in after.instruction + (after.change.holds if after.change else "")
        assert after.short != before.short or after.instruction == before.instruction
        if "talk like" not in before.instruction:
            assert (after.instruction, after.user_turns) == (before.instruction, before.user_turns)


def test_where_no_instruction_is_left_it_says_so(job_of, policy, tokenizer):
    with pytest.raises(ConfigError, match="no instruction left"):
        gatt.conversations_of(job_of("gatt", dialogues=4, unseen=["always"]), lambda: policy, tokenizer)
