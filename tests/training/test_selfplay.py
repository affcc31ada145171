"""A policy that reads from a script speaks for both sides: what each side was shown, and what was kept."""

import pytest

from rlhf.data.types import Prompt, Turn
from rlhf.errors import DataError
from rlhf.generation.protocol import Completion
from rlhf.rollout import Sample
from rlhf.training import selfplay

OPENINGS = [Prompt(name, (Turn("user", f"{name}1"),), "x", is_safety=False) for name in "ab"]


def script(monkeypatch, *texts):
    asked, left = [], list(texts)

    def sample(policy, tokenizer, prompts, sampling, *, seed):
        asked.append(list(prompts))
        said = left.pop(0)
        ended = Completion((9,), (0.0,), "stop")
        k = sampling.samples_per_prompt
        return [[Sample(p, (8,), ended, text)] * k for p, text in zip(prompts, said, strict=True)]

    monkeypatch.setattr(selfplay, "sample", sample)
    return asked


def play(turns):
    return selfplay.user_turns(None, None, OPENINGS, turns=turns, temperature=1.0, max_new_tokens=8, seed=0)


def test_answers_and_questions_take_turns_with_the_roles_swapped(monkeypatch):
    asked = script(monkeypatch, ["A1", "B1"], ["a2", "b2"], ["A2"], ["a3"])
    assert play([3, 2]) == [("a1", "a2", "a3"), ("b1", "b2")]
    roles = [[(turn.role, turn.content) for turn in prompts[0].turns] for prompts in asked]
    assert roles[0] == [("user", "a1")]
    assert roles[1] == [("user", selfplay.BRIEF), ("assistant", "a1"), ("user", "A1")]
    assert roles[2] == [("user", "a1"), ("assistant", "A1"), ("user", "a2")]
    swapped = [("user", selfplay.BRIEF), ("assistant", "a1"), ("user", "A1"), ("assistant", "a2"), ("user", "A2")]
    assert roles[3] == swapped


def test_who_has_nothing_to_ask_ends_the_dialogue(monkeypatch):
    script(monkeypatch, ["A1", "B1"], ["", "b2"], ["B2"], ["b3"])
    assert play([3, 3]) == [("a1",), ("b1", "b2", "b3")]


def test_lists_by_the_policy_itself(monkeypatch):
    said = []
    asked = script(monkeypatch, ["1. Chess\n2. Go\n3. Tennis\n4. Golf", "French", "I cannot do that for you, sorry."])
    options = {"items": 4, "max_new_tokens": 8, "temperature": 1.0, "seed": 0}
    lists = selfplay.written_lists(None, None, say=said.append, **options)
    assert lists.items == {"hobbies": ["Chess", "Go", "Tennis", "Golf"]}  # one language is no list
    assert asked[0][0].turns[0].content == "List 4 hobbies, one a line, without explanations."
    script(monkeypatch, ["", "", ""])
    with pytest.raises(DataError, match="wrote none"):
        selfplay.written_lists(None, None, say=said.append, **options)
