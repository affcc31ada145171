"""Rows as public sets publish them become pairs, with the degree that each set's rule says. All rows are made up."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from rlhf.data.sources import known_sources, load_preferences, load_prompts
from rlhf.errors import ConfigError, DataError
from rlhf.schema import Source

Q = [{"role": "user", "content": "why?"}]


def read(tmp_path, name, rows, **settings):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(name=name, path=str(path), on_bad_row="drop", **settings)
    return load_preferences(source, say=[].append)


def short(pairs):
    return [(pair.prompt[-1].content, pair.chosen, pair.rejected, pair.rating) for pair in pairs]


def helpsteer2(strength, prompt="why?"):
    return {"prompt": prompt, "response_1": "one", "response_2": "two", "preference_strength": strength, "split": "val"}


def helpsteer3(strength):
    return {"context": Q, "response1": "one", "response2": "two", "overall_preference": strength, "domain": "general"}


@pytest.mark.parametrize(("name", "row"), [("nvidia/HelpSteer2", helpsteer2), ("nvidia/HelpSteer3", helpsteer3)])
def test_helpsteer_minus_three_is_the_first_much_better(tmp_path, name, row):
    assert short(read(tmp_path, name, [row(strength) for strength in (-3, -1, 0, 2)])) == [
        ("why?", "one", "two", "significantly"),
        ("why?", "one", "two", "slightly"),
        ("why?", "two", "one", "better"),  # the tie is left out
    ]


def test_helpsteer2_prompts_of_several_turns_are_cut_at_their_marks(tmp_path):
    prompt = "why?\n<extra_id_1>Assistant\nso.\n<extra_id_1>User\nwhy so?"
    (pair,) = read(tmp_path, "nvidia/HelpSteer2", [helpsteer2(1, prompt)])
    spoken = [(turn.role, turn.content) for turn in pair.prompt]
    assert spoken == [("user", "why?"), ("assistant", "so."), ("user", "why so?")]


def test_ultrafeedback_gives_every_pair_of_its_four_answers(tmp_path):
    answers = [{"response": text, "overall_score": score} for text, score in zip("abcd", (9, 8.5, 8.5, 5), strict=True)]
    pairs = read(tmp_path, "openbmb/UltraFeedback", [{"instruction": "why?", "completions": answers}])
    assert short(pairs) == [
        ("why?", "a", "b", "negligibly"), ("why?", "a", "c", "negligibly"), ("why?", "a", "d", "significantly"),
        ("why?", "b", "d", "significantly"), ("why?", "c", "d", "significantly"),  # b and c are a tie
    ]  # fmt: skip
    assert len({pair.id for pair in pairs}) == 5
    (prompt,) = load_prompts(Source(name="openbmb/UltraFeedback", path=str(tmp_path / "train.jsonl")), say=[].append)
    assert prompt.turns[0].content == "why?"


def test_ultrafeedback_binarized_is_graded_by_its_two_scores(tmp_path):
    def row(chosen, rejected):
        sides = {side: [*Q, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
        return {"prompt": "why?", "prompt_id": f"{chosen}", **sides, "score_chosen": chosen, "score_rejected": rejected}

    pairs = read(tmp_path, "HuggingFaceH4/ultrafeedback_binarized", [row(8.0, 7.0), row(9.0, 7.0), row(7.0, 7.0)])
    assert short(pairs) == [("why?", "chosen", "rejected", "slightly"), ("why?", "chosen", "rejected", "better")]


def saferlhf(safe, severity, better, safer):
    return {
        "prompt": "why?", "response_0": "zero", "response_1": "one", "better_response_id": better,
        "safer_response_id": safer, "is_response_0_safe": safe[0], "is_response_1_safe": safe[1],
        "response_0_severity_level": severity[0], "response_1_severity_level": severity[1],
    }  # fmt: skip


def test_saferlhf_asks_two_questions_of_one_pair(tmp_path):
    rows = [saferlhf((False, True), (3, 0), better=0, safer=1), saferlhf((False, False), (1, 2), better=1, safer=0)]
    safety = read(tmp_path, "PKU-Alignment/PKU-SafeRLHF", rows, kind="safety")
    assert short(safety) == [("why?", "one", "zero", "significantly"), ("why?", "zero", "one", "slightly")]
    assert [(p.chosen_safe, p.rejected_safe, p.is_safety) for p in safety] == [
        (True, False, True),
        (False, False, True),
    ]
    helpful = read(tmp_path, "PKU-Alignment/PKU-SafeRLHF", rows, kind="helpfulness")
    assert short(helpful) == [("why?", "zero", "one", None), ("why?", "one", "zero", None)]
    assert {(p.chosen_safe, p.rejected_safe, p.is_safety) for p in helpful} == {(None, None, False)}


def test_shp_is_graded_by_the_ratio_of_votes(tmp_path):
    def row(a, b):
        return {
            "history": "why?", "human_ref_A": "A", "human_ref_B": "B", "score_A": a, "score_B": b,
            "labels": int(a > b), "score_ratio": max(a, b) / min(a, b),
        }  # fmt: skip

    pairs = read(tmp_path, "stanfordnlp/SHP", [row(16, 2), row(2, 9), row(3, 2), row(2, 2)])
    assert short(pairs) == [
        ("why?", "A", "B", "significantly"), ("why?", "B", "A", "better"), ("why?", "A", "B", "negligibly"),
    ]  # fmt: skip


def test_summaries_are_asked_for_after_title_and_post(tmp_path):
    summaries = [{"text": text, "policy": "x", "note": None} for text in ("short", "shorter")]
    row = {"info": {"title": "Cats", "post": "Cats are.", "article": None}, "summaries": summaries, "choice": 1}
    article = {"info": {"title": None, "post": None, "article": "News."}, "summaries": summaries, "choice": 0}
    assert short(read(tmp_path, "openai/summarize_from_feedback", [row, article])) == [
        ("Cats\n\nCats are.\n\nTL;DR:", "shorter", "short", None),
        ("News.\n\nTL;DR:", "short", "shorter", None),
    ]


def test_webgpt_scores_the_first_answer(tmp_path):
    rows = [
        {"question": {"full_text": "why?"}, "answer_0": "0", "answer_1": "1", "score_0": score, "score_1": -score}
        for score in (1.0, -0.5, 0.25, 0.0)
    ]
    assert short(read(tmp_path, "openai/webgpt_comparisons", rows)) == [
        ("why?", "0", "1", "significantly"), ("why?", "1", "0", "better"), ("why?", "0", "1", "slightly"),
    ]  # fmt: skip


def test_many_answers_give_ten_pairs_always_the_same(tmp_path):
    answers = [{"text": f"a{i}", "pm_score": i} for i in range(9)]
    rows = [{"qid": qid, "question": f"why {qid}?", "answers": answers} for qid in range(2)]
    pairs = read(tmp_path, "HuggingFaceH4/stack-exchange-preferences", rows)
    assert Counter(pair.prompt[0].content for pair in pairs) == {"why 0?": 10, "why 1?": 10}
    assert pairs == read(tmp_path, "HuggingFaceH4/stack-exchange-preferences", rows)
    for pair in pairs:
        ahead = int(pair.chosen[1:]) - int(pair.rejected[1:])
        assert pair.rating == {1: "slightly", 2: "better"}.get(ahead, "significantly")
    first, second = ({(p.chosen, p.rejected) for p in pairs if str(qid) in p.prompt[0].content} for qid in range(2))
    assert first != second


def test_nectar_has_the_best_answer_at_rank_one(tmp_path):
    prompt = "\n\nHuman: why?\n\nAssistant: so.\n\nHuman: how?\n\nAssistant: "
    answers = [{"answer": text, "model": "m", "rank": float(rank)} for text, rank in (("c", 7), ("a", 1), ("b", 2))]
    pairs = read(tmp_path, "berkeley-nest/Nectar", [{"prompt": prompt, "answers": answers, "turns": 2}])
    assert sorted(short(pairs)) == [
        ("how?", "a", "b", "negligibly"), ("how?", "a", "c", "significantly"), ("how?", "b", "c", "significantly"),
    ]  # fmt: skip
    assert [turn.role for turn in pairs[0].prompt] == ["user", "assistant", "user"]


def message(name, parent, role, text, rank=None, quality=None, tree="t"):
    labels = None if quality is None else {"name": ["spam", "quality"], "value": [0.0, quality], "count": [3, 3]}
    return {
        "message_id": name, "parent_id": parent, "message_tree_id": tree, "role": role, "text": text, "rank": rank,
        "labels": labels, "deleted": False,
    }  # fmt: skip


def test_oasst_ranks_siblings_under_the_turns_above_them(tmp_path):
    rows = [
        message("p", None, "prompter", "why?"),
        message("a", "p", "assistant", "so.", rank=1, quality=0.9),
        message("b", "p", "assistant", "because.", rank=0, quality=0.6),
        message("c", "p", "assistant", "no.", rank=2, quality=0.3),
        message("q", "b", "prompter", "because what?"),
        message("d", "q", "assistant", "x", rank=1),
        message("e", "q", "assistant", "y", rank=0),
        message("r", None, "prompter", "alone?", tree="u"),
        message("f", "r", "assistant", "yes", rank=0, tree="u"),
    ]
    pairs = read(tmp_path, "OpenAssistant/oasst2", rows)
    assert short(pairs) == [
        ("why?", "because.", "so.", None),  # the labels contradict the rank
        ("why?", "because.", "no.", "better"),
        ("why?", "so.", "no.", "significantly"),
        ("because what?", "y", "x", None),  # nobody labelled them
    ]
    assert [turn.content for turn in pairs[-1].prompt] == ["why?", "because.", "because what?"]


@pytest.mark.parametrize("name", [name for name, entry in known_sources().items() if "shape" in entry])
def test_other_columns_than_the_known_ones_are_named(tmp_path, name):
    column = known_sources()[name]["columns"][0]
    with pytest.raises(DataError, match=f"{name} has no column '{column}' .it has text.") as caught:
        read(tmp_path, name, [{"text": "x"}])
    assert caught.value.where == f"{tmp_path / 'train.jsonl'}:1"


def test_a_column_of_another_kind_is_named_with_its_row(tmp_path):
    with pytest.raises(DataError, match="not of the shape 'helpsteer2'") as caught:
        read(tmp_path, "nvidia/HelpSteer2", [helpsteer2(1), helpsteer2("much")])
    assert caught.value.where == f"{tmp_path / 'train.jsonl'}:2"


def test_a_set_without_a_pinned_commit_needs_one():
    with pytest.raises(ConfigError, match="pinned revision only") as caught:
        load_preferences(Source(name="openai/webgpt_comparisons"), say=[].append)
    assert caught.value.hints[0] == "give the commit: {name: openai/webgpt_comparisons, revision: COMMIT}"


@pytest.mark.parametrize("revision", ["main", "v0", "09be8c5b", "09BE8C5BBC57CB3887F3A9732AD6AA7EC602A1FA"])
def test_what_can_move_pins_nothing(revision):
    with pytest.raises(ConfigError, match=f"revision '{revision}' of nvidia/HelpSteer3 is no commit"):
        load_preferences(Source(name="nvidia/HelpSteer3", revision=revision), say=[].append)


def test_votes_become_degrees(tmp_path):
    """Of five: 5:0 all agree, 4:1 is three ahead, 3:1 and a tie two, 3:2 one."""
    rows = [
        {
            "prompt": "why?",
            "chosen": "a",
            "rejected": "b",
            "votes_chosen": won,
            "votes_rejected": lost,
            "votes_tie": tie,
        }
        for won, lost, tie in ((5, 0, 0), (4, 1, 0), (3, 1, 1), (3, 2, 0))
    ]
    ratings = [pair.rating for pair in read(tmp_path, "voted", rows)]
    assert ratings == ["significantly", "better", "slightly", "negligibly"]
    with pytest.raises(DataError, match="votes_chosen must be more than votes_rejected"):
        read(tmp_path, "voted", [{**rows[0], "votes_rejected": 5}])


# ── published files, where there is a folder of them ─────────────────────────────────────────────────────────────────

REAL = Path(os.environ.get("RLHF_DATA_REAL", "data-real")) / "preference"


@pytest.mark.skipif(not REAL.is_dir(), reason="RLHF_DATA_REAL names no folder of published sets")
@pytest.mark.parametrize(
    ("file", "rows", "rated"),
    [
        ("hh_harmless.jsonl.gz", 1679, {None: 1679}),
        ("hh_harmless_original_format.jsonl.gz", 1679, {None: 1679}),  # of 1690: 6 as above, 5 differ before the reply
        ("tulu1_human_graded.jsonl.gz", 579, {"better": 259, "slightly": 320}),
        ("pandalm_human3.jsonl.gz", 631, {"significantly": 543, "better": 19, "negligibly": 69}),
        ("oasst_ranked.jsonl.gz", 705, {None: 705}),
        ("judge_sets.jsonl.gz", 354, {None: 354}),
        ("qa_feedback.jsonl.gz", 2011, {None: 2011}),
        ("ukp_arguments.jsonl.gz", 11456,
         {"significantly": 2462, "better": 4210, "slightly": 2217, "negligibly": 2567}),
    ],
)  # fmt: skip
def test_published_files_are_read_whole(file, rows, rated):
    source = Source(name="real", path=str(REAL / file), on_bad_row="drop")
    pairs = load_preferences(source, say=print)
    assert len(pairs) == rows
    assert Counter(pair.rating for pair in pairs) == rated
