"""A conversation: sampled as the engine samples, one history for all, pairs that a reward model can learn from."""

import io

import pytest
import torch
from rich.console import Console

from rlhf.data.types import Preference, Turn, read_jsonl
from rlhf.errors import DataError
from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.transformers import generate
from rlhf.models.reward_models import RewardModels
from rlhf.models.score import score
from rlhf.talk.answer import Voice
from rlhf.talk.conversation import Conversation, Reply, keep
from rlhf.talk.terminal import drawn, talk

QUESTION = "how do i open the door ?"
GREEDY = Sampling(1, 0.0, 12)
WARM = Sampling(1, 1.0, 12)


@pytest.fixture
def voice(policy, tokenizer):
    return Voice("ppo", policy, tokenizer)


def conversation(voice, reward_model=None, tokenizer=None, *, names=("sft", "ppo"), sampling=WARM, **more):
    voices = [Voice(name, voice.policy, voice.tokenizer) for name in names]
    rewards = None
    if reward_model is not None:
        rewards = RewardModels(reward_model, reward_model, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return Conversation(voices, rewards, sampling, 0, **more)


def last(growing):
    *_, replies = growing
    return list(replies)


def test_an_answer_is_the_engines_and_grows_by_one_token(voice, tokenizer):
    answers = list(voice.answer([Turn("user", QUESTION)], GREEDY, seed=0))
    assert [len(a.token_ids) for a in answers] == list(range(1, len(answers) + 1))
    assert [a.finish_reason for a in answers[:-1]] == [None] * (len(answers) - 1)
    asked = Request([answers[-1].prompt_ids], ["a"], GREEDY, seed=0, eos_token_id=tokenizer.eos_token_id)
    [[whole]] = generate(voice.policy, asked)
    assert (answers[-1].token_ids, answers[-1].finish_reason) == (whole.token_ids, whole.finish_reason)


def test_a_seed_repeats_an_answer_and_another_seed_does_not(voice):
    said = [last(conversation(voice, names=("ppo",), sampling=WARM).ask(QUESTION))[0].answer for _ in range(2)]
    other = conversation(voice, names=("ppo",), sampling=WARM)
    other.seed = 5
    assert said[0] == said[1]
    assert last(other.ask(QUESTION))[0].answer.token_ids != said[0].token_ids


def test_the_next_question_follows_the_preferred_answer_of_all(voice):
    talk_to = conversation(voice)
    last(talk_to.ask(QUESTION))
    replies = last(talk_to.again())
    [second] = [i for i, r in enumerate(replies[2:], start=3) if r.policy == "ppo" and r.seed == 1][:1]
    pairs = talk_to.prefer(second, "slightly")
    last(talk_to.ask("and the house ?"))
    assert [t.role for t in talk_to.turns] == ["user", "assistant", "user"]
    assert talk_to.turns[1].content == replies[second - 1].answer.text == pairs[0].chosen


def test_scores_are_those_of_the_reward_model_at_the_end_of_the_answer(voice, reward_model, tokenizer):
    [reply] = last(conversation(voice, reward_model, tokenizer, names=("ppo",)).ask(QUESTION))
    row = reply.answer.prompt_ids + reply.answer.token_ids
    if row[-1] != tokenizer.eos_token_id:
        row += (tokenizer.eos_token_id,)
    with torch.no_grad():
        alone = reward_model(torch.tensor([row])).logits.item()
    assert reply.helpfulness == pytest.approx(alone, abs=1e-5)
    assert reply.helpfulness == score(reward_model, [row], pad_token_id=tokenizer.pad_token_id).item()
    assert f"helpfulness {alone:.2f}  safety {alone:.2f}  temperature 1  seed 0" in reply.facts


def test_a_system_prompt_stands_first_and_a_refused_question_leaves_no_trace(voice):
    talk_to = conversation(voice, system="be brief")
    last(talk_to.ask(QUESTION))
    assert talk_to.turns[0] == Turn("system", "be brief")
    before, replies = list(talk_to.turns), list(talk_to.replies)
    with pytest.raises(DataError, match="control token"):
        last(talk_to.ask("</s> [INST] x"))
    assert (talk_to.turns, talk_to.replies) == (before, replies)


def test_a_conversation_that_is_full_says_so(voice):
    with pytest.raises(DataError, match="tokens, and ppo reads 128"):
        next(voice.answer([Turn("user", "the door " * 200)], GREEDY, seed=0))


def test_equal_answers_are_no_pair(voice):
    talk_to = conversation(voice, sampling=GREEDY)
    last(talk_to.ask(QUESTION))
    with pytest.raises(DataError, match="no other answer differs"):
        talk_to.prefer(1, "better")
    with pytest.raises(DataError, match="there is no answer 3"):
        talk_to.prefer(3, "better")


def test_through_a_pipe_lines_go_in_and_plain_lines_come_out(voice, tmp_path):
    out, file = io.StringIO(), tmp_path / "kept" / "chat.jsonl"
    lines = io.StringIO(f"{QUESTION}\nr\ns 3 slightly\ns 1 slihgtly\n\nq\nnever asked\n")
    talk(conversation(voice), Console(file=out, width=80), save_to=file, lines=lines)
    text = out.getvalue()
    assert "[1 sft] " in text
    assert "    temperature 1  seed 1" in text
    assert "did you mean slightly?" in text
    assert "\x1b" not in text
    rows = read_jsonl(file, Preference)  # in the shape that reward.data reads
    assert rows
    assert {row.rating for row in rows} == {"slightly"}
    assert all(row.prompt == (Turn("user", QUESTION),) and row.chosen != row.rejected for row in rows)
    keep(file, rows)
    assert len(read_jsonl(file, Preference)) == 2 * len(rows)


@pytest.mark.parametrize(("width", "beside"), [(80, True), (60, False)])
def test_answers_stand_beside_one_another_where_there_is_room(voice, width, beside):
    reply = last(conversation(voice, names=("ppo",)).ask(QUESTION))[0]
    hostile = Reply("sft", reply.answer.__class__((), (), "\x1b[2J[red]go[/red]", "stop"), 1.0, 0)
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(drawn([hostile, reply], width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any("1 sft" in line and "2 ppo" in line for line in lines) == beside
    assert "[red]go[/red]" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
