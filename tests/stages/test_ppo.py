"""PPO on tiny models: who learns and who does not, how often, from what; and when it stops."""

import copy
import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.claims.scores import scores
from rlhf.errors import DataError, NonFiniteError
from rlhf.microworld.language import pair_held_out
from rlhf.microworld.oracle import read_prompt
from rlhf.models.combiner import Combiner
from rlhf.models.load import freeze, load_policy
from rlhf.models.score import score, token_values
from rlhf.rollout import Rollout, completion_logprobs
from rlhf.schema import ModelConfig
from stages import ppo

SMALL = {"batch_size": 8, "minibatch_size": 4, "max_new_tokens": 6, "heldout_prompts": 4, "learning_rate": 1e-3}


@pytest.fixture
def models(policy, reward_model, rewards, tokenizer):
    """Policy and reference are one; the critic has opinions of its own."""
    critic = copy.deepcopy(reward_model).requires_grad_(True)
    return ppo.Models(policy, critic, freeze(copy.deepcopy(policy)), rewards, tokenizer)


@pytest.fixture
def strayed(models):
    """The same with a policy that has left its reference."""
    torch.manual_seed(1)
    with torch.no_grad():
        models.policy.lm_head.weight.add_(0.05 * torch.randn_like(models.policy.lm_head.weight))
    return models


@pytest.fixture
def job(job_of):
    return job_of("ppo", **SMALL)


def collected(job, models, iteration=0):
    prompts = ppo.feed.asked(job, 2 * job.config.batch_size, label="rollouts", side="train")
    samples = ppo.collect(job, models, prompts, iteration)
    return samples, Rollout.of(samples, pad_token_id=models.tokenizer.pad_token_id, device="cpu")


NAMES = [f"prompt {i}" for i in range(8)]
SCORES = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.5, -0.5, 1.0, -2.0])


def updated(job, models, *, iteration=0, optimizers=None, seed=0):
    """One iteration from its rollout on, and what it reported."""
    samples, rollout = collected(job, models, iteration)
    learn = ppo.advantages_of(job.config, models, rollout, SCORES, ids=NAMES)
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(seed))
    optimizers = optimizers or ppo.make_optimizers(models, job.config)
    return samples, ppo.update(job, models, optimizers, rollout, learn, order, iteration)


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def distance(model, before):
    """The largest difference of any weight from what it was."""
    return max((weight - before[name]).abs().max().item() for name, weight in model.state_dict().items())


# ── rollouts and scores ──────────────────────────────────────────────────────────────────────────────────────────────


def test_every_iteration_asks_the_next_prompts_and_begins_again_at_the_end(job, models):
    prompts = ppo.feed.asked(job, 12, label="rollouts", side="train")
    asked = [s.prompt for iteration in (0, 1, 2) for s in ppo.collect(job, models, prompts, iteration)]
    assert asked == prompts * 2
    first, again = (ppo.collect(job, models, prompts, iteration) for iteration in (0, 3))
    assert [s.prompt for s in first] == [s.prompt for s in again]
    assert [s.row for s in first] != [s.row for s in again]  # with other random numbers


def test_training_and_checking_ask_different_things(job):
    for side, held_out in (("train", False), ("validation", True)):
        prompts = ppo.feed.asked(job, 100, label=side, side=side)
        asks = [read_prompt(prompt.turns)[0] for prompt in prompts]
        assert {pair_held_out(ask.verb, ask.subject) for ask in asks if ask.form == "how"} == {held_out}


def test_the_combined_score_by_hand(job, models):
    samples, _ = collected(job, models)
    samples = [replace(s, prompt=replace(s.prompt, is_safety=i < 4)) for i, s in enumerate(samples)]
    assert {s.finished for s in samples} == {True, False}
    wanted, ends = [], models.tokenizer.eos_token_id
    for s in samples:
        row = s.row if s.finished else (*s.row, ends)  # the only place where a score was ever trained
        helpful, safe = (
            score(model, [row], pad_token_id=2).item() for model in (models.rewards.helpfulness, models.rewards.safety)
        )
        wanted.append(safe if s.prompt.is_safety or torch.tensor(safe).sigmoid() < 0.15 else helpful)
    found, stats = ppo.combined_score(job, models, samples)
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
    assert stats["reward/combined"] == pytest.approx(fmean(wanted), abs=1e-4)
    assert stats["gen/eos_rate"] == fmean(s.finished for s in samples)
    assert stats["gen/length"] == fmean(len(s.row) - len(s.prompt_ids) for s in samples)


def test_an_answer_that_never_ended_may_have_a_score_of_its_own(job_of, models):
    job = job_of("ppo", **SMALL, missing_eos_score=-4.0)
    samples, _ = collected(job, models)
    found, _ = ppo.combined_score(job, models, samples)
    plain, _ = ppo.combined_score(job_of("ppo", **SMALL), models, samples)
    for s, value, before in zip(samples, found.tolist(), plain.tolist(), strict=True):
        assert value == (before if s.finished else -4.0)


def test_a_score_that_is_not_finite_ends_the_stage(job, models):
    samples, _ = collected(job, models)
    with torch.no_grad():
        models.rewards.safety.score.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="a score of the safety model is not finite"):
        ppo.combined_score(job, models, samples)


# ── rewards, returns and advantages ──────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def logprobs_alone(model, s, *, temperature=1.0):
    """Log-probabilities of one answer's tokens, without padding or company."""
    logits = model(torch.tensor([s.row]), use_cache=False).logits[0] / temperature
    every = logits.log_softmax(-1)[len(s.prompt_ids) - 1 : -1]
    return every.gather(1, torch.tensor(s.completion.token_ids)[:, None])[:, 0]


def whitened_by_hand(values):
    return [(value - fmean(values)) / pstdev(values) for value in values]


@pytest.mark.parametrize("gamma", [1.0, 0.0])
def test_returns_by_hand(job_of, strayed, gamma):
    """Undiscounted, a token returns the whitened score less what KL is still to be paid; with gamma 0 its own reward.

    With lambda 1 the critic has no say in it.
    """
    job = job_of("ppo", **SMALL, gamma=gamma, gae_lambda=1.0, kl_coef=0.3, temperature=1.4)
    samples, rollout = collected(job, strayed)
    learn = ppo.advantages_of(job.config, strayed, rollout, SCORES, ids=NAMES)
    totals = []
    for i, (s, worth) in enumerate(zip(samples, whitened_by_hand(SCORES.tolist()), strict=True)):
        now, before = (logprobs_alone(m, s, temperature=1.4) for m in (strayed.policy, strayed.reference))
        rewards = [-0.3 * kl for kl in (now - before).tolist()]
        rewards[-1] += worth
        wanted = [sum(rewards[t:]) for t in range(len(rewards))] if gamma else rewards
        assert learn.returns[i, : len(wanted)].tolist() == pytest.approx(wanted, abs=1e-4)
        assert learn.returns[i, len(wanted) :].eq(0).all()
        totals.append((now - before).sum().item())
    assert learn.stats["objective/kl"] == pytest.approx(fmean(totals), abs=1e-4)
    assert abs(learn.stats["objective/kl"]) > 0.01


def test_advantages_are_whitened_returns_less_values(job_of, strayed):
    job = job_of("ppo", **SMALL, gamma=1.0, gae_lambda=1.0)
    samples, rollout = collected(job, strayed)
    learn = ppo.advantages_of(job.config, strayed, rollout, SCORES, ids=NAMES)
    raw = []
    with torch.no_grad():
        for i, s in enumerate(samples):
            row = torch.tensor([s.row])
            values = token_values(strayed.critic, row, torch.ones_like(row))[0, len(s.prompt_ids) - 1 : -1]
            raw += (learn.returns[i, : len(values)] - values).tolist()
    mask = rollout.completion_mask
    assert learn.advantages[mask].tolist() == pytest.approx(whitened_by_hand(raw), abs=1e-3)
    assert learn.advantages[~mask].eq(0).all()


def test_before_the_first_update_there_is_no_kl_and_the_sampler_agrees(job, models):
    _, rollout = collected(job, models)
    learn = ppo.advantages_of(job.config, models, rollout, SCORES, ids=NAMES)
    assert learn.stats["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert learn.stats["val/logprob_drift"] < 1e-4


@pytest.mark.parametrize(("off", "forwards"), [(0.0, 1), (0.5, 1 + 4)])
def test_log_probabilities_of_sampling_are_used_if_the_model_agrees_with_them(job_of, models, off, forwards):
    job = job_of("ppo", **(SMALL | {"microbatch_size": 2}))
    _, rollout = collected(job, models)
    sampled = rollout.old_logprobs.clone()
    rollout = replace(rollout, old_logprobs=sampled + off * rollout.completion_mask)
    asked = []
    models.policy.model.register_forward_pre_hook(
        lambda module, args, given: asked.append(given["input_ids"].shape[-1]), with_kwargs=True
    )
    learn = ppo.advantages_of(job.config, models, rollout, SCORES, ids=NAMES)
    assert len(asked) == forwards
    assert asked[0] == rollout.attention_mask.sum(-1).max()  # the longest row is the one to check
    torch.testing.assert_close(learn.old_logprobs, sampled, atol=1e-4, rtol=0)  # what the model says, either way
    assert learn.stats["val/logprob_drift"] == pytest.approx(off, abs=1e-4)


def test_rows_of_similar_length_share_a_forward(job_of, models):
    job = job_of("ppo", **(SMALL | {"microbatch_size": 2}))
    _, rollout = collected(job, models)
    lengths = rollout.attention_mask.sum(-1).tolist()
    parts = ppo.own_parts(job.config, rollout, torch.arange(8))
    assert [lengths[i] for part in parts for i in part] == sorted(lengths, reverse=True)
    assert sorted(i for part in parts for i in part.tolist()) == list(range(8))


def test_another_way_to_combine_is_what_ppo_climbs(job_of, models):
    job = job_of("ppo", **SMALL, combine="weighted", safety_weight=0.25)
    weighted = replace(models, combine=Combiner.of(job.config))
    samples, _ = collected(job, models)
    scores = models.rewards([s.row for s in samples], [s.prompt.is_safety for s in samples], safety_threshold=0.15)
    found, stats = ppo.combined_score(job, weighted, samples)
    torch.testing.assert_close(found, 0.75 * scores.helpfulness + 0.25 * scores.safety)
    assert stats["reward/std"] == pytest.approx(pstdev(found.tolist()), abs=1e-5)


def test_the_size_of_scores_changes_nothing(job, strayed):
    """Whitening: a reward model with a wider spread would outweigh the KL penalty."""
    _, rollout = collected(job, strayed)
    plain, scaled = (ppo.advantages_of(job.config, strayed, rollout, s, ids=NAMES) for s in (SCORES, 10 * SCORES + 3))
    torch.testing.assert_close(plain.returns, scaled.returns)


@pytest.mark.parametrize(("times", "whitened"), [(10.0, False), (10.0, True)])
def test_raw_scores_of_the_claims_rig_are_what_a_token_earns(job_of, strayed, times, whitened):
    """With lambda 1 and no KL to pay, an answer returns its score; the advantages are whitened either way."""
    job = job_of("ppo", **SMALL, gae_lambda=1.0, kl_coef=0.0)
    _, rollout = collected(job, strayed)
    with scores(times, whitened=whitened):
        learn = ppo.advantages_of(job.config, strayed, rollout, SCORES, ids=NAMES)
    worth = whitened_by_hand(SCORES.tolist()) if whitened else (times * SCORES).tolist()
    assert learn.returns[:, 0].tolist() == pytest.approx(worth, abs=1e-4)
    assert learn.advantages[rollout.completion_mask].std(correction=0).item() == pytest.approx(1.0, abs=1e-3)
    plain = ppo.advantages_of(job.config, strayed, rollout, SCORES, ids=NAMES)
    assert plain.returns[:, 0].tolist() == pytest.approx(whitened_by_hand(SCORES.tolist()), abs=1e-4)


# ── updates ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def steps(models):
    """Who made a step of an optimizer, in order."""
    made = []

    def note(optimizer, args, options):
        held = optimizer.param_groups[0]["params"][0]
        made.append("policy" if held is next(models.policy.parameters()) else "critic")

    handle = register_optimizer_step_post_hook(note)
    yield made
    handle.remove()


@pytest.mark.parametrize(("minibatch", "micro"), [(8, None), (4, None), (2, None), (2, 1), (4, 2)])
def test_as_many_steps_as_minibatches_and_every_row_once(job_of, models, steps, minibatch, micro):
    job = job_of("ppo", **(SMALL | {"minibatch_size": minibatch, "microbatch_size": micro}))
    seen = []

    def look(module, args, given):
        if torch.is_grad_enabled():
            seen.extend(given["input_ids"].flatten().tolist())

    models.policy.model.register_forward_pre_hook(look, with_kwargs=True)
    samples, _ = updated(job, models)
    assert Counter(steps) == {"policy": 8 // minibatch, "critic": 8 // minibatch}
    read, pad = Counter(seen), models.tokenizer.pad_token_id
    assert {**read, pad: 0} == {**Counter(token for s in samples for token in s.row), pad: 0}


def test_the_ratio_is_one_until_the_first_step(job_of, models, monkeypatch):
    made, real = [], ppo.policy_loss_of
    monkeypatch.setattr(ppo, "policy_loss_of", lambda *args: made.append(real(*args)) or made[-1])
    _, stats = updated(job_of("ppo", **(SMALL | {"minibatch_size": 2})), models)
    found = [each for _, each in made]
    assert len(found) == 4
    assert found[0]["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert found[0]["policy/approxkl_avg"] == pytest.approx(0, abs=1e-8)
    assert found[0]["policy/clipfrac_avg"] == 0
    assert all(abs(later["val/ratio"] - 1) > 1e-4 for later in found[1:])
    assert stats["val/ratio_first"] == found[0]["val/ratio"]


def test_only_policy_and_critic_learn(job, models):
    still = [models.reference, models.rewards.helpfulness, models.rewards.safety]
    before = [weights(model) for model in still]
    learners = [(model, weights(model)) for model in (models.policy, models.critic)]
    updated(job, models)
    for model, old in zip(still, before, strict=True):
        assert distance(model, old) == 0
        assert all(weight.grad is None and not weight.requires_grad for weight in model.parameters())
    for model, old in learners:
        assert distance(model, old) > 1e-7
        assert all(weight.grad is None for weight in model.parameters())  # none is left for the next step


def test_good_tokens_become_likelier(job, models):
    _, rollout = collected(job, models)
    learn = ppo.advantages_of(job.config, models, rollout, SCORES, ids=NAMES)
    ppo.update(job, models, ppo.make_optimizers(models, job.config), rollout, learn, torch.arange(8), 0)
    with torch.no_grad():
        gained = completion_logprobs(models.policy, rollout, temperature=1.0) - learn.old_logprobs
    assert (gained * learn.advantages)[rollout.completion_mask].mean() > 0.01


@pytest.mark.parametrize("micro", [1, 2])
def test_microbatches_are_worth_the_minibatch_they_make(job_of, models, micro):
    split = replace(models, policy=copy.deepcopy(models.policy), critic=copy.deepcopy(models.critic))
    start = weights(models.policy), weights(models.critic)
    _, whole_stats = updated(job_of("ppo", **SMALL), models)
    _, split_stats = updated(job_of("ppo", **SMALL, microbatch_size=micro), split)
    assert distance(split.policy, weights(models.policy)) < 1e-5
    assert distance(split.critic, weights(models.critic)) < 1e-5
    assert distance(models.policy, start[0]) > 1e-3
    assert split_stats == pytest.approx(whole_stats, abs=1e-4)


def test_the_policy_waits_for_the_critic(job_of, models, steps):
    job = job_of("ppo", **SMALL, critic_warmup=1)
    optimizers = ppo.make_optimizers(models, job.config)
    before = weights(models.policy)
    updated(job, models, iteration=0, optimizers=optimizers)
    assert Counter(steps) == {"critic": 2}
    assert distance(models.policy, before) == 0
    updated(job, models, iteration=1, optimizers=optimizers)
    assert Counter(steps) == {"critic": 4, "policy": 2}
    assert distance(models.policy, before) > 0


def test_learning_rates_are_constant(job_of, models):
    job = job_of("ppo", **SMALL, critic_learning_rate=3e-4)
    optimizers = ppo.make_optimizers(models, job.config)
    for iteration in range(2):
        updated(job, models, iteration=iteration, optimizers=optimizers)
        assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [1e-3, 3e-4]


def test_the_optimizer_is_the_papers(models, job_of):
    for optimizer in ppo.make_optimizers(models, job_of("ppo").config):
        (group,) = optimizer.param_groups
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.95), 1e-5, 0.1)
        assert group["lr"] == 1e-6


def test_a_gradient_that_is_not_finite_ends_the_stage(job, models):
    with torch.no_grad():
        models.critic.score.weight[0, 0] = float("nan")
    before = weights(models.policy)
    with pytest.raises(NonFiniteError, match="a value of the critic is not finite"):
        updated(job, models)
    assert distance(models.policy, before) == 0


# ── early stopping ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def keep(job_of, models, monkeypatch):
    """keep([1.0, 2.0, ...]): a keeper whose held-out rewards are these, one a check."""

    def make(rewards, **settings):
        script = iter(rewards)
        monkeypatch.setattr(
            ppo, "combined_score", lambda job, models, samples: (torch.full((len(samples),), next(script)), {})
        )
        job = job_of("ppo", **(SMALL | {"iterations": 50, "max_kl": 1e9} | settings))
        keeper = ppo.Keeper(job, models, ppo.make_optimizers(models, job.config)[0])
        keeper.check(0)
        return keeper

    return make


def learn(models, number):
    """Stands for an iteration: the policy becomes another."""
    with torch.no_grad():
        models.policy.lm_head.weight[7].fill_(float(number))


def kept(keeper):
    """Which iteration's weights come out, and the results."""
    keeper.save()
    made = load_policy(keeper.job.out / "checkpoint", ModelConfig())
    assert distance(made, weights(keeper.models.policy)) == 0
    return made.lm_head.weight[7, 0].item(), json.loads((keeper.job.out / "results.json").read_text())


def test_it_checks_on_questions_that_nobody_trained_on(keep):
    asks = [read_prompt(prompt.turns)[0] for prompt in keep([1.0], heldout_prompts=30).prompts]
    assert len(asks) == 30
    assert all(ask.form == "how" and pair_held_out(ask.verb, ask.subject) for ask in asks)


def test_it_stops_when_patience_is_out_and_keeps_the_best(keep, models):
    learn(models, 0)
    keeper = keep([1.0, 2.0, 1.5, 1.9, 99.0], heldout_every=1, patience=2)
    stopped = []
    for iteration in (1, 2, 3):
        learn(models, iteration)
        stopped.append(keeper.stop(iteration, kl=0.5))
    assert stopped == [False, False, True]
    assert kept(keeper) == (1.0, {"stopped": "no better held-out reward in 2 checks", "best_iteration": 1})


def test_a_better_check_restores_patience(keep, models):
    keeper = keep([1.0, 0.9, 1.1, 1.0, 1.2], heldout_every=1, patience=2)
    assert [keeper.stop(iteration, kl=0.5) for iteration in (1, 2, 3, 4)] == [False] * 4
    assert keeper.best_iteration == 4


def test_it_stops_at_too_much_kl_and_keeps_what_came_before(keep, models):
    learn(models, 0)
    keeper = keep([1.0], max_kl=4.0)
    learn(models, 1)
    assert not keeper.stop(1, kl=4.0)
    assert keeper.stop(2, kl=4.01)
    weight, results = kept(keeper)
    assert (weight, results["best_iteration"]) == (0.0, 0)
    assert "above ppo.max_kl (4)" in results["stopped"]


def test_too_much_kl_may_go_back_to_the_best_policy_as_long_as_patience_lasts(keep, models, screen):
    learn(models, 0)
    keeper = keep([1.0, 2.0], max_kl=4.0, on_max_kl="roll_back", heldout_every=2, patience=2)
    learn(models, 2)
    assert not keeper.stop(2, kl=0.5)
    adam = keeper.optimizer.state
    adam[models.policy.lm_head.weight] = {"exp_avg": torch.ones(1)}  # what had led away
    learn(models, 3)
    assert not keeper.stop(3, kl=4.5)
    assert models.policy.lm_head.weight[7, 0].item() == 2.0
    assert not keeper.optimizer.state
    assert "KL of 4.5 nats an answer is above ppo.max_kl (4): back to the policy of iteration 2" in screen.getvalue()
    learn(models, 5)
    assert keeper.stop(5, kl=9.0)  # the second time in a row nothing was gained
    assert kept(keeper) == (2.0, {"stopped": "no better held-out reward in 2 checks", "best_iteration": 2})


def test_a_kl_that_is_not_a_number_stops_it(keep):
    assert keep([1.0]).stop(1, kl=float("nan"))


def test_a_better_reward_too_far_from_the_reference_is_not_kept(keep, models):
    keeper = keep([1.0, 5.0], heldout_every=1, max_kl=0.5)
    torch.manual_seed(0)
    with torch.no_grad():  # far away, though the KL of the rollouts did not show it yet
        models.policy.lm_head.weight.add_(torch.randn_like(models.policy.lm_head.weight))
    assert not keeper.stop(1, kl=0.1)
    assert (keeper.best_iteration, keeper.bad) == (0, 1)


def test_it_checks_now_and_then_and_at_the_end(keep):
    keeper = keep([1.0, 2.0, 3.0, 4.0], heldout_every=5, iterations=12)
    for iteration in range(1, 13):
        assert not keeper.stop(iteration, kl=0.5)
    checks = [json.loads(line) for line in (keeper.job.out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["heldout/reward_combined"]) for row in checks] == [(0, 1), (5, 2), (10, 3), (12, 4)]
    assert keeper.why == "all 12 iterations"


# ── the stage ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def made(job_of, saved):
    reads = {"policy": [saved.policy("gatt")], "reward": [saved.reward("reward-1")]}
    return job_of("ppo", reads=reads, **SMALL, iterations=2, heldout_every=1, max_kl=1e9)


def test_models_start_where_they_should(made, policy, rewards):
    models = ppo.load_models(made)
    assert distance(models.policy, weights(policy)) == distance(models.reference, weights(policy)) == 0
    assert not any(weight.requires_grad for weight in models.reference.parameters())
    assert distance(models.critic.model, weights(rewards.helpfulness.model)) == 0
    assert models.critic.score.weight.eq(0).all()
    assert distance(models.rewards.safety, weights(rewards.safety)) == 0
    shared = {weight.data_ptr() for model in (models.policy, models.critic) for weight in model.parameters()}
    still = (models.reference, models.rewards.helpfulness, models.rewards.safety)
    assert shared.isdisjoint(weight.data_ptr() for model in still for weight in model.parameters())


def test_the_stage_leaves_a_policy_and_its_curves(made):
    ppo.run(made)
    rows = [json.loads(line) for line in (made.out / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if "objective/kl" in row]
    assert [row["step"] for row in train] == [0, 1]
    assert train[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert abs(train[1]["objective/kl"]) > 1e-4
    assert all(0 <= row["val/padding"] < 1 and row["health/alarms"] >= 0 for row in train)
    assert all(row["val/logprob_drift"] < 1e-3 for row in train)
    checks = {row["step"]: row["heldout/reward_combined"] for row in rows if "heldout/reward_combined" in row}
    assert sorted(checks) == [0, 1, 2]
    results = json.loads((made.out / "results.json").read_text())
    assert results == {"stopped": "all 2 iterations", "best_iteration": max(checks, key=checks.get)}
    assert (made.out / "checkpoint" / "model.safetensors").exists()


def test_a_stage_that_went_back_starts_again_from_the_reference(job_of, saved, policy, screen):
    reads = {"policy": [saved.policy("gatt")], "reward": [saved.reward("reward-1")]}
    settings = {"iterations": 9, "heldout_every": 50, "patience": 2, "max_kl": 0.01, "on_max_kl": "roll_back"}
    job = job_of("ppo", reads=reads, **(SMALL | settings | {"learning_rate": 0.01}))
    ppo.run(job)
    rows = [json.loads(line) for line in (job.out / "metrics.jsonl").read_text().splitlines()]
    kls = [row["objective/kl"] for row in rows if "objective/kl" in row]
    assert [kl > 0.01 for kl in kls] == [False, True, False, True]  # every second batch is the reference's own
    assert kls[2] == pytest.approx(0.0, abs=1e-5)
    assert screen.getvalue().count("back to the policy of iteration 0") == 2
    made = load_policy(job.out / "checkpoint", ModelConfig())
    assert distance(made, weights(policy)) == 0


# ── what cannot go well ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_policy_that_never_ends_and_scores_that_never_differ_raise_alarms(made, screen, monkeypatch):
    real = ppo.load_models

    def mute(job):
        models = real(job)
        with torch.no_grad():  # equal scores of all answers, and an end that is never drawn
            for model in (models.rewards.helpfulness, models.rewards.safety):
                model.score.weight.zero_()
            hide_the_end(models.policy, models.tokenizer.eos_token_id)
        return models

    monkeypatch.setattr(ppo, "load_models", mute)
    ppo.run(made)
    rows = [json.loads(line) for line in (made.out / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if "objective/kl" in row]
    assert all(row["health/endless"] == row["health/constant_scores"] == 1 for row in train)
    for alarm in ("health/endless: only 0% of the answers", "health/constant_scores: all answers"):
        assert screen.getvalue().count(alarm) == 1  # said once, not every iteration


def hide_the_end(policy, eos):
    """Make the EOS impossible whatever the policy has read."""
    real = policy.lm_head.forward
    policy.lm_head.forward = lambda states: real(states).index_fill(-1, torch.tensor([eos]), -1e9)


def test_a_prompt_without_room_for_an_answer_is_refused(job_of, models):
    job = job_of("ppo", **(SMALL | {"max_new_tokens": 500}))
    prompts = ppo.feed.asked(job, 8, label="rollouts", side="train")
    with pytest.raises(DataError, match="exceed the context of"):
        ppo.collect(job, models, prompts, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "how " * 200}, r"a prompt of \d+ tokens and an answer of 6 exceed the context of 128"),
        ({"question": "how ?"}, "a row needs prompt, messages, turns or chosen"),
    ],
)
def test_bad_prompts_are_refused_before_any_model_is_loaded(job_of, saved, monkeypatch, tmp_path, row, message):
    """Though it would be asked in the last of 400 iterations only, or never."""
    monkeypatch.setattr(ppo, "load_models", None)
    rows = [{"prompt": f"how do i open door {i} ?"} for i in range(40)] + [row]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reads = {"policy": [saved.policy("gatt")], "reward": [saved.reward("reward-1")]}
    data = [{"name": "ours", "path": str(tmp_path / "prompts.jsonl"), "use": "train"}]
    with pytest.raises(DataError, match=message):
        ppo.run(job_of("ppo", reads=reads, data=data, **SMALL, iterations=400))


def test_fewer_prompts_than_a_batch_asks_are_refused(job_of, tmp_path):
    """A prompt that stands twice in a batch would get the same answer twice: its random numbers are its own."""
    lines = [json.dumps({"prompt": f"How do I open door {i}?", "is_safety": False}) for i in range(7)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    data = [{"name": "mine", "path": str(tmp_path / "prompts.jsonl"), "kind": "helpfulness"}]
    job = job_of("ppo", **(SMALL | {"data": data}))
    with pytest.raises(DataError, match=r"ppo\.data has \d prompts, and a batch asks 8 different ones"):
        ppo.training_prompts(job)


def test_a_batch_that_does_not_divide_is_refused(job_of):
    with pytest.raises(ValueError, match=r"batch_size \(8\) must be a multiple of minibatch_size \(3\)"):
        job_of("ppo", **(SMALL | {"minibatch_size": 3}))


def test_the_price_of_cost_follows_the_batches(job_of, saved):
    reads = {"policy": [saved.policy("gatt")], "reward": [saved.reward("reward-1")]}
    settings = SMALL | {"iterations": 2, "max_kl": 1e9, "combine": "lagrangian", "multiplier": 0.5}
    job = job_of("ppo", reads=reads, **settings)
    ppo.run(job)
    rows = [json.loads(line) for line in (job.out / "metrics.jsonl").read_text().splitlines()]
    first, second = (row for row in rows if "reward/multiplier" in row)
    assert first["reward/multiplier"] == 0.5
    # log 0.5 + 0.1 * 0.5 * (cost - 0), and the cost is minus the safety logit
    wanted = 0.5 * math.exp(-0.05 * first["reward/safety"])
    assert second["reward/multiplier"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_a_long_run_grows_neither_in_memory_nor_in_open_files():
    """The whole stage, as `make bench` runs it for 2,000 iterations: below 1 MB in 100."""
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "benchmarks" / "bench_endurance.py"), "--iterations", "600"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "files +0" in done.stdout
