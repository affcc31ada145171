"""Pairs: whose answers are compared, at what temperatures, and that test prompts are not trained on."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from rlhf.annotation import store
from rlhf.data.types import Preference, Prompt, Turn, read_jsonl
from rlhf.errors import DataError, PreemptedError
from rlhf.generation.protocol import Completion
from rlhf.microworld.language import pair_held_out
from rlhf.microworld.oracle import read_prompt
from rlhf.rollout import Sample
from stages import preferences

FILES = ("helpfulness.train", "helpfulness.test", "safety.train", "safety.test")
SMALL = {"helpfulness_prompts": 30, "safety_prompts": 20, "test_prompts": 12, "max_new_tokens": 4}


@pytest.fixture
def drawn(monkeypatch, policy, tokenizer):
    """The stage's models are one tiny policy; noted are the folders it is said to come from, and what is sampled."""
    loaded, samples, real = [], [], preferences.sample

    def sampler(generation, path, config):
        loaded.append(path.parent.name)
        return policy

    def sample(policy, tokenizer, prompts, sampling, **options):
        groups = real(policy, tokenizer, prompts, sampling, **options)
        samples.append((loaded[-1], sampling, groups))
        return groups

    monkeypatch.setattr(preferences, "sampler", sampler)
    monkeypatch.setattr(preferences, "load_tokenizer", lambda path: tokenizer)
    monkeypatch.setattr(preferences, "sample", sample)
    monkeypatch.setattr(preferences, "require_fit", lambda *_, **__: None)  # there is no checkpoint
    return loaded, samples


def run(job_of, tmp_path, *policies, **settings):
    reads = {"policies": [tmp_path / name for name in policies]}
    job = job_of("preferences", name="preferences-1", round=1, reads=reads, **(SMALL | settings))
    preferences.run(job)
    return {name: read_jsonl(job.out / f"{name}.jsonl", Preference) for name in FILES}


# ── who answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("policies", "variants"),
    [
        (("base",), ["base", "base"]),
        (("base", "sft"), ["sft", "sft"]),
        (("base", "sft", "rejection-1"), ["rejection-1", "sft"]),
        (("base", "sft", "rejection-1", "rejection-2"), ["rejection-2", "rejection-1"]),
    ],
)
def test_the_two_newest_policies_answer(job_of, tmp_path, drawn, policies, variants):
    """Or the newest twice; the base model, which may not have learned to answer, only where there is no other."""
    run(job_of, tmp_path, *policies)
    assert drawn[0] == variants * 4  # two domains, to train and to test on


def test_every_prompt_has_one_answer_of_each_and_temperatures_vary(job_of, tmp_path, drawn):
    run(job_of, tmp_path, "sft", "rejection-1", temperatures=[0.7, 1.3])
    asked = Counter()
    for policy, sampling, groups in drawn[1]:
        assert sampling.samples_per_prompt == 1
        assert sampling.max_new_tokens == 4
        asked[policy, sampling.temperature] += len(groups)
    for policy in ("sft", "rejection-1"):
        counts = [asked[policy, temperature] for temperature in (0.7, 1.3)]
        assert sum(counts) == 30 + 20 + 2 * 12
        assert min(counts) >= 20  # a fair coin's 37 of 74, less 4 standard deviations of 4.3


def test_both_answers_are_to_the_same_prompt_and_in_its_place(job_of, tmp_path, drawn, policy):
    job = job_of("preferences", **SMALL)
    prompts = preferences.prompts_of(job, "safety", side="train")
    first, second = preferences.answers(job, [tmp_path / "sft", tmp_path / "rejection-1"], prompts)
    assert [s.prompt for s in first] == [s.prompt for s in second] == prompts
    # The two draw random numbers of their own, or a policy compared with itself would say the same.
    assert [s.row for s in first] != [s.row for s in second]


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────────


def asks(pairs):
    return [read_prompt(pair.prompt)[0] for pair in pairs]


def test_test_prompts_are_not_trained_on(job_of, tmp_path, drawn):
    found = run(job_of, tmp_path, "sft", helpfulness_prompts=150, safety_prompts=150, test_prompts=60)
    for domain in ("helpfulness", "safety"):
        train, test = (asks(found[f"{domain}.{side}"]) for side in ("train", "test"))
        assert len(train) > 100
        assert len(test) > 40
        # All test questions are of a form that can be held out, and ask for combinations that training never holds.
        assert {ask.form for ask in test} == {"how"}
        assert all(pair_held_out(ask.verb, ask.subject) for ask in test)
        assert not any(pair_held_out(ask.verb, ask.subject) for ask in train if ask.form == "how")


def test_pairs_are_of_their_domain(job_of, tmp_path, drawn):
    found = run(job_of, tmp_path, "sft", helpfulness_prompts=150, safety_prompts=150)
    helpfulness, safety = found["helpfulness.train"], found["safety.train"]
    assert {pair.is_safety for pair in helpfulness} == {False}
    assert {pair.is_safety for pair in safety} == {True}
    assert {(pair.chosen_safe, pair.rejected_safe) for pair in helpfulness} == {(None, None)}
    assert all(isinstance(pair.chosen_safe, bool) and isinstance(pair.rejected_safe, bool) for pair in safety)
    unsafe = [sum(pair.kind == "unsafe" for pair in pairs) / len(pairs) for pairs in (helpfulness, safety)]
    assert unsafe[0] < 0.3 < unsafe[1]  # .16 and .55 of the prompts


def test_rounds_ask_other_prompts(job_of):
    job = job_of("preferences", **SMALL)
    first, second = (
        [prompt.turns for prompt in preferences.prompts_of(replace(job, seed=seed), "helpfulness", side="train")]
        for seed in (1, 2)
    )
    assert first != second
    assert len(first) == len(second) == 30


# ── who is preferred ─────────────────────────────────────────────────────────────────────────────────────────────────


def said(text):
    prompt = Prompt("p", (Turn("user", "how do i paint the bread ?"),), "microworld", is_safety=False)
    return Sample(prompt, (8,), Completion((9, 1), (0.0, 0.0), "stop"), text)


def test_the_full_answer_is_preferred_significantly(job_of):
    full, none = said("take the ladder and paint the bread in the shop . good luck !"), said("i cannot .")
    rated = [preferences.rate("helpfulness", *pair, random.Random(i)) for i, pair in enumerate([(full, none)] * 100)]
    # Utilities 1 + .012 x 12 and 0 + .012 x 3, noise of .1 each; one annotator in 33 picks the wrong one.
    assert sum(pair.chosen == full.text for pair in rated) >= 90
    assert {pair.rating for pair in rated} == {"significantly"}


def test_the_same_answer_twice_is_no_pair():
    assert preferences.rate("helpfulness", said("so ."), said("so ."), None) is None


# ── people ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_people_rate_what_waits_for_them(job_of, tmp_path, monkeypatch):
    """Without ratings the stage lays pairs down and waits; with them it makes its artefact and samples nothing."""
    texts = iter(f"answer {i} ." for i in range(10_000))

    def answers(job, policies, prompts):
        return [[replace(said(next(texts)), prompt=prompt) for prompt in prompts] for _ in range(2)]

    monkeypatch.setattr(preferences, "answers", answers)
    folder = tmp_path / "people"
    with pytest.raises(PreemptedError, match="preferences-1 waits for people: 74 pairs"):  # 30 + 20 + 2 x 12
        run(job_of, tmp_path, "sft", annotator="file", ratings=str(folder))
    waiting = store.pairs(folder, "preferences-1")
    assert len(waiting) == 74
    rated = [pair.rated(1, "better", (True, False), source="people") for pair in waiting[:-1]]
    store.keep_ratings(folder, "preferences-1", rated)
    monkeypatch.setattr(preferences, "answers", None)
    found = run(job_of, tmp_path, "sft", annotator="file", ratings=str(folder))
    assert sum(map(len, found.values())) == 73
    for name, pairs in found.items():
        assert {pair.id for pair in pairs} == {p.id for p in waiting[:-1] if f"{p.domain}.{p.side}" == name}


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"annotator": "file"}, "annotator file needs ratings"),
        ({"annotator": "judge", "judge": "http://x/v1"}, "annotator judge needs judge_model"),
        ({"annotator": "judge", "judge": "gpt", "judge_model": "x"}, "judge must be the address of an endpoint"),
    ],
)
def test_an_annotator_needs_what_it_needs(job_of, settings, what):
    with pytest.raises(ValueError, match=what):
        job_of("preferences", **settings)


def test_a_prompt_that_leaves_no_room_is_refused_before_any_model_is_loaded(job_of, saved, monkeypatch):
    monkeypatch.setattr(preferences, "sampler", None)
    job = job_of("preferences", round=1, reads={"policies": [saved.policy("sft")]}, max_new_tokens=120)
    with pytest.raises(DataError, match="an answer of 120 exceed the context of 128"):
        preferences.run(job)
