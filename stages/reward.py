"""Reward models: a helpfulness model and a safety model on graded pairs, with a margin by rating (3.2.2)."""

from array import array
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rlhf.data import feed, mixing
from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.data.feed import DOMAINS
from rlhf.data.fit import Fit
from rlhf.data.types import Preference, write_jsonl
from rlhf.errors import DataError
from rlhf.evaluation.reward_report import examine
from rlhf.functional.margin import margin_of
from rlhf.models.load import load_tokenizer, reward_model_from_policy, save
from rlhf.models.pair_batches import Batching
from rlhf.models.reward_models import RewardModels
from rlhf.pipeline import Job
from rlhf.training.trainers import Pair, Schedule, fit_reward, steps_of, warmup_steps


def run(job: Job) -> None:
    """Leave `checkpoint/helpfulness`, `checkpoint/safety`, the held-out pairs `<domain>.test.jsonl`, and what both
    models come to on them: `results.json`, which rejection sampling, Ghost Attention and PPO ask before they start."""
    train, test = gather(job)
    mixed = mixtures(job, train)
    tokenizer = load_tokenizer(job.one("policy") / "checkpoint")
    # All pairs are read before any model is loaded: a bad row should not cost the training of the first model.
    encoded = {domain: encode(job, tokenizer, mixed[domain].rows) for domain in DOMAINS}
    batches: dict[str, dict[str, Any]] = {}
    for domain, pairs in encoded.items():
        write_jsonl(job.out / f"{domain}.test.jsonl", test[domain])
        job.track.say(f"{domain} model: {mixed[domain].counts}")
        model, batching = fit(job, domain, pairs, tokenizer, seed=job.seed_of(domain))
        if not job.saves.passed(domain):  # else a killed run had finished this model and left it here
            save(model, tokenizer, job.out / "checkpoint" / domain)
        batches[domain] = asdict(batching)
        waste, work = f"{batching.padding:.1%} of the tokens were padding", f"{batching.work:.2f} of the work of two"
        job.track.say(f"{domain} model: {batching.layout} a pair ({work}); {waste}")
    found = report(job, {domain: mixed[domain].rows for domain in DOMAINS}, test)
    job.write_results({"reward_models": {name: found[name] | {"batches": batches[name]} for name in DOMAINS}})


def fit(job: Job, domain: str, pairs: list[Pair], tokenizer: Any, *, seed: int) -> tuple[Any, Batching]:
    """One model, from the policy, by the paper's schedule."""
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
        seed=seed,
        track=job.track,
        saves=job.saves,
        what=domain,
    )
    return model, batching


def report(job: Job, trained_on: dict[str, list[Preference]], test: dict[str, list[Preference]]) -> Any:
    """Measure the models as they were saved."""
    tokenizer = load_tokenizer(job.out / "checkpoint" / "helpfulness")
    models = RewardModels.load(job.out, job.recipe.model, reads=tokenizer)
    found = examine(models, tokenizer, trained_on=trained_on, test=test, threshold=job.config.safety_threshold)
    for name, entry in found.items():
        own = entry.get(name, {}).get("accuracy", {})
        job.track.log({f"{name}/heldout/{rating}": accuracy for rating, accuracy in own.items()}, step=0)
        for domain in (domain for domain in DOMAINS if domain in entry):
            words = entry[domain].get("baselines", {}).get("bag_of_words")
            beside = f"; a bag of words: {words['accuracy']:.1%}" if words else ""
            accuracy, n = entry[domain]["accuracy"]["all"], entry[domain]["pairs"]["all"]
            job.track.say(f"{name} model on {domain} pairs: {accuracy:.1%} of {n:,}{beside}")
    return found


def gather(job: Job) -> tuple[dict[str, list[Preference]], dict[str, list[Preference]]]:
    """Pairs by domain, to train on and held out: those of every round so far, and public sets."""
    train: dict[str, list[Preference]] = {domain: [] for domain in DOMAINS}
    test: dict[str, list[Preference]] = {domain: [] for domain in DOMAINS}
    for artefact in job.every("preferences*"):
        for domain in DOMAINS:
            train[domain] += feed.stored(artefact / f"{domain}.train.jsonl", Preference)
            test[domain] += feed.stored(artefact / f"{domain}.test.jsonl", Preference)
    if job.config.data:
        public = feed.preferences(job.config.data, test_share=job.recipe.data.test_share, say=job.track.say)
        for domain in DOMAINS:
            train[domain] += public[domain].train
            test[domain] += public[domain].test
    for domain in DOMAINS:
        if not train[domain]:
            raise DataError(
                f"there are no {domain} pairs to train on",
                where=job.name,
                hints=["make them: rlhf run stage=preferences", f"or name a set: reward.data with kind: {domain}"],
            )
    return train, test


def mixtures(job: Job, train: dict[str, list[Preference]]) -> dict[str, mixing.Mixed[Preference]]:
    """What each model is trained on, by the paper's shares."""
    own, other, config = train["helpfulness"], train["safety"], job.config
    return {
        "helpfulness": mixing.helpfulness_mix(own, other, share=config.helpfulness_share, seed=job.seed),
        "safety": mixing.safety_mix(other, own, share=config.safety_share, seed=job.seed),
    }


def encode(job: Job, tokenizer, rows: Sequence[Preference]) -> list[Pair]:
    """Pairs as ids with their margins; what can't be trained on is an error with the row's name."""
    config, fit = job.config, Fit(job.recipe.model.max_length, job.recipe.data.too_long)
    unrated = unrated_margin(job, rows)
    pairs = []
    for row in rows:
        where = f"pair {row.id} of {row.source}"
        answers = [encode_completion(tokenizer, text, where=where) for text in (row.chosen, row.rejected)]
        if answers[0] == answers[1]:
            raise DataError("chosen and rejected are the same tokens", where=where, hints=["leave the pair out"])
        prompt = fit.prompt(encode_prompt(tokenizer, row.prompt, where=where), max(map(len, answers)), where=where)
        if prompt is None:
            continue
        chosen, rejected = (array("i", prompt + answer) for answer in answers)  # a list takes seven times as much
        pairs.append(
            Pair(
                chosen,
                rejected,
                margin=margin_of(row.rating, table=config.margin, unrated=unrated, numeric=row.margin),
                chosen_safe=float("nan") if row.chosen_safe is None else float(row.chosen_safe),
                rejected_safe=float("nan") if row.rejected_safe is None else float(row.rejected_safe),
                id=row.id,
            )
        )
    if fit:
        job.track.say(str(fit))
    return pairs


def unrated_margin(job: Job, rows: Sequence[Preference]) -> float:
    """The margin of pairs that carry neither a rating nor a margin: chosen by name, and said."""
    config = job.config
    unrated = [row for row in rows if row.rating is None and row.margin is None]
    chosen = 0.0 if config.unrated_margin is None and config.margin == "none" else config.unrated_margin
    if unrated and chosen is None:
        raise DataError(
            f"{len(unrated):,} of {len(rows):,} pairs have no rating, and reward.unrated_margin is not set",
            where=f"first: pair {unrated[0].id} of {unrated[0].source}",
            hints=["reward.unrated_margin=0 trains them by equation 1", "or reward.margin=none: no pair has a margin"],
        )
    if unrated:
        job.track.say(f"{len(unrated):,} of {len(rows):,} pairs have no rating: margin {chosen:g}")
    return chosen or 0.0
