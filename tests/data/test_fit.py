"""Too long is an error, left out or cut, and counted; what is cut is never the answer nor its end."""

import pytest

from rlhf.data.chat import encode_dialogue, labels
from rlhf.data.collate import Row
from rlhf.data.fit import Fit
from rlhf.data.types import Turn
from rlhf.errors import DataError
from rlhf.training.finetune import fitted


def test_one_token_over_by_hand():
    prompt = [1, 20, 21, 22]  # BOS and three more; with an answer of 3 it is 7
    assert Fit(7, "error").prompt(prompt, 3, where="x") == prompt
    with pytest.raises(DataError, match="7 tokens, the context holds 6") as caught:
        Fit(6, "error").prompt(prompt, 3, where="row 3")
    assert caught.value.where == "row 3"
    assert "data.too_long=truncate_left" in caught.value.hints[-1]
    drop = Fit(6, "drop")
    assert drop.prompt(prompt, 3, where="x") is None
    assert str(drop) == "too long: 1 rows left out"
    cut = Fit(6, "truncate_left")
    assert cut.prompt(prompt, 3, where="x") == [1, 21, 22]
    assert cut.prompt(prompt, 4, where="x") == [1, 22]
    assert str(cut) == "too long: 2 rows cut at the start of their prompts"


def test_an_answer_that_does_not_fit_is_never_cut():
    with pytest.raises(DataError, match="9 tokens, the context holds 6") as caught:
        Fit(6, "truncate_left").prompt([1, 2, 3, 4], 5, where="x")
    assert not any("truncate_left" in hint for hint in caught.value.hints)


def test_a_dialogue_keeps_its_last_answer_and_stop_token(tokenizer):
    turns = (Turn("user", "how do i open the door ?"), Turn("assistant", "take the key ."), Turn("user", "and then ?"),
             Turn("assistant", "open the door ."))  # fmt: skip
    encoded = encode_dialogue(tokenizer, turns)
    row = Row(encoded.input_ids, labels(encoded, "all_answers"))
    size, last = len(row.input_ids), sum(owner == 3 for owner in encoded.owner)
    fit = Fit(size, "truncate_left")
    assert fitted(row, encoded.owner, fit, "x") is row
    assert not fit
    short = Fit(last + 4, "truncate_left")
    kept = fitted(row, encoded.owner, short, "x")
    assert kept.input_ids == [row.input_ids[0], *row.input_ids[-(last + 3) :]]
    assert kept.input_ids[-1] == kept.labels[-1] == tokenizer.eos_token_id
    assert kept.labels[-last:] == row.labels[-last:]
    assert fitted(row, encoded.owner, Fit(last + 4, "drop"), "x") is None
