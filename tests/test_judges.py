"""The report's section on scores: shapes as high as their counts, and words that say only what was tested."""

import re
from dataclasses import replace

import pytest

from rlhf.reporting import judges
from rlhf.reporting.plots import Shape, ridges

UP, DOWN, SAME = (0.1, 0.3), (-0.3, -0.1), (-0.1, 0.3)


def row(mean=None, p10=None, **shifts):
    """A distribution over four bins; `shifts` are those from other policies than sft."""
    quantiles = {"0.05": 0.1, "0.1": 0.2, "0.25": 0.3, "0.5": 0.4, "0.75": 0.5, "0.9": 0.6, "0.95": 0.7}
    moves = {"sft": (mean, p10)} if mean else {}
    shift = {
        name: {
            "mean": {"mean": sum(a) / 2, "interval": list(a)},
            "p10": {"difference": sum(b) / 2, "interval": list(b)},
        }
        for name, (a, b) in (moves | shifts).items()
    }
    counts = {"low": 0.0, "high": 1.0, "counts": [1, 2, 4, 0]}
    return {"n": 7, "mean": 0.4, "quantiles": quantiles, "histogram": counts, "shift": shift}


def report(**policies):
    return {"policies": {name.replace("_", "-"): {"distributions": found} for name, found in policies.items()}}


def caption(found, at=0):
    return judges.charts(found)[0][at].caption


def test_a_row_of_charts_for_ordinary_and_one_for_adversarial_prompts():
    both = {"ordinary": row(), "adversarial": row()}
    found = report(
        sft={"helpfulness": both, "safety": both, "gold": both}, ppo={"helpfulness": {"ordinary": row(UP, UP)}}
    )
    ordinary, adversarial = judges.charts(found)
    assert [c.title for c in ordinary] == [
        f"{j}, ordinary prompts" for j in ("Helpfulness model", "Safety model", "Gold")
    ]
    assert len(adversarial) == 3
    assert ordinary[0].alt == "sft: median 0.40, worst tenth 0.20; ppo: median 0.40, worst tenth 0.20"
    sheets = judges.sheets(found)
    assert sheets[0].head == ("policy", "n", "5%", "10%", "25%", "50%", "75%", "90%", "95%")
    assert sheets[0].rows[1] == ("ppo", "7", "0.10", "0.20", "0.30", "0.40", "0.50", "0.60", "0.70")
    assert judges.charts({"policies": {"sft": {}}}) == [[], []]


@pytest.mark.parametrize(
    ("mean", "p10", "said"),
    [
        (UP, UP, "the mean rises by 0.20 (0.10 to 0.30), the worst tenth rises by 0.20 (0.10 to 0.30)."),
        (DOWN, SAME, "the mean falls by 0.20 (0.10 to 0.30), the worst tenth stays within the error (-0.10 to 0.30)."),
    ],
)
def test_the_newest_policy_is_held_against_the_first_tuned_one(mean, p10, said):
    assert caption(report(sft={"safety": {"ordinary": row()}}, ppo={"safety": {"ordinary": row(mean, p10)}})) == (
        f"From sft to ppo {said}"
    )


@pytest.mark.parametrize(("mean", "p10", "named"), [(UP, DOWN, 1), (DOWN, SAME, 1), (SAME, SAME, 0), (UP, UP, 0)])
def test_a_step_is_named_if_its_mean_or_its_worst_tenth_falls_beyond_the_error(mean, p10, named):
    policies = {
        "gatt": {"safety": {"ordinary": row(UP, UP)}},
        "ppo": {"safety": {"ordinary": row(UP, UP, gatt=(mean, p10))}},
    }
    said = caption(report(sft={"safety": {"ordinary": row()}}, **policies))
    assert said.startswith("From sft to ppo the mean rises")
    assert said.count("From gatt to ppo the mean") == said.count("From") - 1 == named


@pytest.mark.parametrize(("ours", "gold", "named"), [(UP, DOWN, 1), (UP, SAME, 0), (SAME, DOWN, 0)])
def test_a_reward_that_rises_while_gold_falls_is_named_only_beyond_the_error(ours, gold, named):
    both = {"helpfulness": ours, "safety": ours, "gold": gold}
    made = {judge: {"ordinary": row(mean, UP)} for judge, mean in both.items()}
    found = report(sft={judge: {"ordinary": row()} for judge in made}, ppo=made)
    drift = "From sft to ppo this score rises and gold falls by 0.20 (0.10 to 0.30)."
    # On ordinary prompts the safety model's score is not the reward, and gold is none anywhere.
    assert [caption(found, at=at).count(drift) for at in range(3)] == [named, 0, 0]


def test_heights_are_the_counts_and_marks_the_quantiles():
    shapes = [
        Shape(name, (0, 0.5, 1), counts, (0, 0.25, 0.5, 0.75, 1)) for name, counts in (("a", (1, 4)), ("b", (3, 0)))
    ]
    svg = ridges("k", shapes, x="score")
    outlines = [
        [tuple(map(float, at)) for at in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
        for path in re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: var\(--s0', svg)
    ]
    a, b = outlines
    base = max(y for _, y in a)
    heights = sorted({round(base - y, 3) for _, y in a})
    assert heights[0] == 0
    assert heights[1] / heights[2] == pytest.approx(1 / 4, abs=0.01)
    assert max(y for _, y in b) - min(y for _, y in b) == pytest.approx(heights[2], abs=0.01)
    left, right = min(x for x, _ in a), max(x for x, _ in a)
    strokes = re.findall(
        r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"[^>]*stroke: var\(--s1[^>]*stroke-width: 2.8', svg
    )
    assert [tuple(map(float, ends)) for ends in strokes] == [
        pytest.approx((left + (right - left) / 4, right - (right - left) / 4), abs=0.01)
    ] * 2
    assert "a-name-of…han-twenty" in ridges("k", [replace(shapes[0], name="a-name-of-more-than-twenty")], x="score")


def test_wins_stand_by_judge_and_prompts():
    cell = {"rate": 0.834, "tied": 0.1, "n": 300, "interval": [0.8, 0.86]}
    found = {
        "against": "sft",
        "ppo": {"own": {"helpfulness": cell, "harmlessness": cell}, "judge": {"helpfulness": cell}},
    }
    sheet = judges.wins({"win_rates": found})
    assert sheet is not None
    assert sheet.title == "Wins against sft"
    assert sheet.head == ("policy", "own models, ordinary", "own models, adversarial", "judge, ordinary")
    assert sheet.rows == (("ppo", "83%", "83%", "83%"),)
    assert sheet.errors[0][1] == "80% to 86%"
    assert judges.wins({"win_rates": {}}) is None
