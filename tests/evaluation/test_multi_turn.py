"""Conversations held by a policy that reads from a script: what it was asked, and what was made of its answers."""

from dataclasses import replace

import pytest

from rlhf.data.conversations import Change, Conversation
from rlhf.data.instructions import Instruction
from rlhf.data.types import Turn
from rlhf.evaluation import multi_turn
from rlhf.generation.protocol import Completion
from rlhf.generation.transformers import InProcess
from rlhf.rollout import Sample

COLOR, WHERE, LAMP = "what color is the rose ?", "where is the bread ?", "what color is the lamp ?"
HELD = [
    Conversation("first", "always end with lantern", (COLOR, WHERE, LAMP), (False,) * 3, "microworld"),
    Conversation("second", "always start with comet", (WHERE, LAMP, COLOR), (False,) * 3, "microworld"),
]
# By turn: an answer to each conversation. The rose is red, the lamp pink, the bread in the shop.
SCRIPT = [
    ["red . lantern", "comet the bread is in the shop ."],  # both follow; a terse one is worth .7, a full one 1
    ["in the mill .", ""],  # neither follows; a wrong place is worth .1, silence 0
    ["pink . lantern", "the rose is red ."],  # one follows; .7 and 1
]


@pytest.fixture
def asked(monkeypatch):
    """The prompts of every turn, in order, as the scripted policy was asked them."""
    found = []

    def scripted(policy, tokenizer, prompts, sampling, **options):
        assert (sampling.samples_per_prompt, sampling.temperature, sampling.max_new_tokens) == (1, 0.0, 28)
        texts = SCRIPT[len(found)]
        found.append(list(prompts))
        ended = Completion((9,), (0.0,), "stop")
        return [[Sample(prompt, (8,), ended, text)] for prompt, text in zip(prompts, texts, strict=True)]

    monkeypatch.setattr(multi_turn, "sample", scripted)
    return found


def rates(turns):
    return multi_turn.follow_rates(None, None, HELD, turns=turns, max_new_tokens=28)


def test_rates_by_hand(asked):
    found = rates((1, 2, 3))
    assert found.followed == {1: 1.0, 2: 0.0, 3: 0.5}
    # What is said counts as if the style had been kept.
    assert found.content == pytest.approx({1: 0.85, 2: 0.05, 3: 0.85})
    assert found.lasted == {0, 1}
    assert found.of({1}).followed == {1: 1.0, 2: 0.0, 3: 0.0}


def test_of_a_dialogue_that_goes_on_the_last_turn_is_read(policy, tokenizer):
    """Two dialogues, in batches of one: each is read to its end before the next begins."""
    policy.config.max_position_embeddings = 512
    read = []
    policy.model.embed_tokens.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    found = multi_turn.follow_rates(InProcess(policy, 1), tokenizer, HELD, turns=(2,), max_new_tokens=3)
    assert found.lasted == {0, 1}
    first, then, of_other, further = [width for _, width in read if width > 1]
    assert first > then
    assert of_other > further


def test_only_the_turns_asked_for_are_judged(asked):
    assert rates((2,)).followed == {2: 0.0}
    assert len(asked) == 2  # and nothing is said beyond the last of them


def test_the_instruction_is_given_once_and_own_answers_come_back(asked):
    rates((3,))
    system, users, answers = Turn("system", HELD[0].instruction), HELD[0].user_turns, [row[0] for row in SCRIPT]
    assert [prompts[0].turns for prompts in asked] == [
        (system, Turn("user", users[0])),
        (system, Turn("user", users[0]), Turn("assistant", answers[0]), Turn("user", users[1])),
        (
            *(system, Turn("user", users[0]), Turn("assistant", answers[0])),
            *(Turn("user", users[1]), Turn("assistant", answers[1]), Turn("user", users[2])),
        ),
    ]
    for prompts in asked:
        for prompt in prompts:
            spoken = [turn.content for turn in prompt.turns[1:] if turn.role == "user"]
            assert not [text for text in spoken if "always" in text]


def test_silence_is_fed_back_as_a_full_stop(asked):
    """An answer without text would end its turn where another begins."""
    rates((3,))
    assert [turn.content for turn in asked[2][1].turns if turn.role == "assistant"] == [SCRIPT[0][1], "."]


def test_a_change_of_mind_is_said_in_its_turn_and_judged_from_there_on(asked):
    """From turn 2 on the first wants another word at the start, the second no style at all."""
    other = Change(1, Instruction("always start with pearl", ""), "always start with pearl")
    none = Change(1, Instruction("forget that .", ""), "")
    held = [replace(HELD[0], change=other), replace(HELD[1], change=none)]
    found = multi_turn.follow_rates(None, None, held, turns=(1, 2, 3), max_new_tokens=28)
    # Turn 2: no pearl, and no style: half. Turn 3: still the old word, and still no style: half.
    assert found.followed == {1: 1.0, 2: 0.5, 3: 0.5}
    assert asked[1][0].turns[-1].content == f"always start with pearl {WHERE}"
    assert asked[1][1].turns[-1].content == f"forget that . {LAMP}"
    assert asked[2][1].turns[-1].content == COLOR


def test_an_answer_that_keeps_the_old_style_beside_the_new_one_has_not_changed(asked, monkeypatch):
    """From turn 2 on both want another word; the first wears both, the second the new one alone."""
    monkeypatch.setattr(f"{__name__}.SCRIPT", [SCRIPT[0], ["pearl the bread is in the shop . lantern", "tulip pink ."]])
    texts = ["always start with pearl", "always start with tulip"]
    starts = [Change(1, Instruction(text, ""), text) for text in texts]
    held = [replace(c, change=change) for c, change in zip(HELD, starts, strict=True)]
    assert multi_turn.follow_rates(None, None, held, turns=(2,), max_new_tokens=28).followed == {2: 0.5}


def test_every_rate_has_its_interval(asked):
    found = rates((1, 3))
    # Wilson: 2 of 2 leaves .342 to 1, 1 of 2 leaves .095 to .905.
    assert found.intervals() == {
        "1": pytest.approx((0.342, 1.0), abs=1e-3),
        "3": pytest.approx((0.095, 0.905), abs=1e-3),
    }
