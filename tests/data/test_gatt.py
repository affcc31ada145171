"""Ghost Attention's rows, as section 3.3 and A.3.5 describe them."""

import random

import pytest

from rlhf.data.chat import encode_dialogue, labels
from rlhf.data.gatt import FIGURE, HOBBY, SENTENCES, TRAIN_ON, Constraint, build_instruction, spread, training_dialogue
from rlhf.data.types import Turn

CONSTRAINTS = [
    Constraint(FIGURE, SENTENCES[FIGURE], ("Napoleon", "Ada Lovelace")),
    Constraint(HOBBY, SENTENCES[HOBBY], ("Tennis",)),
    Constraint("Language", "Speak in {}.", ("French", "Basque")),
]


def test_the_papers_examples_word_for_word():
    only_figure = [Constraint(FIGURE, SENTENCES[FIGURE], ("Napoleon",))]
    long = build_instruction(random.Random(0), only_figure, shorten=0.0)
    short = build_instruction(random.Random(0), only_figure, shorten=1.0)
    assert long.full == long.shown == short.full == "Always act as Napoleon from now."
    assert short.shown == "Figure: Napoleon."


def test_combinations_are_random_and_half_of_them_shortened():
    rng = random.Random(0)
    built = [build_instruction(rng, CONSTRAINTS) for _ in range(2000)]
    sizes = [sum(mark in b.full for mark in ("act as", "enjoy", "Speak")) for b in built]
    assert {1, 2, 3} == set(sizes)
    short = sum(b.shown != b.full for b in built)
    assert abs(short - 1000) < 4 * (2000 * 0.25) ** 0.5  # four standard errors of a fair coin
    assert len({b.full for b in built}) > 20


def test_sampling_sees_the_instruction_in_every_user_turn():
    turns = (Turn("user", "hi"), Turn("assistant", "salut"), Turn("user", "how are you ?"))
    assert spread("Speak in French.", turns) == (
        Turn("user", "Speak in French. hi"),
        Turn("assistant", "salut"),
        Turn("user", "Speak in French. how are you ?"),
    )
    with pytest.raises(ValueError, match="already has a system message"):
        spread("Speak in French.", (Turn("system", "s"), *turns))


def test_training_shows_it_in_the_first_user_turn_only_and_trains_the_last_answer_only(tokenizer):
    instruction = "always end with key"
    answers = ["take it . key", "open it . key", "good luck ! key"]
    dialogue = training_dialogue("g1", instruction, ["how ?", "and then ?", "well ?"], answers, source="gatt")
    encoded = encode_dialogue(tokenizer, dialogue.turns)
    written = tokenizer.decode(encoded.input_ids)
    assert written.count(instruction) == 1
    assert written.index(instruction) < written.index("how ?") < written.index("[/INST]")
    trained = [label for label in labels(encoded, TRAIN_ON) if label != -100]
    assert tokenizer.decode(trained) == " good luck ! key </s>"


def test_what_is_not_a_dialogue_is_refused():
    with pytest.raises(ValueError, match="got 2 turns, 1 answers"):
        training_dialogue("g", "i", ["a", "b"], ["c"], source="s")
    with pytest.raises(ValueError, match=r"one \{\}"):
        Constraint("Figure", "Act as him.", ("Napoleon",))
    with pytest.raises(ValueError, match="at least one constraint"):
        build_instruction(random.Random(0), [])
