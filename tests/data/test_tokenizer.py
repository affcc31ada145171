"""Our own tokenizer writes any text and reads it back."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.data.tokenizer import CONTROL, train_tokenizer

PIECES = st.one_of(st.text(max_size=20), st.sampled_from([*CONTROL, "[/INST]", "  ", "\n\n", "Ġ", "▁", "’", "🙂"]))


@given(parts=st.lists(PIECES, max_size=6))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back(tokenizer, parts):
    text = "".join(parts)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids or "<unk>" in text


def test_it_is_ready_for_chat(tokenizer):
    assert [tokenizer.convert_tokens_to_ids(text) for text in CONTROL] == list(range(8))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert tokenizer.padding_side == "right"
    assert tokenizer.model_max_length == 128
    assert "{% generation %}" in tokenizer.chat_template
    assert len(tokenizer) <= 300


def test_nothing_is_put_around_or_before_a_text(tokenizer):
    assert tokenizer("a")["input_ids"] == tokenizer.convert_tokens_to_ids(["a"])


def test_the_same_texts_give_the_same_tokenizer():
    texts = ["the cat sat on the mat .", "the dog ate the cat ."]
    first, second = (train_tokenizer(iter(texts), vocab_size=280) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 264"):
        train_tokenizer(["a"], vocab_size=263)
