"""Instructions for whole dialogues: the paper's constraints, both forms, combined at random, from files or a model."""

import json
import random

import pytest

from rlhf.data.instructions import KINDS, LONG, Lists, merged, parse_list, read_lists
from rlhf.errors import DataError

LISTS = Lists(
    {"hobbies": ["tennis"], "languages": ["French"], "figures": ["Napoleon"], "instructions": ["Answer with haiku."]},
    {"Answer with haiku.": "Haiku."},
)


def test_the_papers_example_in_both_forms():
    found = LISTS.constraint("figures", "Napoleon")
    assert (found.text, found.short) == ("Always act as Napoleon from now.", "Figure: Napoleon.")  # A.3.5


def test_random_combinations_of_every_size_and_the_short_form_says_the_same():
    rng, sizes = random.Random(0), []
    for _ in range(400):
        drawn = LISTS.draw(rng)
        parts = [LISTS.constraint(kind, LISTS.items[kind][0]) for kind in KINDS]
        chosen = [part for part in parts if part.text in drawn.text]
        sizes.append(len(chosen))
        # Both forms name the same constraints in the same order.
        assert drawn.text == " ".join(p.text for p in sorted(chosen, key=lambda p: drawn.text.index(p.text)))
        assert drawn.short == " ".join(p.short for p in sorted(chosen, key=lambda p: drawn.text.index(p.text)))
    # A fair die of four faces, 400 times: 100 each, standard deviation 9.
    assert all(60 <= sizes.count(n) <= 140 for n in (1, 2, 3, 4))


def test_a_kind_without_items_is_not_drawn():
    drawn = {Lists({"languages": ["French"], "figures": []}).draw(random.Random(i)).text for i in range(20)}
    assert drawn == {"Speak in French."}


def test_lists_from_a_file(tmp_path):
    path = tmp_path / "lists.json"
    path.write_text(json.dumps({"hobbies": [" chess "], "instructions": ["a", {"text": "be brief", "short": "brief"}]}))
    lists = read_lists(path)
    assert lists.items == {"hobbies": ["chess"], "instructions": ["a", "be brief"]}
    assert lists.constraint("instructions", "be brief").short == "brief"
    assert lists.constraint("instructions", "a").short == "a"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1", "not JSON"),
        ("[]", "must be a table"),
        ('{"hobby": ["x"]}', "unknown kind 'hobby'"),
        ('{"hobbies": []}', "must be a list that is not empty"),
        ('{"hobbies": [3]}', "which is no text"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, text, complaint):
    path = tmp_path / "lists.json"
    path.write_text(text)
    with pytest.raises(DataError, match=complaint):
        read_lists(path)


def test_lists_as_models_write_them():
    numbered = "Sure! Here are some hobbies:\n\n1. Tennis\n2) Chess.\n- Gardening\n* hiking in the mountains\n"
    assert parse_list(numbered) == ["Tennis", "Chess", "Gardening", "hiking in the mountains"]
    assert parse_list("French, German, and so on") == ["French", "German", "and so on"]
    assert parse_list("I would rather not write such a list at all today") == []
    assert merged(["1. Chess\n2. Tennis", "- tennis\n- Go"]) == ["Chess", "Tennis", "Go"]


def test_every_long_form_has_its_short_one():
    for kind in LONG:
        found = LISTS.constraint(kind, "x")
        assert "x" in found.text
        assert "x" in found.short
