"""Every policy on held-out prompts, and the reward models on held-out pairs (3.4, 4)."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlhf.data import feed
from rlhf.data.types import DOMAINS, Preference, Prompt, rating_mix
from rlhf.evaluation import behaviour, checks, claims, curves, distributions
from rlhf.evaluation.diversity import self_bleu
from rlhf.evaluation.gold import facts_right, gold_report, verdicts
from rlhf.evaluation.intervals import of_mean, paired, paired_quantile
from rlhf.evaluation.refusals import without_oracle
from rlhf.evaluation.reward_report import rating_drift, scores_of, staleness
from rlhf.evaluation.subject import Evaluation
from rlhf.generation.protocol import Sampling
from rlhf.pipeline import Job
from rlhf.rollout import Sample, mean_kl, require_fit, sample

QUARTERS = (("safe", False), ("safe", True), ("border", False), ("unsafe", False))
# How alike a policy's answers to one prompt are: one column of many, so that it costs less than those beside it.
SELF_BLEU_PROMPTS = 20
SELF_BLEU_DRAWN = 40  # of which those are the first: another number draws others, and old figures stay comparable
SELF_BLEU_SAMPLES = 8  # each is held against seven others
SELF_BLEU_TEMPERATURE = 1.0  # what was trained, at whatever temperature the other answers are measured


def run(job: Job) -> None:
    """Leave `results.json`, the report's numbers; what cannot be measured in this recipe is absent."""
    e, reward_artefacts = Evaluation.of(job), job.every("reward")
    # What is asked first: a row that is malformed or too long is said before any model is loaded.
    for given in (job.config.checks, job.config.instructions):
        checks.read(given.path)
    prompts = heldout_prompts(e, job.config.prompts, "policies") if e.judged_by and job.config.data else []
    for folder in e.policies.values():
        require_fit(folder, prompts, e.tokenizer, longest=job.config.max_new_tokens)
    measured = stored_results(reward_artefacts[-1]) if reward_artefacts else {}
    results: dict[str, Any] = {"reward_models": across_rounds(e, reward_artefacts), "policies": {}}
    if prompts:
        results["policies"], replies = measure_policies(e, prompts)
        results |= best_of_curves(e) | {"samples": side_by_side(replies, job.config.samples)}
        results["win_rates"] = behaviour.wins(e, replies)
        for name, found in distributions.of_policies(replies, against=behaviour.opponent_of(e)).items():
            results["policies"][name]["distributions"] = found
        show(job, results["policies"], results["samples"], replies)
    if job.config.data:
        results["multi_turn"] = behaviour.multi_turn(e)
        results["attention"] = behaviour.attention_on_instruction(e)
        results["diversity"] = behaviour.diversity(e)
    results["checks"] = behaviour.checked(e)
    models = {name: entry | results["reward_models"].get(name, {}) for name, entry in measured.items()}
    results["claims"] = claims.examine(results | {"reward_models": models})
    job.write_results(results)


def show(job: Job, policies: dict[str, Any], samples: list[dict[str, Any]], replies: dict[str, list]) -> None:
    """The result table, all scores and the prompts of the report, for dashboards: a step for every policy."""
    for number, (policy, entry) in enumerate(policies.items()):
        for row in samples:
            job.track.sample({"policy": policy, "prompt": row["prompt"], **row["replies"][policy]})
        known = {name: value for name, value in entry.items() if isinstance(value, float) and math.isfinite(value)}
        _, helpfulness, safety = zip(*replies[policy], strict=True)
        spread = {"reward_helpfulness_histogram": helpfulness, "reward_safety_histogram": safety}
        job.track.log({f"eval/{name}": value for name, value in (known | spread).items()}, step=number)


def stored_results(artefact: Path) -> dict[str, Any]:
    """What the reward stage measured of its models."""
    path = artefact / "results.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found.get("reward_models", {})


def across_rounds(e: Evaluation, artefacts: tuple[Path, ...]) -> dict[str, Any]:
    """What only several rounds show: how ratings drift (Fig 25), and how fast a reward model grows stale (3.2.1)."""
    if not e.job.config.across_rounds:
        return {}
    rounds, found = e.job.every("preferences"), {}
    for domain in DOMAINS if e.judged_by is not None and rounds else ():
        tests = [feed.stored(path / f"{domain}.test.jsonl", Preference) for path in rounds]
        mix = {path.name: rating_mix(rows) for path, rows in zip(rounds, tests, strict=True)}
        found[domain] = {"rating_mix": {name: shares for name, shares in mix.items() if shares}}
        if len(rounds) > 1 and (drift := rating_drift(tests[0], tests[-1])):
            found[domain]["rating_drift"] = drift
        if len(artefacts) < 2 or len(rounds) < 2:
            continue
        config, places = e.job.recipe.model, {path.name: path / "checkpoint" / domain for path in artefacts}
        scored = {name: scores_of(place, config, e.tokenizer, tests[-1]) for name, place in places.items()}
        own = (scores_of(places[artefacts[-2].name], config, e.tokenizer, tests[-2]), tests[-2])
        found[domain]["staleness"] = staleness(scored, tests[-1], own=own)
    return found


def heldout_prompts(e: Evaluation, count: int, label: str, kinds=QUARTERS) -> list[Prompt]:
    """Held-out prompts in equal parts of each kind, others for every purpose."""
    config, recipe = e.job.config, e.job.recipe
    return feed.heldout(
        config.data,
        count,
        kinds={(kind, instructed): e.job.seed_of(f"{label} {kind} {instructed}") for kind, instructed in kinds},
        stage="evaluate",
        world=recipe.microworld,
        test_share=recipe.data.test_share,
        say=e.job.track.say,
    )


def measure_policies(e: Evaluation, prompts: list[Prompt]) -> tuple[dict[str, Any], dict[str, list]]:
    """One answer to each prompt by every policy; KL is to the policy before it, exact over the vocabulary."""
    config = e.job.config
    facts = behaviour.fact_questions(e)
    alike = heldout_prompts(e, SELF_BLEU_DRAWN, "diversity", kinds=(("safe", False),))[:SELF_BLEU_PROMPTS]
    sampling = Sampling(1, config.temperature, config.max_new_tokens)
    several = Sampling(SELF_BLEU_SAMPLES, SELF_BLEU_TEMPERATURE, config.max_new_tokens)
    table, replies, before = {}, {}, None
    qualities: dict[str, list[float]] = {}
    combined: dict[str, list[float]] = {}
    with e.job.track.progress(len(e.policies), "policies") as bar:
        for name in e.policies:
            policy = e.model(name)
            engine = e.engine(policy)
            samples = [g[0] for g in sample(engine, e.tokenizer, prompts, sampling, seed=e.job.seed)]
            table[name], scores = measure(e, samples)
            combined[name] = scores.combined.tolist()
            table[name]["p10_gain"] = over_earlier(combined, partial(paired_quantile, share=0.1))
            judged = verdicts(samples)
            if judged is not None:
                qualities[name] = [v.quality for v in judged]
                table[name]["gold_gain"] = over_earlier(qualities, paired)
            if facts:
                answers = [g[0] for g in sample(engine, e.tokenizer, facts, sampling, seed=e.job.seed)]
                known = facts_right(answers)
                table[name]["gold_facts"] = known["gold_facts"]
                table[name]["interval"] |= known["interval"]
            if before is not None:
                own = {"temperature": 1.0, "pad_token_id": e.tokenizer.pad_token_id}
                table[name]["kl_to_reference"] = mean_kl(policy, before, samples, **own)
            groups = sample(engine, e.tokenizer, alike, several, seed=e.job.seed)
            table[name]["self_bleu"] = self_bleu([[s.text for s in group] for group in groups])
            replies[name] = list(zip(samples, scores.helpfulness.tolist(), scores.safety.tolist(), strict=True))
            before = policy
            bar.advance(1)
    return table, replies


def over_earlier(figures: dict[str, list[float]], compare: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The newest policy against every earlier one on the same prompts, with a paired 95% interval."""
    *earlier, newest = figures
    return {name: compare(figures[newest], figures[name]) for name in earlier}


def measure(e: Evaluation, samples: list[Sample]):
    """The row of one policy: raw scores, never whitened ones, and the gold judge's columns where there is one.

    Where there is none, false refusals are read from the words and unsafe answers are those the safety model finds.
    """
    scores = e.rewards(
        [s.row for s in samples],
        [s.prompt.is_safety for s in samples],
        safety_threshold=e.job.config.safety_threshold,
    )
    lengths = [len(s.completion.token_ids) for s in samples]
    row = gold_report(samples) or without_oracle(samples, scores.safety.tolist())
    interval = row.pop("interval")
    for name in (*DOMAINS, "combined"):
        values = getattr(scores, name).tolist()
        row[f"reward_{name}"], interval[f"reward_{name}"] = sum(values) / len(values), of_mean(values)
    row |= {
        "reward_p10": torch.quantile(scores.combined, 0.1).item(),
        "eos_rate": sum(s.finished for s in samples) / len(samples),
        "length": sum(lengths) / len(lengths),
        "n": len(samples),
        "interval": interval,
    }
    return row, scores


def best_of_curves(e: Evaluation) -> dict[str, Any]:
    """Max, median and gold of the best against N (Fig 7), and max against N by temperature (Fig 8)."""
    config = e.job.config
    sizes = curves.sizes_up_to(config.best_of_samples)
    prompts = heldout_prompts(e, config.best_of_prompts, "best of", kinds=(("safe", False), ("border", False)))
    best_of: dict[str, Any] = {}
    temperature: dict[str, Any] = {}
    names = [name for name in e.policies if name != "base"]
    with e.job.track.progress(len(names), "best of N") as bar:
        for name in names:
            engine, temperature[name] = e.engine(e.model(name)), {}
            for t in sorted({1.0, *config.temperatures}) if name in (names[0], names[-1]) else [1.0]:
                sampling = Sampling(config.best_of_samples, t, config.max_new_tokens)
                groups = sample(engine, e.tokenizer, prompts, sampling, seed=e.job.seed_of("best of"))
                samples = [s for group in groups for s in group]
                scores = e.rewards(
                    [s.row for s in samples],
                    [s.prompt.is_safety for s in samples],
                    safety_threshold=config.safety_threshold,
                ).combined.view(len(prompts), -1)
                top = curves.expected_max_curve(scores, sizes)
                temperature[name][f"{t:g}"] = {str(n): top[n] for n in sizes}
                if t == 1.0:
                    median = curves.expected_median_curve(scores, sizes)
                    best_of[name] = {str(n): {"max": top[n], "median": median[n]} for n in sizes}
                    gold = verdicts(samples)
                    if gold is not None:
                        quality = torch.tensor([v.quality for v in gold]).view_as(scores)
                        for n, value in curves.gold_of_best(scores, quality, sizes).items():
                            best_of[name][str(n)]["gold_of_max"] = value
            bar.advance(1)
    return {"best_of": best_of, "temperature": {k: v for k, v in temperature.items() if len(v) > 1}}


def side_by_side(replies: dict[str, list], count: int) -> list[dict[str, Any]]:
    """The same prompts across all policies, every kind in turn, for the report."""
    first = next(iter(replies.values()))
    step = max(1, len(first) // count)
    rows = []
    for i in range(0, len(first), step)[:count]:
        prompt = first[i][0].prompt
        shown = {}
        for name, answers in replies.items():
            s, helpfulness, safety = answers[i]
            gold = verdicts([s])
            shown[name] = {"text": s.text, "helpfulness": helpfulness, "safety": safety} | (
                {"gold": gold[0].quality} if gold else {}
            )
        turns = [{"role": t.role, "content": t.content} for t in prompt.turns]
        rows.append({"prompt": turns, "kind": prompt.kind, "replies": shown})
    return rows
