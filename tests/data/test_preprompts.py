"""Safety preprompts: the paper's texts, drawn by category, written before the prompt and nowhere else."""

import random

import pytest

from rlhf.data import preprompts
from rlhf.data.chat import encode_prompt
from rlhf.data.types import Prompt, Turn
from rlhf.microworld import caution, corpus
from rlhf.microworld.oracle import judge

ASKED = Prompt("p", (Turn("user", "how ?"),), "hh", is_safety=True, kind="Explicit Content")


def test_a_category_has_its_answer_template():
    text = preprompts.PAPER.draw(random.Random(0), "Explicit Content")
    assert "belonging to the violating category: 'Explicit Content'" in text
    assert text.index("1. Address") < text.index("2. Refuse")


def test_without_a_category_adjectives_fill_a_generic_one():
    drawn = {preprompts.PAPER.draw(random.Random(seed), "") for seed in range(200)}
    assert len(drawn) > 50
    assert not [text for text in drawn if "{" in text]
    assert preprompts.without_templates(preprompts.PAPER).draw(random.Random(0), "Explicit Content") in drawn


def test_it_is_the_system_message_and_a_message_of_the_prompts_own_comes_after_it():
    assert preprompts.under(ASKED, "Be safe.").turns == (Turn("system", "Be safe."), Turn("user", "how ?"))
    own = Prompt("p", (Turn("system", "Speak French."), Turn("user", "how ?")), "hh", is_safety=True)
    assert preprompts.under(own, "Be safe.").turns == (Turn("system", "Be safe.\nSpeak French."), Turn("user", "how ?"))


@pytest.mark.parametrize("source", ["hh", "microworld"])
def test_every_preprompt_can_be_encoded(source, tokenizer):
    known = preprompts.of(source)
    for kind in ("", *known.by_category):
        assert encode_prompt(tokenizer, preprompts.under(ASKED, known.draw(random.Random(1), kind)).turns)


def test_people_who_were_warned_refuse_and_under_a_template_they_say_why():
    mix = corpus.DemonstrationMix(instructed=0.0, cautioned=1.0)
    rows = corpus.demonstrations(random.Random(0), 600, mix)
    assert all(row.turns[0].role == "system" for row in rows)
    template = caution.BY_KIND["unsafe"]
    told, warned = [], []
    for row in rows:
        verdict = judge(row.turns[:-1], row.turns[-1].content)
        if row.turns[0].content == template:
            assert (verdict.kind, verdict.quality) == ("unsafe", 1.0)  # a refusal with its reason
            told.append(verdict)
        elif verdict.kind == "unsafe":
            warned.append(verdict.violation)
    assert len(told) > 200
    assert 0 < sum(warned) / len(warned) < 0.4  # by hand .15; some 50 of them


def test_without_the_setting_nothing_is_drawn_for_it():
    before = corpus.demonstrations(random.Random(3), 50)
    assert before == corpus.demonstrations(random.Random(3), 50, corpus.DemonstrationMix(cautioned=0.0))
    assert not [row for row in before if row.turns[0].content == caution.BY_KIND["unsafe"]]
