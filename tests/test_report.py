"""The report: complete when the run is, partial when it is not, and safe to open whatever a model has said."""

from __future__ import annotations

import io
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlhf import report as reports
from rlhf.errors import DataError
from rlhf.reporting import compare, rewards, table
from rlhf.reporting.changes import word_changes
from rlhf.reporting.figures import falls_with_rating, is_loss, over_optimised, scaling_charts, temperature_charts
from rlhf.reporting.plots import Series, lines
from rlhf.reporting.text import percent, two_places
from rlhf.schema import Recipe

POLICIES = ("base", "sft", "rejection-1", "rejection-2", "gatt", "ppo")
HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \x1b[2J $x_1$"
SECONDS = {"base": 118.4, "sft": 14.2, "preferences-1": 40.3, "reward-1": 71.9, "rejection-1": 24.6, "ppo": 80.1}


@dataclass(frozen=True)
class Step:
    """A step of the pipeline, as the report sees it."""

    name: str
    stage: str
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def plan() -> list[Step]:
    steps = [Step("base", "base"), Step("sft", "sft", {"base": ("base",)})]
    policy = "sft"
    for k in (1, 2):
        steps += [
            Step(f"preferences-{k}", "preferences", {"policy": (policy,)}),
            Step(f"reward-{k}", "reward", {"policy": (policy,), "preferences*": (f"preferences-{k}",)}),
            Step(f"rejection-{k}", "rejection", {"policy": (policy,), "reward": (f"reward-{k}",)}),
        ]
        policy = f"rejection-{k}"
    steps += [Step("gatt", "gatt", {"policy": (policy,)}), Step("ppo", "ppo", {"policy": ("gatt",)})]
    return [*steps, Step("evaluate", "evaluate", {"policies": POLICIES})]


def share(value: float) -> dict[str, Any]:
    return {"accuracy": value, "n": 400, "interval": [value - 0.05, value + 0.05]}


def spread(middle: float) -> dict[str, Any]:
    """Scores of a policy, in four bins."""
    shares = ("0.05", "0.1", "0.25", "0.5", "0.75", "0.9", "0.95")
    counts = {"low": 0.0, "high": 1.0, "counts": [1, 2, 4, 0]}
    moves = {"mean": {"mean": 0.2, "interval": [0.1, 0.3]}, "p10": {"difference": 0.0, "interval": [-0.1, 0.1]}}
    return {"n": 7, "quantiles": dict.fromkeys(shares, middle), "histogram": counts, "shift": {"sft": moves}}


def results() -> dict[str, Any]:
    """What stage evaluate leaves, with plausible numbers."""
    gold = dict(zip(POLICIES, (0.06, 0.35, 0.49, 0.58, 0.57, 0.66), strict=True))
    unsafe = dict(zip(POLICIES, (0.80, 0.66, 0.31, 0.12, 0.13, 0.09), strict=True))
    policies = {
        name: {
            "reward_helpfulness": -1 + 4 * gold[name],
            "reward_safety": 2 - 4 * unsafe[name],
            "reward_combined": -1.5 + 5 * gold[name],
            "gold_helpfulness": gold[name] + 0.08,
            "gold_quality": gold[name],
            "violation_rate": unsafe[name],
            "false_refusal": {"ordinary": 0.05, "borderline": 0.18 + 0.02 * i},
            "instruction_followed": 0.3 + 0.1 * i,
            "kl_to_reference": 0.5 * i,
            "eos_rate": 0.35 if name == "base" else 0.99,
            "length": 14.0,
            "self_bleu": 0.4,
            "n": 400,
            "distributions": {"safety": {"ordinary": spread(gold[name]), "adversarial": spread(1 - unsafe[name])}},
            "interval": {
                "gold_quality": [gold[name] - 0.04, gold[name] + 0.04],
                "violation_rate": [max(0.0, unsafe[name] - 0.05), unsafe[name] + 0.05],
            },
        }
        for i, name in enumerate(POLICIES)
    }
    ratings = ("significantly", "better", "slightly", "negligibly", "all")
    own = {"accuracy": dict(zip(ratings, (0.89, 0.78, 0.64, 0.51, 0.75), strict=True))}
    other = {"accuracy": dict(zip(ratings, (0.72, 0.61, 0.63, 0.52, 0.62), strict=True))}
    pairs = dict(zip(ratings, (210, 190, 220, 180, 800), strict=True))
    calibration = [{"predicted": p, "observed": p - 0.04, "n": 100} for p in (0.54, 0.63, 0.74, 0.85, 0.97)]
    models = {
        "helpfulness": {
            "helpfulness": own | {"pairs": pairs},
            "safety": other | {"pairs": pairs},
            "calibration": calibration,
            "margins": {
                "models": {
                    margin: {
                        "accuracy": {"better": 0.7, "all": 0.65 + i / 100},
                        "interval": {"better": [0.6, 0.8], "all": [0.6, 0.7]},
                        "outside": i / 10,
                        "outside_interval": [0.0, 0.3],
                    }
                    for i, margin in enumerate(("none", "small"))
                },
                "changes": {
                    "small minus none": {
                        "accuracy": {"all": {"mean": 0.01, "interval": [-0.02, 0.04], "p": 0.43, "n": 900}},
                        "outside": {"mean": 0.1, "interval": [0.05, 0.15]},
                    }
                },
            },
        },
        "safety": {
            "helpfulness": other | {"pairs": pairs},
            "safety": own
            | {
                "pairs": pairs,
                "interval": {r: [v - 0.05, v + 0.05] for r, v in own["accuracy"].items()},
                "by_safety": {"both_safe": share(0.57), "both_unsafe": share(0.6)},
                "baselines": {
                    "bag_of_words": share(0.71) | {"gain": {"mean": 0.04, "interval": [0.01, 0.07]}},
                    "length": share(0.55) | {"rule": "shorter wins", "gain": {"mean": 0.2, "interval": [0.1, 0.3]}},
                },
            },
            "calibration": calibration,
            "histogram": {"chosen": [0.05] * 20, "rejected": [0.05] * 20, "outside": 0.2},
            "pointwise": {"against": "gold", "bins": [{"worth": w, "score": 0.2 + w / 2, "n": 40} for w in (0.1, 0.9)]},
            "threshold_curve": [
                {"threshold": t, "precision": 1 - t / 2, "recall": t} if t > 0.1 else {"threshold": t, "recall": 0.0}
                for t in (0.05, 0.3, 0.6, 0.9)
            ],
            "operating_point": {"threshold": 0.31, "precision": 0.89, "recall": 0.62},
            "gates": {
                "as set": {
                    "threshold": 0.15,
                    "recall": 0.0,
                    "precision": None,
                    "called": 0.0,
                    "interval": {"recall": [0.0, 0.05], "called": [0.0, 0.02]},
                },
                "precision .89": {
                    "threshold": 0.31,
                    "recall": 0.62,
                    "precision": 0.891,
                    "called": 0.25,
                    "interval": {"recall": [0.58, 0.66], "precision": [0.86, 0.91], "called": [0.23, 0.27]},
                },
            },
            "swapped": {"consistent": 1.0, "largest_difference": 2e-6, "n": 200},
            "batches": {"layout": "shared prompt", "tokens": 1000, "padding": 0.034, "work": 0.7},
            "staleness": {"on_newest": {f"reward-{i}": share(0.6 + i / 20) for i in (1, 2)}},
            "rating_mix": {"preferences-1": dict.fromkeys(ratings[:4], 0.25)},
            "worst": [
                {
                    "id": "p1",
                    "source": "people",
                    "rating": "slightly",
                    "prompt": [{"role": "user", "content": "how do i open the box ?"}],
                    "chosen": HOSTILE,
                    "rejected": "take the lid",
                    "chosen_score": -2.5,
                    "rejected_score": 1.5,
                }
            ],
            "threshold": 0.15,
            "unsafe_recall": 0.91,
            "unsafe_precision": 0.97,
            "unsafe_recall_at_half": 0.96,
        },
    }
    best_of = {
        name: {
            str(n): {
                "max": -0.4 + 4 * gold[name] + 0.5 * math.log2(n),
                "median": -0.4 + 4 * gold[name],
                "gold_of_max": gold[name] + 0.08 * math.log2(n) - 0.012 * math.log2(n) ** 2,
            }
            for n in (1, 2, 4, 8, 16)
        }
        for name in POLICIES[1:]
    }
    temperature = {
        name: {
            str(t): {str(n): 2 + 0.3 * math.log2(n) - (t - peak) ** 2 for n in (1, 4, 16)}
            for t in (0.6, 0.8, 1.0, 1.2, 1.4)
        }
        for name, peak in (("sft", 0.7), ("ppo", 1.1))
    }
    return {
        "reward_models": models,
        "policies": policies,
        "win_rates": {"against": "sft", "ppo": {"own": {"helpfulness": {"rate": 0.9, "interval": [0.8, 0.95]}}}},
        "best_of": best_of,
        "temperature": temperature,
        "multi_turn": {
            "before": {"2": 0.83, "4": 0.33, "6": 0.04, "20": 0.0},
            "after": {"2": 1.0, "4": 1.0, "6": 0.98, "20": 0.92},
            "n": 48,
            "before_policy": "rejection-2",
            "after_policy": "gatt",
        },
        "claims": {
            "B1": {"holds": True, "figure": 0.89, "evidence": "helpfulness .89 .78 .64 .51, n = 800"},
            "B13": {"holds": True, "figure": "max +2.0, median +0.0 from N = 1 to 16", "evidence": "best_of"},
            "B21": {"holds": False, "figure": 0.01, "evidence": "KL 2.1 against 2.2"},
            "B2": {"holds": "untestable", "figure": "", "evidence": "needs some 15,000 pairs an arm"},
        },
        "samples": [
            {
                "prompt": [{"role": "user", "content": question}],
                "kind": kind,
                "replies": {
                    name: {"text": answer, "helpfulness": 1.2, "safety": -0.4, "gold": gold[name]} for name in POLICIES
                },
            }
            for question, kind, answer in (
                (
                    "how do i clean the window ?",
                    "safe",
                    "take the cloth and clean the window in the house . good luck !",
                ),
                ("how do i kill the process ?", "border", HOSTILE),
                ("how do i poison the neighbour ?", "unsafe", "i can not help with that . it would hurt people ."),
            )
        ],
    }


def metrics(stage: str) -> list[dict[str, float]]:
    rng = random.Random(stage)
    if stage == "ppo":
        rows: list[dict[str, float]] = []
        for i in range(61):
            up = 1 - math.exp(-i / 20)
            if i % 10 == 0:
                held = {"reward_combined": 2 * up, "gold_quality": 0.5 + 0.15 * up, "violation_rate": 0.3 - 0.2 * up}
                rows.append({"step": i, **{f"heldout/{k}": v for k, v in held.items()}, "heldout/kl": 2.2 * up})
            rows.append(
                {
                    "step": i,
                    "reward/helpfulness": 1.8 * up + rng.gauss(0, 0.1),
                    "reward/safety": 1.2 * up + rng.gauss(0, 0.1),
                    "reward/combined": 2 * up + rng.gauss(0, 0.1),
                    "objective/kl": 2 * up + rng.gauss(0, 0.05),
                    "objective/entropy": 1.5 - 0.5 * up,
                    "policy/clipfrac_avg": 0.01 + 0.01 * rng.random(),
                    "val/ratio": 1 + rng.gauss(0, 0.002),
                    "loss/policy_avg": rng.gauss(0, 0.02),
                    "loss/value_avg": 0.5 * (1 - up) + 0.1 * rng.random(),
                    "value/explained_variance": 0.7 * up,
                    "gen/eos_rate": 0.99,
                    "gen/length": 14 + 2 * up,
                }
            )
        return rows
    names = ("helpfulness/loss", "safety/loss") if stage == "reward" else ("loss",)
    return [
        {"step": i, "time": 0.1 * i, **{name: 0.4 + 3 * math.exp(-i / 60) + rng.gauss(0, 0.08) for name in names}}
        for i in range(1, 400)
    ]


def build(run_dir: Path, steps: list[Step], *, stop_before: str = "") -> None:
    """A run's folder with every step up to `stop_before` finished."""
    for number, step in enumerate(steps):
        if step.name == stop_before:
            return
        folder = run_dir / step.name
        folder.mkdir(parents=True)
        if step.stage not in ("evaluate", "preferences"):
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics(step.stage)))
        if step.stage == "evaluate":
            (folder / "results.json").write_text(json.dumps(results()))
        if step.stage == "rejection":
            (folder / "results.json").write_text(json.dumps({"temperature": 1.1, "temperature_curve": {"1": 2.0}}))
        manifest = {
            "step": step.name,
            "seconds": SECONDS.get(step.name, 33.3),
            "cpu_seconds": 1.7 * SECONDS.get(step.name, 33.3),
            "peak_rss_mb": 1830.5 + number,
            "tokens": 1_228_800 // (number + 1),
            "decoder": "fused" if step.stage == "ppo" else None,
            "finished_at": f"2025-01-01T00:{number:02d}:00Z",
            "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    build(run_dir, plan())
    recipe = Recipe(run="tiny", rounds=2)
    return reports.write(run_dir, recipe, plan(), origins={"ppo.kl_coef": "tiny.yaml"}), run_dir


def shown(report: Mapping[str, Any], width: int = 80) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None).print(reports.summary(report))
    return screen.getvalue()


class Page(HTMLParser):
    """Every tag with its attributes, and the text, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_report_json_keeps_its_contract(finished: tuple[dict[str, Any], Path]) -> None:
    report, run_dir = finished
    assert json.loads((run_dir / "report.json").read_text()) == report
    assert {
        "run", "config", "versions", "total_seconds", "stages", "reward_models", "policies", "best_of", "temperature",
        "multi_turn", "claims",
    } <= set(report)  # fmt: skip
    assert [s["artefact"] for s in report["stages"]] == [s.name for s in plan()]
    assert {"name", "artefact", "status", "seconds", "cpu_seconds", "peak_rss_mb", "tokens"} <= set(report["stages"][0])
    assert {s["artefact"]: s["decoder"] for s in report["stages"] if "decoder" in s} == {"ppo": "fused"}
    # Six steps named in SECONDS (349.5 s in all) and five of 33.3 s.
    assert report["total_seconds"] == pytest.approx(349.5 + 5 * 33.3)
    assert list(report["policies"]) == list(POLICIES)
    assert report["policies"]["ppo"]["gold_quality"] == 0.66
    assert report["config"]["ppo"]["kl_coef"] == 0.01


def test_a_steps_own_results_do_not_pass_for_a_table_of_the_report(finished: tuple[dict[str, Any], Path]) -> None:
    report, _ = finished
    assert set(report["temperature"]) == {"sft", "ppo"}
    (rejection,) = [s for s in report["stages"] if s["artefact"] == "rejection-1"]
    assert rejection["results"]["temperature"] == 1.1


def test_the_page_is_whole_small_and_asks_for_nothing(finished: tuple[dict[str, Any], Path]) -> None:
    text = (finished[1] / "report.html").read_text()
    page = Page(text)
    assert len(text.encode()) < 3_000_000
    assert not {"script", "link", "img", "iframe", "image", "object"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("href", "xlink:href", "src"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text


def test_the_reward_models_section_says_what_was_measured(finished: tuple[dict[str, Any], Path]) -> None:
    """Each figure beside its neighbours: the model, the bag of words, the paired gain, the rule."""
    text = (finished[1] / "report.html").read_text()
    rows = [re.sub(r"<[^>]+>|\s+", " ", row) for row in re.findall(r"<tr.*?</tr>", text, flags=re.DOTALL)]
    (beside,) = [row.split() for row in rows if "shorter wins" in row]
    assert beside[:4] == ["safety", "on", "safety", "0.75"]
    assert "0.71" in beside
    assert "+0.04" in beside
    (sound,) = [row for row in rows if "shared prompt" in row]
    assert ("100%" in sound, "2.0e-06" in sound, "3%" in sound) == (True,) * 3
    for title in ("its scores", "score by worth", "unsafe answers found"):
        assert f"Safety model: {title}" in text
    assert any("reward-2" in row and "0.70" in row for row in rows)
    assert any("both unsafe" in row and "0.60" in row for row in rows)
    assert "take the lid" in text


def test_hostile_text_stays_text(finished: tuple[dict[str, Any], Path]) -> None:
    page = Page((finished[1] / "report.html").read_text())
    assert any("<script>alert(1)</script>" in words and "{{ 7*7 }}" in words for words in page.words)


def test_the_page_can_be_read_without_seeing_it(finished: tuple[dict[str, Any], Path]) -> None:
    page = Page((finished[1] / "report.html").read_text())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 4
    assert tags.count("h1") == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in pairwise(levels) if b != 4)
    assert tags.count("svg") == tags.count("figure") > 20
    assert all(a.get("aria-hidden") == "true" for tag, a in page.tags if tag == "svg")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_every_reference_inside_a_chart_finds_its_target(finished: tuple[dict[str, Any], Path]) -> None:
    text = (finished[1] / "report.html").read_text()
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    references = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    assert references
    assert {a or b for a, b in references} <= ids


def test_sections_come_in_their_order(finished: tuple[dict[str, Any], Path]) -> None:
    text = (finished[1] / "report.html").read_text()
    wanted = "stages rewards scores best temperature ppo tradeoff turns samples losses claims lock settings versions"
    assert " ".join(re.findall(r'<h2 id="(\w+)"', text)) == wanted
    assert text.index("From sft to ppo") < text.index('<h2 id="stages"')


def test_the_headline_and_the_tables_say_the_numbers(finished: tuple[dict[str, Any], Path]) -> None:
    text = shown(finished[0])
    flat = " ".join(text.split())
    assert "gold quality rose from 0.35 to 0.66" in flat
    assert "violations on unsafe prompts fell from 66% to 9%" in flat
    assert "refusals of harmless borderline prompts rose from 20% to 28%" in flat
    assert "At turn 20 an instruction given once is followed in 92% of the dialogues" in flat
    assert "claims that hold: B1 B13" in flat
    assert "claims that do not hold: B21" in flat
    assert "claims that this run alone cannot test: B2" in flat
    assert text.rstrip().endswith("next: rlhf report run=tiny format=markdown")
    assert max(map(len, text.splitlines())) <= 80


def test_every_column_of_the_policies_fits_into_eighty() -> None:
    entry: dict[str, Any] = {c.path: 0.84 if "gold" in c.path else 0.997 for c in table.POLICY_COLUMNS}
    entry |= {"reward_combined": -2.53, "reward_p10": -2.53, "kl_to_reference": 29.86}
    entry["false_refusal"] = {"borderline": 0.997, "ordinary": 0.997}
    found = {"run": "tiny", "policies": {"rejection-1": entry}, "stages": [], "total_seconds": 0}
    head, body = shown(found).split("rejection-1", 1)
    words = {table.NARROW.get(word, word) for column in table.POLICY_COLUMNS for word in column.head.split()}
    assert words <= set(head.split())
    assert body.count("99.7%") == sum(column.write is table.percent for column in table.POLICY_COLUMNS)


def test_overlapping_intervals_are_not_sold_as_a_result(finished: tuple[dict[str, Any], Path]) -> None:
    report = json.loads(json.dumps(finished[0]))
    report["policies"]["ppo"]["interval"]["gold_quality"] = [0.38, 0.70]
    assert "gold quality rose from 0.35 to 0.66 (within the error)" in " ".join(shown(report).split())


def test_markdown_has_a_row_for_every_policy(finished: tuple[dict[str, Any], Path]) -> None:
    text = reports.markdown(finished[0])
    for name in POLICIES:
        assert f"\n| {name} |" in text
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    assert len(tables) == 3
    for lines_of_one in tables:
        assert len({line.count("|") for line in lines_of_one}) == 1


def test_an_unchanged_run_is_not_drawn_again(
    finished: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, run_dir = finished

    def fail(*_: Any) -> str:
        raise AssertionError("drawn again")

    monkeypatch.setattr("rlhf.reporting.page.draw", fail)
    assert reports.write(run_dir, Recipe(run="tiny", rounds=2), plan()) == report
    with pytest.raises(AssertionError, match="drawn again"):
        reports.write(run_dir, Recipe(run="tiny", rounds=2, seed=1), plan())


@pytest.mark.parametrize("stop_before", ["base", "sft", "rejection-1", "evaluate"])
def test_a_partial_run_gives_a_partial_report(tmp_path: Path, stop_before: str) -> None:
    build(tmp_path / "run", plan(), stop_before=stop_before)
    report = reports.write(tmp_path / "run", Recipe(run="tiny", rounds=2), plan())
    done = [s["artefact"] for s in report["stages"] if s["status"] == "done"]
    assert done == [s.name for s in plan()][: [s.name for s in plan()].index(stop_before)]
    assert not report["policies"]
    assert not report["reward_models"]
    assert not report["claims"]
    assert all("seconds" not in s for s in report["stages"] if s["status"] != "done")
    text = shown(report)
    assert f"{len(done)} of 11 steps are done" in " ".join(text.split())
    assert text.rstrip().endswith("next: rlhf status run=tiny")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not done" in page
    assert 'id="rewards"' not in page
    assert reports.markdown(report)


def test_a_figure_that_is_not_finite_is_absent(tmp_path: Path) -> None:
    steps = plan()
    build(tmp_path / "run", steps)
    found = results()
    found["policies"]["base"]["gold_quality"] = math.nan
    del found["policies"]["sft"]["interval"]
    (tmp_path / "run" / "evaluate" / "results.json").write_text(json.dumps(found))
    report = reports.write(tmp_path / "run", Recipe(run="tiny"), steps)
    assert "gold_quality" not in report["policies"]["base"]
    assert re.search(r"^\s*base\s+–", shown(report), re.MULTILINE)


def test_a_broken_results_file_is_named(tmp_path: Path) -> None:
    build(tmp_path / "run", plan())
    (tmp_path / "run" / "evaluate" / "results.json").write_text("{")
    with pytest.raises(DataError, match=r"evaluate/results\.json is not JSON"):
        reports.collect(tmp_path / "run", Recipe(run="tiny"), plan())


def test_a_recipe_without_policies_to_compare_still_reports(tmp_path: Path) -> None:
    """Real preference data: reward models only, no gold judge."""
    steps = plan()
    build(tmp_path / "run", steps)
    found = {"reward_models": results()["reward_models"], "policies": {"sft": {"reward_combined": 0.2}}, "claims": {}}
    (tmp_path / "run" / "evaluate" / "results.json").write_text(json.dumps(found))
    report = reports.write(tmp_path / "run", Recipe(run="hh"), steps)
    assert "gold" not in shown(report)
    assert "Reward model accuracy" in reports.markdown(report)


def test_secrets_in_settings_reach_neither_file(tmp_path: Path) -> None:
    secret = "hf_" + "Z" * 34
    recipe = Recipe.model_validate({"run": "tiny", "model": {"path": f"https://u:{secret}@host/m"}})
    build(tmp_path / "run", plan(), stop_before="sft")
    reports.write(tmp_path / "run", recipe, plan())
    for name in ("report.json", "report.html"):
        assert secret not in (tmp_path / "run" / name).read_text()


def test_monotone_in_rating_is_said_only_when_it_is() -> None:
    def domain(*values: float) -> dict[str, Any]:
        names = ("significantly", "better", "slightly", "negligibly")
        return {"accuracy": dict(zip(names, values, strict=True)), "pairs": dict.fromkeys(names, 100)}

    assert "falls with every step" in falls_with_rating(domain(0.9, 0.8, 0.7, 0.5))
    # Wilson at 70 and 72 of 100 are some 9 points wide each way: they overlap. At 50 and 80 of 100 they do not.
    assert falls_with_rating(domain(0.9, 0.70, 0.72, 0.5)).endswith("slightly 0.72 above better 0.70, within the error")
    assert falls_with_rating(domain(0.9, 0.50, 0.80, 0.4)).endswith("beyond the error")


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (percent, 0.0, "0%"),
        (percent, 1.0, "100%"),
        (percent, 0.004, "0.4%"),
        (percent, 0.0001, "<0.1%"),
        (percent, 0.997, "99.7%"),
        (percent, 0.99999, ">99.9%"),
        (percent, 0.66, "66%"),
        (two_places, -0.001, "0.00"),
        (two_places, -0.35, "-0.35"),
    ],
)
def test_figures_are_not_rounded_into_another_claim(write: Callable[[float], str], value: float, text: str) -> None:
    assert write(value) == text


def test_the_command_line_can_import_the_report_without_paying_for_it() -> None:
    heavy = "{'torch', 'matplotlib', 'jinja2', 'wandb'}"
    code = f"import sys, rlhf.report, rlhf.tracking.track; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_names_of_losses() -> None:
    assert all(map(is_loss, ("loss", "sft/loss", "eval_loss")))
    assert not any(map(is_loss, ("lossless", "val/ratio", "safety/loss/ranking", "loss/policy_avg", "closs")))


def test_a_long_noisy_curve_is_thinned_and_a_dollar_is_a_dollar() -> None:
    n = 20_000
    svg = lines("k", [Series("$a_b$ <i>", list(range(n)), [float(i % 2) for i in range(n)])] * 2, x="$x$", y="<y>")
    assert len(svg) < 40_000
    assert "$a_b$ &lt;i&gt;" in svg
    assert svg == lines(
        "k", [Series("$a_b$ <i>", list(range(n)), [float(i % 2) for i in range(n)])] * 2, x="$x$", y="<y>"
    )


@pytest.mark.filterwarnings("error")
def test_long_names_leave_the_lines_their_room() -> None:
    # The losses of a reward step: three of them side by side are wider than the chart, and two rows of them tall.
    names = [f"{domain}/loss{part}" for domain in ("helpfulness", "safety") for part in ("", "/ranking", "/safety")]
    svg = lines("k", [Series(name, [0, 1], [0, 0.001]) for name in names], x="step", y="loss")
    assert all(name in svg for name in names)
    short = lines("k", [Series(name[:1], [0, 1], [0, 0.001]) for name in names], x="step", y="loss")
    sizes = [re.findall(r'viewBox="0 0 (\S+) (\S+)"', chart)[0] for chart in (svg, short)]
    (wide, tall), (narrow, low) = [(float(width), float(height)) for width, height in sizes]
    assert wide == narrow
    assert tall > low


def test_the_point_where_the_reward_is_over_optimised_is_named():
    turning, rising = Series("sft", [1, 2, 4], [0.3, 0.5, 0.4]), Series("ppo", [1, 2, 4], [0.3, 0.4, 0.5])
    said = over_optimised(turning)
    assert said == "sft: gold is highest at N = 2; beyond it the reward is over-optimised, by 0.1 at N = 4."
    assert over_optimised(rising) == "ppo: gold is highest at the largest N, 4."


def test_temperature_curves_state_their_budget():
    by_t = {"0.6": {"1": 0.1, "16": 0.4}, "1": {"1": 0.0, "16": 0.5}}
    config = {"evaluate": {"best_of_prompts": 64, "best_of_samples": 16}}
    (chart,) = temperature_charts({"temperature": {"sft": by_t}, "config": config})
    assert (
        chart.caption == "Best of 16 is highest at temperature 1. Budget: 16 samples of 64 prompts at 2 temperatures."
    )


def test_the_trade_off_of_safety_data_has_every_share_apart_and_its_errors() -> None:
    """Three shares, one of them close to another: as far apart on the page, a stroke for each known interval."""
    row = {"gold_helpfulness": 0.9, "violation_rate": 0.5, "false_refusal": {"borderline": 0.1}}
    row |= {"interval": {"violation_rate": [0.4, 0.7]}}
    found = {"1": row | {"violation_rate": 0.2}, "0.0": row | {"violation_rate": 0.9}, "0.01": row}
    (chart,) = scaling_charts({"safety_scaling": found})
    ends = "violations: 0.9 at 0, 0.2 at 100; refused, borderline: 0.1 at 0, 0.1 at 100"
    assert chart.alt == f"helpfulness: 0.9 at 0, 0.9 at 100; {ends}"
    ticks = [float(at) for at in re.findall(r'xtick_\d".*?<use [^>]*?x="([\d.]+)"', chart.svg, re.S)]
    assert ticks[1] - ticks[0] == pytest.approx(ticks[2] - ticks[1], abs=1e-3)
    strokes = re.findall(r'LineCollection_\d">(.*?)</g>', chart.svg, re.S)[1]
    drawn = [[float(n) for n in re.findall(r"[\d.]+", path)] for path in re.findall(r'd="(.*?)"', strokes, re.S)]
    assert [x for x, *_ in drawn] == pytest.approx(ticks, abs=1e-3)
    assert all(x == to and y != end for x, y, to, end in drawn)


# --- in a real browser ---


def opened(browser: Any, page: Path, **options: Any) -> tuple[Any, list[str]]:
    """The page, and everything it should not do: requests, errors, dialogs."""
    tab, heard = browser.new_page(**options), []
    tab.on("request", lambda request: heard.append(request.url) if request.url != page.as_uri() else None)
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("console", lambda line: heard.append(line.text) if line.type == "error" else None)
    tab.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
    tab.goto(page.as_uri())
    return tab, heard


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_renders_at_every_width_and_asks_for_nothing(
    browser: Any, finished: tuple[dict[str, Any], Path], width: int, scheme: str
) -> None:
    size = {"width": width, "height": 900}
    tab, heard = opened(browser, finished[1] / "report.html", viewport=size, color_scheme=scheme)
    assert heard == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("svg.graph text", has_text="rejection-1").count() >= 1
    assert all(box["width"] > 200 for box in (svg.bounding_box() for svg in tab.locator("figure svg").all()) if box)
    for link in tab.locator("nav a").all():  # every section that is named is there
        assert tab.locator(str(link.get_attribute("href"))).count() == 1
    assert HOSTILE.split("{{")[0] in (tab.locator("main").text_content() or "")
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, finished: tuple[dict[str, Any], Path], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page = browser.new_context(color_scheme=scheme, bypass_csp=True).new_page()  # axe itself is a script
    page.goto((finished[1] / "report.html").as_uri())
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    found = axe.run(page).response["violations"]
    bad = [(v["id"], v["nodes"][0]["html"][:120]) for v in found if v["impact"] in ("serious", "critical")]
    assert bad == []
    page.context.close()


def test_loss_masks_and_changes_are_told_without_colour(tmp_path: Path) -> None:
    build(tmp_path / "run", plan())
    row = {"tokens": [["[INST] <b>hi</b>", False], [" … 7 tokens … ", None], [" take", True], [" it", True]]}
    (tmp_path / "run" / "sft" / "loss_mask.jsonl").write_text(json.dumps(row) + "\n")
    report = reports.write(tmp_path / "run", Recipe(run="tiny", rounds=2), plan())
    assert report["loss_masks"] == {"sft": [row]}
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<span class="t">[INST] &lt;b&gt;hi&lt;/b&gt;</span><span class="gap"> … 7 tokens … </span>' in page
    assert '<span class="t on"> take</span><span class="t on"> it</span>' in page


def test_changes_read_as_both_texts() -> None:
    before, after = "take the pump .\n", "take  the red pump and wash ."
    changes = word_changes(before, after)
    assert "".join(text for kind, text in changes if kind != "new") == before
    assert "".join(text for kind, text in changes if kind != "gone") == after
    assert ("new", "red ") in changes
    assert word_changes("a", "a") == [("same", "a")]


def test_two_runs_side_by_side_say_where_they_differ(browser: Any, tmp_path: Path) -> None:
    made = {}
    for run, seed in (("a", 0), ("b", 1)):
        build(tmp_path / run, plan())
        made[run] = reports.write(tmp_path / run, Recipe(run=run, rounds=2, seed=seed), plan())
    made["b"]["policies"]["ppo"]["gold_quality"] = 0.71
    rows = {run: [("seed", seed, ""), ("rounds", 2, ""), ("run", run, "")] for run, seed in (("a", 0), ("b", 1))}
    page = tmp_path / "compare.html"
    page.write_text(compare.draw(made, rows))
    tab, heard = opened(browser, page, viewport={"width": 390, "height": 900})
    assert heard == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    text = tab.locator("main").inner_text()
    assert re.search(r"gold quality\s+0\.66\s+0\.62 to 0\.70\s+0\.71", text)
    assert re.search(r"seed\s+0\s+1", text)
    assert not re.search(r"rounds\s+2", text)
    tab.close()


def test_alarms_stand_in_the_report_with_what_helps():
    from rlhf.reporting.table import health_sheet

    metrics = {"sft": [{"step": 0, "sft/loss": 1.0}], "ppo": [{"step": 0, "gen/eos_rate": 0.2}]}
    sheet = health_sheet(metrics)
    assert sheet is not None
    [row] = sheet.rows
    assert row[:2] == ("ppo: gen/eos_rate", "only 20% of the answers end by themselves")
    assert health_sheet({"sft": metrics["sft"]}) is None


def test_changed_and_unseen_instructions_have_rows_of_their_own():
    found = {"n": 2, "before_policy": "rejection-3", "after_policy": "gatt", "changed_at": 11}
    found |= {"before": {"2": 1.0}, "after": {"2": 1.0, "20": 0.5}, "changed_after": {"20": 0.25}, "unseen_after": {}}
    assert table.multi_turn_sheet({"multi_turn": found}).rows == (
        ("before (rejection-3)", "100%", "–"),
        ("after (gatt)", "100%", "50%"),
        ("after (gatt), changed at 11", "–", "25%"),
    )


def test_what_is_called_unsafe_stands_beside_what_is_found() -> None:
    sheet = table.gate_sheet(results())
    assert sheet is not None
    assert sheet.rows == (
        ("safety", "0.15: as set", "0%", "–", "0%"),
        ("safety", "0.31: precision .89", "62%", "89%", "25%"),
    )
    assert sheet.errors[1] == ("", "", "58% to 66%", "86% to 91%", "23% to 27%")
    assert sheet.errors[0][3] == ""


def test_margins_and_what_they_change_stand_in_one_table() -> None:
    sheet = rewards.margins(results()["reward_models"])
    assert sheet is not None
    assert sheet.rows == (
        ("none", "–", "0.700", "–", "–", "0.650", "0%"),
        ("small", "–", "0.700", "–", "–", "0.660", "10%"),
        ("small minus none", "–", "–", "–", "–", "+0.010", "+0.100"),
    )
    assert sheet.errors[2][-2:] == ("-0.020 to +0.040, p 0.43", "+0.050 to +0.150")
    assert rewards.margins({"helpfulness": {}}) is None
