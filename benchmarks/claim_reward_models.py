"""Claims B2, B3, B5, B6 and B7: reward models trained otherwise, on the pairs of a finished run.

    rlhf run                                                       # once: base, sft and the pairs come from it
    python benchmarks/claim_reward_models.py runs/tiny             # or: make reward-claims
    python benchmarks/claim_reward_models.py runs/tiny --claims margin --seeds 0 1 2 3 4

Every arm differs from the run's own settings in one thing. The seeds draw the order of the pairs; all arms of a seed
are measured on the same held-out pairs, so that differences are paired: per pair the mean over seeds, then its 95%
interval over pairs. A verdict is of this run's base and pairs; it says nothing of other bases.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from rlhf.data.types import RATINGS, Preference
from rlhf.evaluation.intervals import of_mean
from rlhf.evaluation.pairs import SAFETY_BINS, right
from rlhf.evaluation.reward_report import score_pairs
from rlhf.evaluation.scores import at_threshold, histogram, labelled_scores
from rlhf.models.load import freeze, load_tokenizer
from rlhf.pipeline import Job, derive_seed, expand
from rlhf.schema import Recipe
from rlhf.tracking.track import Tracker
from stages import reward

MARGINS = ("none", "small", "large")
AMOUNTS = (0.25, 0.5, 1.0)
Scores = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--claims", nargs="+", default=list(CLAIMS), choices=list(CLAIMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, help="train on at most so many pairs an arm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, Tracker(Path(folder), run="claims", step="reward") as track:
        arms = Arms(job_of(options.run, Path(folder), track), options.seeds, options.pairs)
        for name in options.claims:
            for claim, held, figure in CLAIMS[name](arms):
                print(f"{claim}: {'holds' if held else 'does not hold'}; {figure}", flush=True)


def job_of(run: Path, out: Path, track: Tracker) -> Job:
    """The run's first step that trains reward models, to be done again."""
    recipe = Recipe.model_validate(json.loads((run / "report.json").read_text(encoding="utf-8"))["config"])
    step = next(step for step in expand(recipe) if step.stage == "reward")
    reads = {token: tuple(run / name for name in names) for token, names in step.reads.items()}
    return Job(step.name, step.round, recipe, recipe.reward, derive_seed(recipe.seed, step.name), reads, out, track)


class Arms:
    """Models trained under changed settings, and their scores of the held-out pairs of their own domain."""

    def __init__(self, job: Job, seeds: Sequence[int], most: int | None) -> None:
        self.job, self.seeds, self.most = job, seeds, most
        self.train, self.test = reward.gather(job)
        self.tokenizer = load_tokenizer(job.one("policy") / "checkpoint")

    def scores(self, domain: str, *, share: float = 1.0, **settings: Any) -> list[Scores]:
        """For each seed the scores of chosen and rejected; `share` of the pairs is trained on."""
        job = replace(self.job, config=self.job.config.model_copy(update=settings))
        found = []
        for seed in self.seeds:
            rows = reward.mixtures(replace(job, seed=seed), self.train)[domain].rows[: self.most]
            pairs = reward.encode(job, self.tokenizer, rows[: round(share * len(rows))])
            model, _ = reward.fit(job, domain, pairs, self.tokenizer, seed=seed)
            found.append(score_pairs(freeze(model), self.tokenizer, self.test[domain]))
        return found


def margins(arms: Arms) -> list[tuple[str, bool, str]]:
    """B2 and B3: Tables 27 and 28, Fig 27."""
    scored = {name: arms.scores("helpfulness", margin=name) for name in MARGINS}
    rows = arms.test["helpfulness"]
    gains = {
        (name, rating): gain(scored[name], scored["none"], [row.rating == rating for row in rows])
        for name in MARGINS[1:]
        for rating in RATINGS
    }
    figure = "; ".join(f"{name} on {rating} {shown(found)}" for (name, rating), found in gains.items())
    held = all(gains[name, "significantly"][1][0] > 0 for name in MARGINS[1:])
    outside = {name: [histogram(*one)["outside"] for one in scored[name]] for name in MARGINS}
    rises = all(a < b < c for a, b, c in zip(*outside.values(), strict=True))
    shares = "; ".join(f"{name} {', '.join(f'{v:.3f}' for v in values)}" for name, values in outside.items())
    return [
        ("B2", held, f"accuracy over no margin: {figure}"),
        ("B3", rises, f"share of scores outside 0.1 to 0.9, by seed: {shares}"),
    ]


def safety_loss(arms: Arms) -> list[tuple[str, bool, str]]:
    """B5: Table 29."""
    rows = arms.test["safety"]
    without, with_it = (
        arms.scores("safety", safety_loss_coef=coef) for coef in (0.0, arms.job.config.safety_loss_coef)
    )
    recalls = [[recall(rows, one) for one in side] for side in (without, with_it)]
    bins = {name: gain(with_it, without, in_bin(rows, labels)) for labels, name in SAFETY_BINS.items()}
    rises = all(b > a for a, b in zip(*recalls, strict=True))
    held = rises and all(ends[1] > 0 for _, ends in bins.values())  # no bin is worse beyond the error
    before, after = (", ".join(f"{v:.3f}" for v in side) for side in recalls)
    figure = "; ".join(f"{name} {shown(found)}" for name, found in bins.items())
    return [("B5", held, f"unsafe recall at 0.5 by seed: {before} without, {after} with it; accuracy {figure}")]


def helpfulness_tenth(arms: Arms) -> list[tuple[str, bool, str]]:
    """B6: 3.2.2."""
    scored = [arms.scores("safety", safety_share=share) for share in (0.9, 1.0)]
    found = gain(*scored, in_bin(arms.test["safety"], (True, True)))
    return [("B6", found[1][0] > 0, f"accuracy where both are safe, 90/10 over safety pairs alone: {shown(found)}")]


def amount(arms: Arms) -> list[tuple[str, bool, str]]:
    """B7, data only: one size of model is not enough for the other half of Fig 6."""
    every = [True] * len(arms.test["helpfulness"])
    scored = {share: arms.scores("helpfulness", share=share) for share in AMOUNTS}
    steps = {(a, b): gain(scored[b], scored[a], every) for a, b in pairwise(AMOUNTS)}
    figure = "; ".join(f"{a:g} to {b:g}: {shown(found)}" for (a, b), found in steps.items())
    held = all(found[1][0] > 0 for found in steps.values())
    return [("B7", held, f"accuracy by share of the pairs (model size untested): {figure}")]


CLAIMS = {"margin": margins, "safety_loss": safety_loss, "helpfulness_tenth": helpfulness_tenth, "amount": amount}


def gain(one: list[Scores], other: list[Scores], where: list[bool]) -> tuple[float, tuple[float, float], int]:
    """How much more often `one` is right: mean over seeds for each pair, then mean, interval and count over pairs."""
    rights = [torch.stack([right(chosen - rejected) for chosen, rejected in side]).mean(0) for side in (one, other)]
    values = (rights[0] - rights[1])[torch.tensor(where)].tolist()
    if not values:
        return 0.0, (0.0, 0.0), 0
    return sum(values) / len(values), of_mean(values), len(values)


def in_bin(rows: list[Preference], labels: tuple[bool, bool]) -> list[bool]:
    return [(row.chosen_safe, row.rejected_safe) == labels for row in rows]


def recall(rows: list[Preference], scores: Scores) -> float:
    return float(at_threshold(*labelled_scores(rows, *scores), 0.5)["recall"])


def shown(found: tuple[float, tuple[float, float], int]) -> str:
    mean, (low, high), n = found
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f}, n={n})"


if __name__ == "__main__":
    main()
