"""Ghost Attention's rows, as section 3.3 and A.3.5 describe them."""

import pytest

from rlhf.data.chat import encode_dialogue, labels
from rlhf.data.gatt import spread, training_dialogue
from rlhf.data.types import Turn


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
    trained = [label for label in labels(encoded, "last_answer") if label != -100]
    assert tokenizer.decode(trained) == " good luck ! key </s>"


def test_what_is_not_a_dialogue_is_refused():
    with pytest.raises(ValueError, match="got 2 turns, 1 answers"):
        training_dialogue("g", "i", ["a", "b"], ["c"], source="s")
