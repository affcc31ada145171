"""Reward models: a helpfulness model and a safety model on graded pairs, with a margin by rating (3.2.2)."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlhf.data import feed, formats, mixing
from rlhf.data.fit import Fit, ids_of
from rlhf.data.spool import Rows, Spool
from rlhf.data.types import DOMAINS, Domain, Preference, write_jsonl
from rlhf.errors import DataError
from rlhf.evaluation import margins
from rlhf.evaluation.baselines import MOST_PAIRS
from rlhf.evaluation.reward_report import examine, scores_of
from rlhf.functional.margin import margin_of
from rlhf.models.load import load_tokenizer, reward_model_from_policy, save
from rlhf.models.pair_batches import Batching, Pair
from rlhf.models.reward_models import RewardModels
from rlhf.pipeline import Job
from rlhf.processes import once
from rlhf.training.trainers import Schedule, fit_reward, steps_of, warmup_steps

PAIRS = "pairs"
"""All of them, as they were read; beside them, under the name of its margin, those to train on, as ids."""


def run(job: Job) -> None:
    """Leave `checkpoint/helpfulness`, `checkpoint/safety`, the held-out pairs `<domain>.test.jsonl`, and what both
    models come to on them: `results.json`, which rejection sampling, Ghost Attention and PPO ask before they start."""
    tokenizer = load_tokenizer(job.one("policy") / "checkpoint")
    # All pairs are read before any model is loaded: a bad row should not cost the training of the first model.
    classes = {PAIRS: Preference, job.config.margin: Pair, **dict.fromkeys(job.config.other_margins, Pair)}
    spools = once.filled(job.out.parent / job.name, classes, lambda spools: prepare(job, tokenizer, spools))
    train, test = sides(spools[PAIRS])
    rows = train["helpfulness"] + train["safety"]
    pairs = spools[job.config.margin]
    places = pairs.lists["places"]
    border = bisect_left(places, len(train["helpfulness"]))
    mixed = mixtures(job, range(border), range(border, len(pairs)))
    batches: dict[str, Batching] = {}
    for domain in DOMAINS:
        write_jsonl(job.out / f"{domain}.test.jsonl", test[domain])
        job.track.say(f"{domain} model: {mixed[domain].counts}")
        batches[domain] = fit(job, domain, domain, Rows(pairs, mixed[domain].rows), tokenizer)
    for margin in job.config.other_margins:  # the same pairs in the same order, from the same weights
        fit(job, model_of(job, margin), "helpfulness", Rows(spools[margin], mixed["helpfulness"].rows), tokenizer)
    first = {domain: (places[pair] for pair in mixed[domain].rows[:MOST_PAIRS]) for domain in DOMAINS}
    found = report(job, {domain: list(Rows(rows, first[domain])) for domain in DOMAINS}, test)
    job.write_results({"reward_models": {name: found[name] | {"batches": asdict(batches[name])} for name in DOMAINS}})


def model_of(job: Job, margin: str) -> str:
    """The name of the helpfulness model with a margin."""
    return "helpfulness" if margin == job.config.margin else f"helpfulness-{margin}"


def fit(job: Job, name: str, domain: Domain, pairs: Sequence[Pair], tokenizer: Any) -> Batching:
    """Leave `checkpoint/<name>`: one model, from the policy, by the paper's schedule."""
    config = job.config
    model = reward_model_from_policy(job.one("policy") / "checkpoint", job.recipe.model)
    total = steps_of(len(pairs), batch_size=config.batch_size, epochs=config.epochs)
    schedule = Schedule(
        learning_rate=config.learning_rate,
        final_lr_ratio=config.final_lr_ratio,
        batch_size=config.batch_size,
        warmup_steps=warmup_steps(total, ratio=config.warmup_ratio, least=config.warmup_min_steps),
        epochs=config.epochs,
    )
    batching = fit_reward(
        model,
        tokenizer,
        pairs,
        schedule,
        config,
        safety_loss_coef=config.safety_loss_coef if domain == "safety" else 0.0,  # Table 29
        center_coef=config.center_coef,
        seed=job.seed_of(domain),
        track=job.track,
        saves=job.saves,
        what=name,
    )
    if not job.saves.passed(name):  # else a killed run had finished this model and left it here
        save(model, tokenizer, job.out / "checkpoint" / name)
    waste, work = f"{batching.padding:.1%} of the tokens were padding", f"{batching.work:.2f} of the work of two"
    job.track.say(f"{name} model: {batching.layout} a pair ({work}); {waste}")
    return batching


def report(job: Job, trained_on: Mapping[str, Sequence[Preference]], test: Mapping[Domain, Rows[Preference]]) -> Any:
    """Measure the models as they were saved."""
    tokenizer = load_tokenizer(job.out / "checkpoint" / "helpfulness")
    models = RewardModels.load(job.out, job.recipe.model, reads=tokenizer)
    found = examine(
        models,
        tokenizer,
        trained_on=trained_on,
        test={domain: list(rows) for domain, rows in test.items()},
        threshold=job.config.safety_threshold,
        context=job.recipe.model.max_length,
    )
    for name, entry in found.items():
        own = entry.get(name, {}).get("accuracy", {})
        job.track.log({f"{name}/heldout/{rating}": accuracy for rating, accuracy in own.items()}, step=0)
        for domain in (domain for domain in DOMAINS if domain in entry):
            words = entry[domain].get("baselines", {}).get("bag_of_words")
            beside = f"; a bag of words: {words['accuracy']:.1%}" if words else ""
            accuracy, n = entry[domain]["accuracy"]["all"], entry[domain]["pairs"]["all"]
            job.track.say(f"{name} model on {domain} pairs: {accuracy:.1%} of {n:,}{beside}")
    if job.config.margin_ablation and test["helpfulness"]:
        found["helpfulness"]["margins"] = by_margin(job, tokenizer, list(test["helpfulness"]))
    return found


def by_margin(job: Job, tokenizer: Any, rows: Sequence[Preference]) -> dict[str, Any]:
    """The helpfulness models of all margins on the same held-out pairs."""
    scores = {}
    for margin in job.config.margin_ablation:
        place = job.out / "checkpoint" / model_of(job, margin)
        scores[margin] = scores_of(place, job.recipe.model, tokenizer, rows)
    found = margins.compare(rows, scores)
    for name, change in found["changes"].items():
        gain = change["accuracy"]["all"]
        job.track.say(f"margin {name}: {gain['mean']:+.1%} of {gain['n']:,} pairs right, p {gain['p']:.2f}")
    return found


def prepare(job: Job, tokenizer: Any, spools: Mapping[str, Spool[Any]]) -> None:
    """Put the pairs on disk, and those to train on as ids, by every margin."""
    gather(job, tokenizer, spools[PAIRS])
    train, _ = sides(spools[PAIRS])
    for margin in (*job.config.other_margins, job.config.margin):
        encode(job, tokenizer, train["helpfulness"] + train["safety"], margin, spools[margin])


def sides(spool: Spool[Preference]) -> tuple[dict[Domain, Rows[Preference]], dict[Domain, Rows[Preference]]]:
    """Pairs by domain, to train on and held out."""
    train, test = (
        {domain: Rows(spool, spool.lists.get(f"{domain}.{use}", ())) for domain in DOMAINS} for use in ("train", "test")
    )
    return train, test


def gather(job: Job, tokenizer: Any, spool: Spool[Preference]) -> None:
    """Pairs of every round so far, and of public sets, and which of them are on which side."""
    train, test = sides(spool)
    for artefact in job.every("preferences*"):
        for name, rows in (("train", train), ("test", test)):
            for domain in DOMAINS:
                stored = feed.each_stored(artefact / f"{domain}.{name}.jsonl", Preference)
                rows[domain] += Rows(spool, map(spool.append, stored))
    public = feed.preferences(
        job.config.data,
        test_share=job.recipe.data.test_share,
        say=job.track.say,
        parse=formats.preference_read_by(tokenizer),
        spool=spool,
    )
    for domain in DOMAINS:
        train[domain] += public[domain].train
        test[domain] = fitting(job, tokenizer, test[domain] + public[domain].test)
        if not train[domain]:
            raise DataError(
                f"there are no {domain} pairs to train on",
                where=job.name,
                hints=["make them: rlhf run stage=preferences", f"or name a set: reward.data with kind: {domain}"],
            )
        spool.lists |= {f"{domain}.train": train[domain].numbers, f"{domain}.test": test[domain].numbers}


def fitting(job: Job, tokenizer: Any, rows: Rows[Preference]) -> Rows[Preference]:
    """The held-out pairs that fit into the context, as they are or cut; the others are an error or left out."""
    fit = Fit(job.recipe.model.max_length, job.recipe.data.too_long)
    kept = [n for n, row in zip(rows.numbers, rows, strict=True) if ids_of(tokenizer, row, fit)]
    if fit:
        job.track.say(f"held out, {fit}")
    return Rows(rows.whole, kept)


def mixtures(job: Job, helpfulness: Sequence[int], safety: Sequence[int]) -> dict[Domain, mixing.Mixed[int]]:
    """What each model is trained on, by the paper's shares: the pairs' numbers."""
    config = job.config
    made: dict[Domain, mixing.Mixed[int]] = {
        "helpfulness": mixing.helpfulness_mix(helpfulness, safety, share=config.helpfulness_share, seed=job.seed),
        "safety": mixing.safety_mix(safety, helpfulness, share=config.safety_share, seed=job.seed),
    }
    return {domain: mixing.Mixed(array("Q", mixed.rows), mixed.counts) for domain, mixed in made.items()}


def encode(job: Job, tokenizer: Any, rows: Sequence[Preference], margin: str, pairs: Spool[Pair]) -> None:
    """Pairs as ids with their margins, and their places among the rows; what can't be trained on is an error with the
    row's name."""
    fit = Fit(job.recipe.model.max_length, job.recipe.data.too_long)
    unrated = unrated_margin(job, rows, margin)
    places = pairs.lists["places"] = array("Q")
    for place, row in enumerate(rows):
        ids = ids_of(tokenizer, row, fit)
        if ids is None:
            continue
        places.append(place)
        pairs.append(
            Pair(
                *ids,
                margin=margin_of(row.rating, table=margin, unrated=unrated, numeric=row.margin),
                chosen_safe=float("nan") if row.chosen_safe is None else float(row.chosen_safe),
                rejected_safe=float("nan") if row.rejected_safe is None else float(row.rejected_safe),
                id=row.id,
            )
        )
    if fit:
        job.track.say(str(fit))


def unrated_margin(job: Job, rows: Sequence[Preference], margin: str) -> float:
    """The margin of pairs that carry neither a rating nor a margin: chosen by name, and said."""
    given = job.config.unrated_margin
    unrated = array("Q", (i for i, row in enumerate(rows) if row.rating is None and row.margin is None))
    chosen = 0.0 if given is None and margin == "none" else given
    if unrated and chosen is None:
        first = rows[unrated[0]]
        raise DataError(
            f"{len(unrated):,} of {len(rows):,} pairs have no rating, and reward.unrated_margin is not set",
            where=f"first: pair {first.id} of {first.source}",
            hints=["reward.unrated_margin=0 trains them by equation 1", "or reward.margin=none: no pair has a margin"],
        )
    if unrated:
        job.track.say(f"{len(unrated):,} of {len(rows):,} pairs have no rating: margin {chosen:g}")
    return chosen or 0.0
