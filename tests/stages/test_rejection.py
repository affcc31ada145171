"""What rejection sampling keeps: the temperature, the pool, the best of all rounds, and what it is mixed with."""

import copy
import json
import math
from collections import defaultdict
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from rlhf.data import pool as pools
from rlhf.data.chat import encode_completion, encode_dialogue, encode_prompt
from rlhf.data.pool import PoolEntry
from rlhf.data.types import Dialogue, Prompt, Turn, write_jsonl
from rlhf.errors import DataError, MissingError, NonFiniteError, RlhfError
from rlhf.generation.protocol import Completion, Sampling
from rlhf.models.load import load_policy
from rlhf.models.reward_models import Scores
from rlhf.models.score import score
from rlhf.rollout import Sample, sample
from rlhf.schema import ModelConfig
from rlhf.training.rehearsal import best_pooled
from stages import rejection

QUESTION = (Turn("user", "how do i open the door ?"),)


def prompt(text="how ?", *, id="p", system=None, is_safety=False):
    turns = (*([Turn("system", system)] if system else []), Turn("user", text))
    return Prompt(id, turns, "people", is_safety=is_safety)


def entry(completion="take the key .", **changes):
    made = PoolEntry(
        prompt_id="p", prompt=QUESTION, is_safety=False, completion=completion, scores={}, round=1, policy="x",
        temperature=1.0, seed=0, k=0, finished=True,
    )  # fmt: skip
    return replace(made, **changes)


def scored_alone(rewards, tokenizer, e):
    """Eq. 4 on the whole dialogue: the safety model where the prompt is tagged or its probability is below .15."""
    row = encode_dialogue(tokenizer, (*e.prompt, Turn("assistant", e.completion))).input_ids
    helpful, safe = (score(model, [row], pad_token_id=2).item() for model in (rewards.helpfulness, rewards.safety))
    return safe if e.is_safety or 1 / (1 + math.exp(-safe)) < 0.15 else helpful


# ── the temperature ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cooler", "chosen"),
    [
        # Behind 0 0 0 0 by .2, -.1, .1 and 0: on average .05, with a standard error of sqrt(.05 / 3) / 2 = .0645.
        ([-0.2, 0.1, -0.1, 0.0], 0.6),
        # By .25, -.05, .15 and .05: .1 on average, with the same standard error.
        ([-0.25, 0.05, -0.15, -0.05], 1.0),
        # By .1 every time: little, but beyond doubt.
        ([-0.1, -0.1, -0.1, -0.1], 1.0),
        # Much behind once, level else: .25 on average, with a standard error of .25.
        ([-1.0, 0.0, 0.0, 0.0], 0.6),
        ([0.5, 0.5, 0.5, 0.5], 0.6),  # better
    ],
)
def test_the_lowest_temperature_that_cannot_be_told_from_the_best(cooler, chosen):
    best = {1.0: torch.zeros(4, dtype=torch.float64), 0.6: torch.tensor(cooler, dtype=torch.float64)}
    assert rejection.lowest_as_good(best) == chosen
    assert rejection.lowest_as_good(dict(sorted(best.items()))) == chosen


def test_temperatures_are_compared_prompt_by_prompt():
    """Prompts differ by far more than temperatures do; the same prompts tell the difference all the same."""
    easy_and_hard = torch.tensor([-9.0, -3.0, 3.0, 9.0])
    assert rejection.lowest_as_good({0.6: easy_and_hard - 0.1, 1.0: easy_and_hard}) == 1.0


def test_the_hottest_may_be_the_best():
    scores = {0.6: torch.tensor([0.0, 0.1]), 1.0: torch.tensor([1.0, 1.2]), 1.2: torch.tensor([5.0, 5.3])}
    assert rejection.lowest_as_good(scores) == 1.2


def test_a_single_temperature_is_not_tried(job_of):
    assert rejection.tune_temperature(job_of("rejection", temperatures=[1.1]), None, None, None) == (1.1, {})


def test_temperatures_are_tried_on_held_out_prompts_by_the_best_of_k(job_of, policy, tokenizer, rewards, monkeypatch):
    """The best of two samples at .6 and at 1.2 scores what the script says, so 1.2 wins though its mean is lower."""
    sides, script = [], {0.6: [1.0, 1.1], 1.2: [-9.0, 2.0]}
    asked = []
    real_prompts, real_sample = rejection.training_prompts, rejection.sample

    def prompts(job, *, side, count):
        sides.append(side)
        return real_prompts(job, side=side, count=count)

    def sample(policy, tokenizer, prompts, sampling, **options):
        asked.append(sampling.temperature)
        return real_sample(policy, tokenizer, prompts, sampling, **options)

    def scored(job, rewards, samples):
        combined = torch.tensor(script[asked[-1]] * (len(samples) // 2))
        return Scores(combined, combined, combined)

    for name, wrapper in (("training_prompts", prompts), ("sample", sample), ("scored", scored)):
        monkeypatch.setattr(rejection, name, wrapper)
    job = job_of(
        "rejection", temperatures=[1.2, 0.6], temperature_prompts=5, samples_per_prompt=2, max_new_tokens=2,
        max_truncated=1.0,
    )  # fmt: skip
    chosen, trial = rejection.tune_temperature(job, policy, tokenizer, rewards)
    assert (chosen, asked) == (1.2, [0.6, 1.2])
    assert trial["temperature_curve"] == pytest.approx({"0.6": 1.1, "1.2": 2.0})
    assert trial["temperature_budget"]["samples"] == 2 * 2 * trial["temperature_budget"]["prompts"] > 0
    assert sides == ["validation"]


# ── prompts and the pool ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_question_is_known_by_what_is_asked_not_by_its_name():
    same = [prompt("how ?", id="a"), prompt("how ?", id="b"), replace(prompt("how ?"), is_safety=True)]
    assert len({rejection.pool_id(p) for p in same}) == 1
    others = [
        *(prompt("how ?"), prompt("how"), prompt("how ?", system="be kind")),
        replace(prompt(), turns=(Turn("user", "how ?"), Turn("assistant", "so"), Turn("user", "how ?"))),
        # The same characters in the same order, told apart by who says them.
        replace(prompt(), turns=(Turn("user", "a"), Turn("assistant", "bc"), Turn("user", "d"))),
        replace(prompt(), turns=(Turn("user", "ab"), Turn("assistant", "c"), Turn("user", "d"))),
    ]
    assert len({rejection.pool_id(p) for p in others}) == len(others)


def test_no_prompt_is_asked_twice_in_a_round_and_other_rounds_ask_others(job_of):
    job = job_of("rejection", round=1)
    rounds = [rejection.training_prompts(replace(job, seed=seed), side="train", count=400) for seed in (1, 2)]
    asked = [{tuple(turn.content for turn in p.turns) for p in prompts} for prompts in rounds]
    assert [len(texts) for texts in asked] == [len(prompts) for prompts in rounds]
    assert len(rounds[0]) > 200
    assert asked[0] != asked[1]


def test_entries_hold_what_was_sampled(job_of, tmp_path, saved):
    saved.policy("sft")
    job = job_of("rejection", round=2, reads={"policy": [tmp_path / "sft"]}, samples_per_prompt=2)
    asked = [prompt("how ?", id="a"), prompt("and how ?", id="b", is_safety=True)]
    samples = [
        Sample(p, (8,), Completion((9,), (0.0,), "stop" if k else "length"), f"{p.id}{k}")
        for p in asked
        for k in (0, 1)
    ]
    values = torch.arange(12, dtype=torch.float64).view(3, 4)
    made = rejection.entries(job, samples, Scores(*values), 1.2)
    assert [(e.completion, e.k, e.finished, e.is_safety, e.scores) for e in made] == [
        ("a0", 0, False, False, {"helpfulness": 0, "safety": 4, "combined": 8}),
        ("a1", 1, True, False, {"helpfulness": 1, "safety": 5, "combined": 9}),
        ("b0", 0, False, True, {"helpfulness": 2, "safety": 6, "combined": 10}),
        ("b1", 1, True, True, {"helpfulness": 3, "safety": 7, "combined": 11}),
    ]
    assert [e.prompt for e in made] == [p.turns for p in asked for _ in (0, 1)]
    assert {(e.round, e.policy, e.temperature, e.seed) for e in made} == {(2, "digest of sft", 1.2, job.seed)}
    assert len({e.key for e in made}) == 4


@pytest.mark.parametrize(("pool", "read"), [("all", ["rejection-1", "rejection-2"]), ("last", [])])
def test_earlier_rounds_count_or_not(job_of, tmp_path, pool, read):
    rounds = [tmp_path / "rejection-1", tmp_path / "rejection-2"]
    job = job_of("rejection", round=3, reads={"rejection*": rounds}, pool=pool)
    assert [path.name for path in rejection.earlier(job)] == read


# ── the best of all rounds ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("completion", "finished", "usable"), [("take it .", True, True), ("take it .", False, False), ("", True, False)]
)
def test_an_answer_that_is_empty_or_never_ended_is_no_target(completion, finished, usable):
    assert entry(completion, finished=finished).usable is usable


def test_all_entries_are_scored_anew_by_the_models_of_today(tokenizer, rewards):
    """Of any two answers the one that scores higher today is kept, whatever an earlier round said of them."""
    texts = ["take the key .", "good luck !", "open the door in the house", "a"]
    pairs = [
        [
            entry(text, is_safety=tag, prompt_id=f"{a} or {b}, {tag}", scores={"combined": said})
            for said, text in ((99.0, a), (0.0, b))
        ]
        for tag in (True, False)
        for a, b in permutations(texts, 2)
    ]
    alone = [[scored_alone(rewards, tokenizer, e) for e in pair] for pair in pairs]
    assert min(abs(a - b) for a, b in alone) > 1e-4  # no two so near that how they are batched decides
    found = best_pooled([e for pair in pairs for e in pair], tokenizer, rewards, safety_threshold=0.15)
    assert found == [pair[b > a] for pair, (a, b) in zip(pairs, alone, strict=True)]


def test_what_was_just_scored_is_not_scored_again(tokenizer, rewards):
    """A score that is known decides for its prompt and its domain alone; of others the models are asked."""
    read = []

    def asked(rows, tags, **given):
        read.append(sorted(zip(tags, rows, strict=True)))
        return rewards(rows, tags, **given)

    texts = ["take the key .", "good luck !"]
    low, high = sorted(texts, key=lambda text: scored_alone(rewards, tokenizer, entry(text)))
    row = (*encode_prompt(tokenizer, entry(low).prompt), *encode_completion(tokenizer, low))
    how = {"safety_threshold": 0.15, "known": {(False, row): 1e9}}
    assert best_pooled([entry(low), entry(high)], tokenizer, asked, **how) == [entry(low)]
    safe = [entry(text, is_safety=True) for text in (low, high)]
    alone = [scored_alone(rewards, tokenizer, e) for e in safe]
    assert best_pooled(safe, tokenizer, asked, **how) == [safe[alone[1] > alone[0]]]
    assert [[tag for tag, _ in pairs] for pairs in read] == [[False], [True, True]]
    assert best_pooled([entry(low)], tokenizer, None, **how) == [entry(low)]


def test_unusable_answers_are_no_targets_however_they_score(tokenizer, rewards):
    texts = ["take the key .", "good luck !"]
    worst, best = sorted(texts, key=lambda text: scored_alone(rewards, tokenizer, entry(text)))
    entries = [entry(best, finished=False), entry(""), entry(worst), entry(best, prompt_id="cut", finished=False)]
    assert best_pooled(entries, tokenizer, rewards, safety_threshold=0.15) == [entries[2]]


# ── what is trained on ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sft(tmp_path):
    """An SFT artefact with 30 demonstrations."""
    rows = [Dialogue(f"d{i}", (Turn("user", f"q{i}"), Turn("assistant", "a")), "people") for i in range(30)]
    (tmp_path / "sft").mkdir()
    write_jsonl(tmp_path / "sft" / "demonstrations.jsonl", rows)
    return tmp_path / "sft"


@pytest.mark.parametrize(
    ("share", "count"),
    [
        (0.0, 0),
        (0.1, 2),  # of 20
        (0.25, 6),  # of 24
        (0.5, 18),
        (0.75, 30),  # 54 would be three quarters; there are 30
    ],
)
def test_demonstrations_are_a_share_of_the_whole(job_of, sft, share, count):
    best = [entry(f"answer {i}", prompt_id=str(i), round=1 + i % 2) for i in range(18)]
    rows = rejection.mixture(job_of("rejection", reads={"sft": [sft]}, sft_share=share), best)
    targets = [row for row in rows if row.source.startswith("rejection-")]
    assert [row.turns for row in targets] == [(*QUESTION, Turn("assistant", f"answer {i}")) for i in range(18)]
    assert [row.source for row in targets] == ["rejection-1", "rejection-2"] * 9
    drawn = [row for row in rows if row.source == "people"]
    assert len(drawn) == len({row.id for row in drawn}) == count
    assert len(rows) == 18 + count


# ── the stage ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def two_rounds(job_of, sft, saved, policy, monkeypatch):
    """Two rounds of the stage by two policies that are asked the same; the rows they trained on, and their folders."""
    trained, outs, real = [], [], rejection.fine_tune

    def fine_tune(policy, tokenizer, rows, job):
        trained.append(rows)
        real(policy, tokenizer, rows, job)

    monkeypatch.setattr(rejection, "fine_tune", fine_tune)
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.lm_head.weight.mul_(0.7)
    reads = {"base": [saved.policy("base")], "sft": [sft], "reward": [saved.reward("reward-1")]}
    for number, sampler in ((1, policy), (2, other)):
        reads |= {"policy": [saved.policy(f"policy-{number}", sampler)], "rejection*": tuple(outs)}
        job = job_of(
            "rejection", name=f"rejection-{number}", round=number, reads=reads, prompts=6, samples_per_prompt=3,
            temperatures=[1.0], max_new_tokens=6, epochs=1, batch_size=4, learning_rate=1e-7, sft_share=0.25,
            max_truncated=1.0,
        )  # fmt: skip
        rejection.run(job)
        outs.append(job.out)
    return trained, outs


def test_the_best_answers_of_both_rounds_are_trained_on(two_rounds, rewards, tokenizer):
    trained, outs = two_rounds
    rounds = [pools.read(out / "pool.jsonl").entries for out in outs]
    assert [{e.round for e in entries} for entries in rounds] == [{1}, {2}]
    groups = defaultdict(list)
    for e in rounds[0] + rounds[1]:
        groups[e.prompt].append(e)
    assert {len(group) for group in groups.values()} == {6}  # three answers from each round
    wanted = {}
    for turns, group in groups.items():
        ended = [e for e in group if e.finished and e.completion]
        if ended:
            wanted[turns] = max(ended, key=lambda e: scored_alone(rewards, tokenizer, e)).completion
    targets = [row for row in trained[1] if row.source.startswith("rejection")]
    assert {row.turns[:-1]: row.turns[-1].content for row in targets} == wanted
    assert len(targets) == len(wanted) > 0
    assert len(trained[1]) - len(targets) == round(len(wanted) / 3)  # a quarter of the whole are demonstrations


def test_every_round_starts_from_the_base_model(two_rounds, policy):
    """Not from the policy that sampled: with next to no learning rate the base is what comes out."""
    for out in two_rounds[1]:
        made = load_policy(out / "checkpoint", ModelConfig())
        for name, weight in policy.state_dict().items():
            torch.testing.assert_close(made.state_dict()[name], weight, atol=1e-5, rtol=0)


def test_of_every_prompt_the_answer_with_the_highest_score_is_selected(two_rounds, rewards, tokenizer):
    """S10: no selected score is below another usable one of its prompt, over all rounds."""
    trained, outs = two_rounds
    pool = [e for out in outs for e in pools.read(out / "pool.jsonl").entries if e.finished and e.completion]
    for row in trained[1]:
        if row.source.startswith("rejection"):
            own = [e for e in pool if e.prompt == row.turns[:-1]]
            scores = {e.completion: scored_alone(rewards, tokenizer, e) for e in own}
            assert scores[row.turns[-1].content] == pytest.approx(max(scores.values()), abs=1e-5)


def test_all_is_sampled_before_anything_learns(two_rounds, job_of, policy, tokenizer):
    """S10: the policy as it was when the round began gives every sample of the round again."""
    entries = pools.read(two_rounds[1][0] / "pool.jsonl").entries
    job = job_of("rejection", round=1)
    asked = rejection.training_prompts(job, side="train", count=6)
    again = sample(policy, tokenizer, asked, Sampling(3, 1.0, 6), seed=job.seed)
    assert [s.text for group in again for s in group] == [e.completion for e in entries]


# ── another run's samples ────────────────────────────────────────────────────────────────────────────────────────────


def distilling(job_of, sft, saved, pool_from, **more):
    reads = {"base": [saved.policy("base")], "sft": [sft], "reward": [saved.reward("reward-1")], "rejection*": ()}
    reads["policy"] = [saved.policy("small")]
    return job_of(
        "rejection", name="rejection-1", round=1, reads=reads, pool_from=str(pool_from), epochs=1, batch_size=4,
        learning_rate=1e-7, **more,
    )  # fmt: skip


def test_the_pool_of_another_run_is_fine_tuned_on(two_rounds, job_of, sft, saved, tmp_path):
    """Nothing is sampled; the rows are the best of the other run's samples by this run's reward models."""
    trained, outs = two_rounds
    large = tmp_path / "large" / "rejection-1"
    large.mkdir(parents=True)
    (large / "pool.jsonl").write_bytes((outs[0] / "pool.jsonl").read_bytes())
    job = distilling(job_of, sft, saved, tmp_path / "large", sft_share=0.25)
    rejection.run(job)
    assert pools.read(job.out / "pool.jsonl") == pools.read(outs[0] / "pool.jsonl")
    results = json.loads((job.out / "results.json").read_text())
    assert results["borrowed"] == len(pools.read(job.out / "pool.jsonl").entries)
    assert "samples" not in results  # the report takes those of every step for rows to show
    targets, wanted = (
        [r.turns for r in rows if r.source.startswith("rejection")] for rows in (trained[-1], trained[0])
    )
    assert targets == wanted
    assert load_policy(job.out / "checkpoint", ModelConfig())


def test_a_pool_that_is_not_there_is_refused(job_of, sft, saved, tmp_path):
    with pytest.raises(MissingError, match=r"rejection-1/pool.jsonl does not exist") as refused:
        rejection.run(distilling(job_of, sft, saved, tmp_path / "nobody"))
    assert refused.value.where == "rejection.pool_from"


# ── what cannot be learned from ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [0.5, 0.49])
def test_a_policy_that_never_stops_is_noticed(job_of, limit):
    samples = [Sample(prompt(), (8,), Completion((9,), (0.0,), end), "a") for end in ("stop", "length")]
    job = job_of("rejection", max_truncated=limit)
    if limit == 0.5:
        rejection.check_ends(job, samples)
        return
    with pytest.raises(RlhfError, match=r"50% of 2 samples never .* rejection\.max_truncated \(49%\)"):
        rejection.check_ends(job, samples)


def test_a_prompt_that_leaves_no_room_is_refused_before_any_model_is_loaded(job_of, saved, monkeypatch):
    monkeypatch.setattr(rejection, "RewardModels", None)
    reads = {"policy": [saved.policy("sft")], "reward": [saved.reward("reward-1")]}
    with pytest.raises(DataError, match="an answer of 120 exceed the context of 128"):
        rejection.run(job_of("rejection", round=1, reads=reads, prompts=4, max_new_tokens=120))


def test_a_pool_without_a_target_is_refused(job_of, sft, saved, tmp_path):
    large = tmp_path / "large" / "rejection-1"
    large.mkdir(parents=True)
    pools.append(large / "pool.jsonl", [entry(""), entry("take it", k=1, finished=False)])
    with pytest.raises(RlhfError, match="none of 2 samples can be a target: 1 are empty, 1 never ended") as met:
        rejection.run(distilling(job_of, sft, saved, tmp_path / "large"))
    assert [hint.rpartition(" ")[2] for hint in met.value.hints] == ["sft.epochs", "rejection.max_new_tokens"]


def test_a_score_that_is_no_number_is_refused(tokenizer, rewards):
    with torch.no_grad():
        rewards.safety.score.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="a score of the safety model is not finite"):
        best_pooled([entry(is_safety=True)], tokenizer, rewards, safety_threshold=0.15)
