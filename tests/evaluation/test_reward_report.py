"""The report on a pair of real, small reward models: whole, and by hand where a number can be."""

import copy
import json

import pytest
import torch

from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.data.types import Preference, Turn, rating_mix
from rlhf.evaluation import reward_report
from rlhf.evaluation.reward_report import examine, matched, rating_drift, score_pairs, staleness, swapped
from rlhf.models.reward_models import RewardModels
from rlhf.models.score import score


def pair(i, rating="better", safe=(None, None), source="people"):
    words = ("take the key", "open the door", "good luck", "in the house")
    chosen, rejected = f"{words[i % 4]} {i} .", f"{words[(i + 1) % 4]} {i} {i} !"
    return Preference(f"p{i}", (Turn("user", f"how {i} ?"),), chosen, rejected, source, rating, *safe, is_safety=False)


def scores(*values):
    return torch.tensor(values)


def test_sides_that_are_exchanged_are_read_each_by_itself(models, tokenizer):
    """In one row with its pair, or in a batch with others, a score that knew of them would stay the same."""
    rows, read = [pair(i, "negligibly") for i in range(6)], []
    gap = torch.sub(*score_pairs(models.safety, tokenizer, rows, context=128))
    hook = models.safety.model.embed_tokens.register_forward_pre_hook(lambda _, args: read.append(args[0].shape))
    assert swapped(models.safety, tokenizer, rows, gap, context=128)["consistent"] == 1
    hook.remove()
    whole = {
        (*encode_prompt(tokenizer, row.prompt), *encode_completion(tokenizer, side))
        for row in rows
        for side in (row.chosen, row.rejected)
    }
    assert sorted(tuple(shape) for shape in read) == sorted((1, len(row)) for row in whole)


@pytest.fixture
def models(reward_model, tokenizer):
    safety = copy.deepcopy(reward_model)
    with torch.no_grad():
        safety.score.weight.copy_(safety.score.weight.roll(1))
    return RewardModels(reward_model, safety, tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_the_whole_report_is_json_and_covers_both_domains(models, tokenizer):
    bins = [(True, False), (True, True), (False, False)]
    test = {
        "helpfulness": [pair(i, ("significantly", "negligibly")[i % 2], source=f"s{i % 2}") for i in range(12)],
        "safety": [pair(i, None, bins[i % 3]) for i in range(30)],
    }
    found = examine(models, tokenizer, trained_on=dict(test), test=test, threshold=0.15, context=128)
    json.dumps(found, allow_nan=False)
    for name in ("helpfulness", "safety"):
        assert found[name]["helpfulness"]["pairs"] == {"significantly": 6, "negligibly": 6, "all": 12}
        assert found[name]["safety"]["pairs"] == {"all": 30}
        assert {row["n"] for row in found[name][name]["baselines"].values()} == {len(test[name])}
        swapped = found[name]["swapped"]
        assert (swapped["consistent"], swapped["n"]) == (1.0, len(test[name]))
        assert swapped["largest_difference"] < 1e-4
        (other,) = {"safety", "helpfulness"} - {name}
        own, others = (found[model][name]["accuracy"]["all"] for model in (name, other))
        assert found[name][name]["gain_over_other"]["mean"] == pytest.approx(own - others)
        assert found[name]["worst"][0]["chosen_score"] < found[name]["worst"][0]["rejected_score"]
    assert set(found["helpfulness"]["helpfulness"]["by_source"]) == {"s0", "s1"}
    assert set(found["safety"]["safety"]["by_safety"]) == {"safe_over_unsafe", "both_safe", "both_unsafe"}
    assert found["safety"]["unsafe"] == 30  # one, none and two of every three pairs
    assert found["safety"]["tension"]["n"] == 10
    assert found["safety"]["pointwise"]["against"] == "safety label"
    assert "unsafe" not in found["helpfulness"]
    assert "pointwise" not in found["helpfulness"]  # neither gold nor labels


def test_scores_of_pairs_stay_with_their_pairs(models, tokenizer):
    rows = [pair(i) for i in range(5)]
    chosen, rejected = score_pairs(models.helpfulness, tokenizer, rows, context=128)
    for i, row in enumerate(rows):
        alone = score_pairs(models.helpfulness, tokenizer, [row], context=128)
        assert (chosen[i].item(), rejected[i].item()) == pytest.approx((alone[0].item(), alone[1].item()), abs=1e-4)


def test_more_pairs_than_are_held_as_ids_at_a_time_are_scored_alike(models, tokenizer, monkeypatch):
    rows = [pair(i) for i in range(5)]
    together = score_pairs(models.helpfulness, tokenizer, rows, context=128)
    monkeypatch.setattr(reward_report, "TOGETHER", 2)
    for one, other in zip(score_pairs(models.helpfulness, tokenizer, rows, context=128), together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_of_a_pair_longer_than_the_context_what_was_trained_on_is_scored(models, tokenizer):
    """The start of its prompt is cut behind BOS, as `data.too_long: truncate_left` cuts it for training."""
    row = pair(0)
    prompt = encode_prompt(tokenizer, row.prompt)
    answers = [encode_completion(tokenizer, text) for text in (row.chosen, row.rejected)]
    context = len(prompt) - 2 + max(map(len, answers))
    cut = [prompt[0], *prompt[3:]]
    wanted = score(models.helpfulness, [cut + answer for answer in answers], pad_token_id=tokenizer.pad_token_id)
    found = score_pairs(models.helpfulness, tokenizer, [row], context=context)
    torch.testing.assert_close(torch.cat(found), wanted)


def test_staleness_by_hand():
    rows = [pair(i, rating) for i, rating in enumerate(("better", "better", "slightly", "slightly"))]
    by_round = {
        "reward-1": (scores(1.0, 1.0, 1.0, 1.0), scores(2.0, 2.0, 2.0, 2.0)),
        "reward-2": (scores(1.0, 0.0, 0.0, 0.0), scores(0.0, 1.0, 1.0, 1.0)),
        "reward-3": (scores(1.0, 1.0, 1.0, 0.0), scores(0.0, 0.0, 0.0, 1.0)),
    }
    own_rows = [pair(0, "better"), pair(1, "slightly"), pair(2, "slightly"), pair(3, "slightly"), pair(4, "slightly")]
    own = (scores(1.0, 1.0, 0.0, 0.0, 0.0), scores(0.0, 0.0, 1.0, 1.0, 1.0)), own_rows
    found = staleness(by_round, rows, own=own)
    assert [row["accuracy"] for row in found["on_newest"].values()] == [0.0, 0.25, 0.75]
    assert found["refreshing_gains"]["mean"] == 0.5  # of the last over the one before it
    # Its own round: better 1/1, slightly 1/4, 2/5 in all; with halves of each, as in the newest pairs, 1/2 + 1/8.
    assert found["on_its_own"]["accuracy"] == pytest.approx(0.4)
    assert found["on_its_own"]["matched"] == 0.625
    # Lost: .625 - .25. Variances: (1/2)^2 1 0 / 1 + (1/2)^2 (1/4) (3/4) / 4 = .01172, and .25 .75 / 4 = .04688.
    assert found["lost"]["mean"] == 0.375
    assert found["lost"]["interval"] == pytest.approx((0.375 - 1.96 * 0.24206, 0.375 + 1.96 * 0.24206), abs=1e-4)


def test_nothing_is_matched_to_a_rating_that_was_not_given():
    rows = [pair(0, "better"), pair(1, "slightly")]
    assert rating_mix([*rows, pair(2, None)]) == {"significantly": 0, "better": 0.5, "slightly": 0.5, "negligibly": 0}
    assert matched({"accuracy": {"better": 0.7, "all": 0.7}, "pairs": {"better": 9}}, rows) is None
    assert matched({"accuracy": {"better": 0.7}, "pairs": {"better": 9}}, [pair(0, None)]) is None


def test_drift_of_the_ratings_by_hand():
    first, last = ([pair(0, rating) for rating in row] for row in (["better"] * 4, ["better", "slightly"] * 2))
    found = rating_drift([*first, pair(9, None)], last)
    assert found["negligibly"] == {"mean": 0.0, "interval": (0.0, 0.0)}
    # From 4 of 4 to 2 of 4: s^2 = 1/3 of the latter, 1.96 sqrt(1/3 / 4) = .5658.
    assert found["better"]["mean"] == -0.5
    assert found["better"]["interval"] == pytest.approx((-1.0658, 0.0658), abs=5e-5)
    assert rating_drift([pair(0, None)], last) == {}
