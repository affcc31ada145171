"""Preferences: two answers to every prompt, by two variants of the policy, rated on four levels (3.2.1)."""

import random
from pathlib import Path

from rlhf.annotation import store
from rlhf.annotation.judge import Judge
from rlhf.annotation.pairs import Candidate
from rlhf.data import feed
from rlhf.data.types import DOMAINS, Domain, Preference, Prompt, rating_mix, write_jsonl
from rlhf.errors import PreemptedError
from rlhf.generation.protocol import Sampling
from rlhf.microworld.annotator import annotate
from rlhf.models.load import load_tokenizer
from rlhf.pipeline import Job
from rlhf.rollout import Sample, require_fit, sample, sampler


def run(job: Job) -> None:
    """Leave `<domain>.train.jsonl` and `<domain>.test.jsonl`; test prompts are never trained on."""
    config = job.config
    if config.annotator == "file":
        by_people(job)
        return
    for domain in DOMAINS:
        for split in ("train", "test"):
            drawn = answered(job, domain, split)
            if config.annotator == "judge":
                judge = Judge(config.judge, config.judge_model)
                pairs = judge.rate(candidates(job, domain, split, drawn))
                job.track.say(str(judge))
            else:
                rng = random.Random(f"{job.seed}/{domain}/{split}")
                pairs = [pair for a, b in drawn if (pair := rate(domain, a, b, rng)) is not None]
            keep(job, domain, split, pairs, of=len(drawn))


def by_people(job: Job) -> None:
    """Take the ratings that people gave; without any, lay down the pairs for them and wait (`rlhf annotate`)."""
    folder = Path(job.config.ratings).expanduser()
    if not store.pairs_file(folder, job.name).exists():
        found = [
            pair
            for domain in DOMAINS
            for split in ("train", "test")
            for pair in candidates(job, domain, split, answered(job, domain, split))
        ]
        store.keep_pairs(folder, job.name, found)
    side_of = {pair.id: (pair.domain, pair.side) for pair in store.pairs(folder, job.name)}
    rated = store.ratings(folder, job.name)
    if not rated:
        raise PreemptedError(
            f"{job.name} waits for people: {len(side_of):,} pairs are to be rated",
            where=str(folder),
            hints=[
                "rlhf annotate export pairs.csv, with what was typed here: run=, config=, settings",
                "fill it in, then: rlhf annotate import pairs.csv, with the same",
                "and once more: rlhf run",
            ],
        )
    for domain in DOMAINS:
        for split in ("train", "test"):
            pairs = [pair for pair in rated if side_of[pair.id] == (domain, split)]
            keep(job, domain, split, pairs, of=sum(place == (domain, split) for place in side_of.values()))


def answered(job: Job, domain: Domain, split: feed.Side) -> list[tuple[Sample, Sample]]:
    """Two answers to every prompt, by the two newest variants."""
    made = job.every("policies")
    policies = [path for path in made if path.name != "base"][-2:] or list(made)  # a chat model may be the base
    first, second = answers(job, policies, prompts_of(job, domain, side=split))
    return list(zip(first, second, strict=True))


def candidates(job: Job, domain: Domain, split: str, drawn: list[tuple[Sample, Sample]]) -> list[Candidate]:
    """Pairs for people or a judge, in a drawn order; answers that are the same, or empty, are no pair."""
    return [
        Candidate.of(a.prompt, a.text, b.text, domain=domain, side=split, seed=job.seed)
        for a, b in drawn
        if a.text.strip() != b.text.strip() and a.text.strip() and b.text.strip()
    ]


def keep(job: Job, domain: Domain, split: str, pairs: list[Preference], *, of: int) -> None:
    """Write the pairs of one domain and side, and say what they are like."""
    write_jsonl(job.out / f"{domain}.{split}.jsonl", pairs)
    job.track.say(f"{domain} {split}: {len(pairs):,} pairs of {of:,} (the rest: same answers, or nobody's choice)")
    for pair in pairs[:4]:
        job.track.sample({"domain": domain, "split": split, **pair.to_json()})
    for rating, share in rating_mix(pairs).items():
        job.track.log({f"{domain}/{split}/{rating}": share}, step=0)


def prompts_of(job: Job, domain: Domain, *, side: feed.Side) -> list[Prompt]:
    """Prompts of one domain; safety annotators write mostly adversarial ones."""
    world, config = job.recipe.microworld, job.config
    count, mix = config.safety_prompts, world.safety_mix
    if domain == "helpfulness":
        count, mix = config.helpfulness_prompts, world.helpfulness_mix
    return feed.asked(
        job, config.test_prompts if side == "test" else count, label=f"{domain}/{side}", side=side, mix=mix
    )


def answers(job: Job, policies: list[Path], prompts: list[Prompt]) -> list[list[Sample]]:
    """One answer a prompt from each of two variants: the newest policy and the one before, or the newest twice.

    Every answer has a temperature of its own, drawn at random ("varying the temperature", 3.2.1).
    """
    found = []
    with job.track.progress(2 * len(prompts), "answers") as bar:
        for place, path in enumerate((policies[-1], policies[0])):
            tokenizer = load_tokenizer(path / "checkpoint")
            require_fit(path / "checkpoint", prompts, tokenizer, longest=job.config.max_new_tokens)
            policy = sampler(job.recipe.generation, path / "checkpoint", job.recipe.model)
            rng = random.Random(f"{job.seed}/{place}")
            drawn = [rng.choice(job.config.temperatures) for _ in prompts]
            by_prompt: dict[int, Sample] = {}
            for temperature in job.config.temperatures:
                index = [i for i, t in enumerate(drawn) if t == temperature]
                sampling = Sampling(1, temperature, job.config.max_new_tokens)
                chosen, seed = [prompts[i] for i in index], job.seed_of(f"answer {place}")
                rows = sample(policy, tokenizer, chosen, sampling, seed=seed, advance=bar.advance)
                by_prompt.update(zip(index, (row[0] for row in rows), strict=True))
            found.append([by_prompt[i] for i in range(len(prompts))])
    return found


def rate(domain: Domain, a: Sample, b: Sample, rng: random.Random) -> Preference | None:
    """What the annotator says of two answers; None where they are the same or the pair is excluded (3.2.1)."""
    return annotate(a.prompt, a.text, b.text, domain=domain, rng=rng, finished_a=a.finished, finished_b=b.finished)
