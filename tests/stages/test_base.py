"""Running text to rows: every text once, between its marks, and windows that are pieces of it."""

import copy
from collections import Counter

import pytest

from rlhf.data.chat import LLAMA2_TEMPLATE
from rlhf.errors import DataError
from rlhf.models.load import load_tokenizer
from stages import base
from stages.base import rows_of, token_stream

TEXTS = ["take the key .", "open the door", "good luck !", "the key and the door and the house", "a"]


def split(stream, tokenizer):
    """The texts of a stream, told apart by the marks around them."""
    assert stream[0] == tokenizer.bos_token_id
    texts, current = [], None
    for token in stream:
        if token == tokenizer.bos_token_id:
            assert current is None
            current = []
        elif token == tokenizer.eos_token_id:
            texts.append(tokenizer.decode(current))
            current = None
        else:
            current.append(token)
    assert current is None
    return texts


def test_a_stream_holds_every_text_once_between_its_marks(tokenizer):
    found = split(token_stream(tokenizer, TEXTS * 2, seed=0), tokenizer)
    assert Counter(found) == Counter(TEXTS * 2)


def test_texts_are_shuffled_by_the_seed_alone(tokenizer):
    given = list(TEXTS)
    streams = [token_stream(tokenizer, given, seed=seed) for seed in (0, 0, 1)]
    assert given == TEXTS
    assert streams[0] == streams[1] != streams[2]
    assert split(streams[0], tokenizer) != TEXTS


def test_a_text_longer_than_the_context_is_kept_whole(tokenizer):
    text = "take the key . " * 100
    assert split(token_stream(tokenizer, [text], seed=0), tokenizer) == [text]


def test_rows_are_windows_of_the_stream_that_bear_loss_everywhere():
    stream = list(range(1000, 1050))
    rows = rows_of(stream, length=8, count=200, seed=0)
    assert len(rows) == 200
    for row in rows:
        start = row.input_ids[0] - 1000
        assert row.input_ids == stream[start : start + 8]
        assert row.labels == row.input_ids
        assert row.position_ids == list(range(8))
    assert len({row.input_ids[0] for row in rows}) > 30  # at places all over it


def test_the_same_seed_gives_the_same_rows():
    stream = list(range(50))
    first, again, other = (rows_of(stream, length=8, count=20, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("length", [50, 51])
def test_text_that_fills_no_row_is_refused(length):
    with pytest.raises(DataError, match=f"the text has 50 tokens, fewer than a row of {length} and the one after it"):
        rows_of(list(range(50)), length=length, count=1, seed=0)


@pytest.mark.parametrize("own", [None, "{% for message in messages %}{{ message['content'] }}{% endfor %}"])
def test_a_given_tokenizer_keeps_its_chat_template_or_gets_llama_2s(job_of, tokenizer, tmp_path, own):
    given = copy.deepcopy(tokenizer)
    given.chat_template = own
    given.save_pretrained(str(tmp_path / "given"))
    job = job_of("base", model={"path": str(tmp_path / "given")})
    base.run(job)
    assert load_tokenizer(job.out / "checkpoint").chat_template == (own or LLAMA2_TEMPLATE)
