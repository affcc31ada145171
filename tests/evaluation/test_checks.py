"""Every rule on a reply that keeps it and on one that does not, both written by hand."""

import gzip
import json
import os
from pathlib import Path

import pytest

from rlhf.errors import DataError
from rlhf.evaluation.checks import RULES, Checked, rates, read

REAL = Path(os.environ.get("RLHF_DATA_REAL", "data-real")) / "prompts" / "ifeval.jsonl.gz"

CASES = {
    "punctuation:no_comma": ({}, "a b", "a, b"),
    "length_constraints:number_words": ({"relation": "at least", "num_words": 3}, "one two three", "one two"),
    "length_constraints:number_sentences": ({"relation": "less than", "num_sentences": 3}, "A. B!", "A. B! C?"),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a\nb"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"}, "a\n\nSo b", "So a\n\nb"),
    "keywords:existence": ({"keywords": ["rose"]}, "A Rose.", "Roses."),
    "keywords:forbidden_words": ({"forbidden_words": ["rose"]}, "Roses.", "A rose."),
    "keywords:frequency": ({"keyword": "a", "relation": "at least", "frequency": 2}, "a a", "a"),
    "keywords:letter_frequency": ({"letter": "z", "let_relation": "less than", "let_frequency": 2}, "zoo", "zz"),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* **b**", "*a* * *"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n- b", "* a"),
    "detectable_format:title": ({}, "<<A title>>\nb", "A title"),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2}, "Section 1 a\nSection 2 b", "Section 1"),
    "detectable_format:constrained_response": ({}, "My answer is yes.", "yes"),
    "startend:quotation": ({}, '"a"', 'a"'),
    "startend:end_checker": ({"end_phrase": "The end."}, "Now: the end.", "The end. Not yet"),
    "change_case:english_lowercase": ({}, "all small", "Not small"),
    "change_case:english_capital": ({}, "ALL LARGE", "ALL Large"),
    "change_case:capital_word_frequency": ({"capital_relation": "at least", "capital_frequency": 2}, "A BIG", "BIG"),
    "detectable_content:postscript": ({"postscript_marker": "P.P.S"}, "a\nP.P.S more", "a\nP.S. more"),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[a] [b]", "[a]"),
    "combination:two_responses": ({}, "a ****** b", "a ****** a"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Why?"}, "Why? Because.", "Because."),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_kept_or_not(rule):
    arguments, kept, broken = CASES[rule]
    row = Checked("p", (rule,), (arguments,))
    assert (row.kept(kept), row.kept(broken), row.kept("")) == ([True], [False], [False])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "kwargs": []}, "no 'instruction_id_list'"),
        ({"prompt": "p", "instruction_id_list": [], "kwargs": []}, "at least one rule"),
        ({"prompt": 3, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}, "prompt is a text"),
        ({"prompt": " ", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}, "not empty"),
        ({"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "zip"),
        ({"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"words": 3}]}, "words"),
        ({"prompt": "p", "instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": None}]}, "keywords"),
    ],
)
def test_a_row_that_cannot_be_checked_is_named_before_anything_is_asked(row, said, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="not a prompt with rules") as error:
        read(str(tmp_path / "rows.jsonl"))
    assert said in error.value.what
    assert error.value.where == f"{tmp_path / 'rows.jsonl'}:1"


def test_no_file_has_no_rows_and_an_empty_one_is_refused(tmp_path):
    assert read(None) == ()
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no prompt with rules"):
        read(str(tmp_path / "rows.jsonl"))


def test_rates_by_hand():
    comma, small = "punctuation:no_comma", "change_case:english_lowercase"
    rows = [Checked("p", (comma, small), ({}, {})), Checked("q", (comma,), ({"unused": None},))]
    found = rates(rows, ["a, b", "A b"])  # of the first one rule of two, of the second all
    assert (found["prompts"], found["rules"], found["n"]) == (0.5, pytest.approx(2 / 3), 2)
    assert not Checked("p", ("language:response_language",), ({},)).known


@pytest.mark.skipif(not REAL.exists(), reason=f"no IFEval prompts: {REAL} (set RLHF_DATA_REAL)")
def test_the_public_prompts_can_be_checked():
    with gzip.open(REAL, "rt", encoding="utf-8") as file:
        rows = [Checked.from_row(json.loads(line)) for line in file]
    known = [row for row in rows if row.known]
    assert len(known) >= 0.9 * len(rows)
    found = rates(known, ["Nothing of the kind was asked, I think."] * len(known))
    assert found["prompts"] < 0.3
