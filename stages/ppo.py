"""PPO on the piecewise reward, held near the reference by a KL penalty (3.2.3)."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data import feed
from rlhf.data.types import Prompt
from rlhf.errors import DataError
from rlhf.evaluation.gold import gold_of
from rlhf.finite import require_finite
from rlhf.functional.gae import gae
from rlhf.functional.kl import kl_estimate, token_rewards
from rlhf.functional.logprobs import entropy
from rlhf.functional.ppo import explained_variance, policy_loss, value_loss
from rlhf.functional.whiten import moments, whiten
from rlhf.generation.protocol import Sampling
from rlhf.generation.transformers import InProcess
from rlhf.models.adapters import StartOf
from rlhf.models.combiner import Combiner
from rlhf.models.gate import check_gate
from rlhf.models.load import freeze, load_policy, load_reward_model, load_tokenizer, save, without_dropout
from rlhf.models.reward_models import RewardModels
from rlhf.models.shared import Learnt, clip, learners, learning, parts_of, shared, whole
from rlhf.pipeline import Job
from rlhf.processes import team
from rlhf.rollout import (
    Rollout,
    Sample,
    completion_choices,
    completion_logprobs,
    completion_values,
    mean_kl,
    padding_share,
    require_fit,
    sample,
)
from rlhf.tracking.health import Watch, length_slope
from rlhf.training.early_stopping import EarlyStopping

STATISTICS = (
    *("loss/policy_avg", "loss/value_avg", "policy/clipfrac_avg", "policy/approxkl_avg", "val/ratio"),
    *("objective/entropy", "val/ratio_first"),
)


@dataclass(frozen=True)
class Models:
    """The five models of PPO: two learn, three are frozen."""

    policy: PreTrainedModel
    critic: PreTrainedModel
    reference: PreTrainedModel | StartOf
    rewards: RewardModels
    tokenizer: PreTrainedTokenizerBase
    combine: Combiner = field(default_factory=Combiner)


def run(job: Job) -> None:
    """Climb the combined reward; keep the policy that was best on held-out prompts."""
    config, track = job.config, job.track
    check_gate(job.one("reward"), config, stage="ppo", say=track.say)
    prompts = training_prompts(job)  # first: what is wrong with one is said before models are loaded
    models = load_models(job)
    optimizers = make_optimizers(models, config)
    keeper = Keeper(job, models, optimizers[0])
    track.ledger_of("ppo", [p.id for p in prompts], draws=config.batch_size, epochs=config.iterations)
    state = {"policy": keeper.policy, "critic": Learnt(models.critic), "combine": models.combine, "keeper": keeper}
    state |= {"watch": keeper.watch, "policy_optimizer": optimizers[0], "critic_optimizer": optimizers[1]}
    cut = bool(parts_of(models.policy))
    with track.progress(config.iterations, "ppo") as bar:
        for iteration in job.saves.range(config.iterations, skipped=bar.advance, cut=cut, **state):
            if iteration == 0:
                keeper.check(0)  # the policy as it came may turn out to be the best
            samples = collect(job, models, prompts, iteration)
            score, stats = combined_score(job, models, samples)
            rollout = Rollout.of(samples, pad_token_id=models.tokenizer.pad_token_id, device=models.policy.device)
            learn = advantages_of(config, models, rollout, score, ids=[s.prompt.id for s in samples])
            numbers = torch.Generator().manual_seed(job.seed_of(f"minibatches {iteration}"))
            order = torch.randperm(len(rollout), generator=numbers)
            stats |= learn.stats | update(job, models, optimizers, rollout, learn, order, iteration)
            stats |= models.combine.follow(stats["reward/safety"])
            seen = stats | keeper.watch.look(stats)
            track.log(seen | {"reward/combined_histogram": score.tolist()}, step=iteration)
            bar.advance(1, reward=stats["reward/combined"], kl=stats["objective/kl"])
            if keeper.stop(iteration + 1, kl=stats["objective/kl"]):
                break
    keeper.save()


def load_models(job: Job) -> Models:
    """Policy and reference start equal; the critic starts as the helpfulness model with a new head (ours)."""
    start, model = job.one("policy") / "checkpoint", job.recipe.model
    policy = shared(without_dropout(load_policy(start, model)))
    critic = without_dropout(load_reward_model(job.one("reward") / "checkpoint" / "helpfulness", model))
    torch.nn.init.zeros_(critic.score.weight)
    critic = shared(critic)
    reference = StartOf(policy) if model.lora.rank else freeze(copy.deepcopy(policy))
    tokenizer = load_tokenizer(start)
    rewards = RewardModels.load(job.one("reward"), model, reads=tokenizer)
    return Models(policy, critic, reference, rewards, tokenizer, Combiner.of(job.config))


def make_optimizers(models: Models, config) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """AdamW with a constant learning rate, one for the policy and one for the critic."""
    common = {"betas": (config.beta1, config.beta2), "eps": config.eps, "weight_decay": config.weight_decay}
    common["fused"] = True  # one pass over the weights, which a step of few answers otherwise mostly waits for
    return (
        torch.optim.AdamW(learners(models.policy), lr=config.learning_rate, **common),
        torch.optim.AdamW(learners(models.critic), lr=config.critic_learning_rate, **common),
    )


def training_prompts(job: Job) -> list[Prompt]:
    """Those of all iterations; fewer are gone through again, with other random numbers.

    Raises:
        DataError: if one leaves no room for its answer, or a batch would ask one twice, and get the same answer twice.
    """
    size = job.config.batch_size
    prompts = feed.asked(job, job.config.iterations * size, label="rollouts")
    if len(prompts) < size:
        hints = [f"ppo.batch_size={len(prompts)} and a ppo.minibatch_size that divides it", "or name more ppo.data"]
        raise DataError(f"ppo.data has {len(prompts)} prompts, and a batch asks {size} different ones", hints=hints)
    start = job.one("policy") / "checkpoint"
    require_fit(start, prompts, load_tokenizer(start), longest=job.config.max_new_tokens)
    return prompts


def collect(job: Job, models: Models, prompts: list[Prompt], iteration: int) -> list[Sample]:
    """Answers to the next `batch_size` prompts, by the policy as it is now."""
    start, size = iteration * job.config.batch_size, job.config.batch_size
    asked = [prompts[i % len(prompts)] for i in range(start, start + size)]
    return answered(job, models, asked, label=f"rollout {iteration}")


def answered(job: Job, models: Models, prompts: list[Prompt], *, label: str) -> list[Sample]:
    """One answer to each prompt."""
    sampling = Sampling(1, job.config.temperature, job.config.max_new_tokens)
    engine = InProcess(models.policy, job.recipe.generation.rows_per_batch)
    with whole(models.policy):
        groups = sample(engine, models.tokenizer, prompts, sampling, seed=job.seed_of(label))
    return [group[0] for group in groups]


def combined_score(job: Job, models: Models, samples: list[Sample]) -> tuple[Tensor, dict[str, float]]:
    """R_c of eq. 4 for every answer, in logits and not yet whitened."""
    rows, tags = [s.row for s in samples], [s.prompt.is_safety for s in samples]
    scores = models.rewards(rows, tags, safety_threshold=job.config.safety_threshold)
    finished = torch.tensor([s.finished for s in samples])
    combined = models.combine(scores)
    if job.config.missing_eos_score is not None:
        combined = combined.where(finished, torch.full_like(combined, job.config.missing_eos_score))
    lengths = [len(s.completion.token_ids) for s in samples]
    return combined, {
        "reward/helpfulness": scores.helpfulness.mean().item(),
        "reward/safety": scores.safety.mean().item(),
        "reward/combined": combined.mean().item(),
        "reward/std": combined.std(correction=0).item(),
        "reward/length_slope": length_slope(lengths, combined.tolist()),
        "gen/eos_rate": finished.float().mean().item(),
        "gen/length": sum(lengths) / len(lengths),
    }


@dataclass(frozen=True)
class Learn:
    """What the update needs beside the rollout: all [B, T], in nats or whitened reward units."""

    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    stats: dict[str, float]

    def rows(self, index: Tensor, width: int) -> "Learn":
        """These rows, cut to the longest answer among them."""
        given = (self.old_logprobs, self.old_values, self.advantages, self.returns)
        return Learn(*(x[index, :width] for x in given), self.stats)


@torch.no_grad()
def advantages_of(config, models: Models, rollout: Rollout, score: Tensor, *, ids: Sequence[str]) -> Learn:
    """Whiten the score, take beta KL off every token, and estimate advantages (eq. 4; GAE is ours)."""
    mask = rollout.completion_mask
    models.policy.eval()
    models.critic.eval()
    parts = own_parts(config, rollout, torch.arange(len(rollout)))
    logprobs_of = partial(completion_logprobs, temperature=config.temperature)
    with whole(models.policy):
        agrees = bool(parts) and sampler_agrees(config, models.policy, rollout.rows(parts[0][:1]))
        sampled = (lambda policy, part: part.old_logprobs) if agrees else logprobs_of
        logprobs = read_off(models.policy, sampled, rollout, parts)
    with whole(models.reference):
        reference = read_off(models.reference, logprobs_of, rollout, parts)
    with whole(models.critic):
        values = read_off(models.critic, completion_values, rollout, parts)
    kl = kl_estimate(logprobs, reference, mask, estimator=config.kl_estimator)
    for made, name in (
        (logprobs, "a log-probability of the policy"),
        (reference, "a log-probability of the reference"),
        (values, "a value of the critic"),
        (kl, "the KL"),
    ):
        require_finite(made * mask, name, ids=ids, where="ppo", input_ids=rollout.input_ids, mask=mask)
    everywhere = torch.ones_like(score, dtype=torch.bool)
    whitened = whiten(score, everywhere, moments(score, everywhere), epsilon=1e-8).to(values)
    rewards = token_rewards(whitened, kl, mask, kl_coef=config.kl_coef)
    advantages, returns = gae(rewards, values * mask, mask, gamma=config.gamma, gae_lambda=config.gae_lambda)
    stats = {
        "objective/kl": (kl.sum() / len(kl)).item(),
        "value/explained_variance": explained_variance(values, returns, mask).item(),
        "objective/return": (returns * mask).sum().item() / mask.sum().item(),
        "val/logprob_drift": ((logprobs - rollout.old_logprobs) * mask).abs().max().item(),
        "val/padding": padding_share(models.policy, rollout, parts),
    }
    whitened_advantages = whiten(advantages, mask, moments(advantages, mask), epsilon=1e-8)
    return Learn(logprobs, values * mask, whitened_advantages, returns, stats)


def read_off(model: Any, read: Callable[[Any, Rollout], Tensor], rollout: Rollout, parts: Sequence[Tensor]) -> Tensor:
    """[B, T] what a model says of all rows, of which this process reads its `parts`."""
    found = torch.zeros_like(rollout.old_logprobs)
    for index in parts:
        part = rollout.rows(index)
        found[index, : part.tokens.shape[1]] = read(model, part)
    return team.summed(found)  # a row is one process's and zero elsewhere


def sampler_agrees(config, policy: PreTrainedModel, longest: Rollout) -> bool:
    """Whether a forward gives the longest answer the log-probabilities that sampling gave it; nan does not."""
    made = completion_logprobs(policy, longest, temperature=config.temperature)
    return (made - longest.old_logprobs).abs().max().item() <= config.max_logprob_drift


def own_parts(config, rollout: Rollout, index: Tensor) -> tuple[Tensor, ...]:
    """The micro-batches of these rows that this process does; other processes do the others."""
    rows = config.microbatch_size or max(1, config.minibatch_size // team.size())
    return rollout.longest_first(index).split(rows)[team.rank() :: team.size()]


def update(
    job: Job, models: Models, optimizers, rollout: Rollout, learn: Learn, order: Tensor, iteration: int
) -> dict[str, float]:
    """One pass over the batch in the given order: one gradient step per mini-batch, for policy and critic."""
    models.policy.train()  # dropout is off; activation checkpointing works in this mode only
    models.critic.train()
    config, (policy_optimizer, critic_optimizer) = job.config, optimizers
    sums = dict.fromkeys(STATISTICS, 0.0)
    minibatches = order.split(config.minibatch_size)
    for number, index in enumerate(minibatches, start=iteration * len(minibatches) + 1):
        tokens = rollout.completion_mask[index].sum()
        for name, loss_of in (("policy", policy_loss_of), ("critic", critic_loss_of)):
            model = getattr(models, name)
            with learning(model):
                for rows in own_parts(config, rollout, index):
                    part = rollout.rows(rows)
                    loss, stats = loss_of(config, model, part, learn.rows(rows, part.tokens.shape[1]), tokens)
                    loss.backward()
                    for statistic, value in stats.items():
                        sums[statistic] += value / len(minibatches)
                    if index is minibatches[0]:
                        sums["val/ratio_first"] += stats.get("val/ratio", 0.0)
            norm = clip(model, config.max_grad_norm).expand(len(index), 1)
            names, ids = [str(int(i)) for i in index], rollout.input_ids[index]
            require_finite(norm, f"the gradient of the {name}", ids=names, step=number, where=job.name, input_ids=ids)
        critic_optimizer.step()
        if iteration >= config.critic_warmup:
            policy_optimizer.step()
        policy_optimizer.zero_grad()
        critic_optimizer.zero_grad()
        job.track.ledger("ppo", step=number, epoch=iteration, rows=[int(i) + iteration * len(order) for i in index])
    total = team.summed(torch.tensor(list(sums.values()), dtype=torch.float64))  # each has its own micro-batches
    return dict(zip(STATISTICS, total.tolist(), strict=True))


def policy_loss_of(
    config, policy: PreTrainedModel, part: Rollout, learn: Learn, tokens: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The policy's loss on one micro-batch, and its share of the mini-batch's statistics.

    Everything is divided by the mini-batch's number of `tokens`, so that micro-batches add up to it exactly.
    """
    logprobs, undecided = completion_choices(policy, part, temperature=config.temperature, undecided=entropy)
    given, how = (learn.old_logprobs, learn.advantages), {"clip_range": config.clip_range, "denominator": tokens}
    loss, stats = policy_loss(logprobs, *given, part.completion_mask, **how)
    return loss, {
        "loss/policy_avg": loss.item(),
        "policy/clipfrac_avg": float(stats.clip_fraction),
        "policy/approxkl_avg": float(stats.approx_kl),
        "val/ratio": float(stats.ratio_mean),
        "objective/entropy": (undecided.sum() / tokens).item(),
    }


def critic_loss_of(
    config, critic: PreTrainedModel, part: Rollout, learn: Learn, tokens: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The critic's, likewise."""
    values = completion_values(critic, part)
    given, how = (learn.old_values, learn.returns), {"value_clip_range": config.value_clip_range, "denominator": tokens}
    loss = value_loss(values, *given, part.completion_mask, **how)
    return loss, {"loss/value_avg": loss.item()}


class Keeper(EarlyStopping):
    """Early stopping with this job's models and held-out prompts."""

    def __init__(self, job: Job, models: Models, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(job.config)
        self.job, self.models, self.optimizer, self.watch = job, models, optimizer, Watch(job.track.say)
        self.policy = Learnt(models.policy)
        self.prompts = feed.asked(job, job.config.heldout_prompts, label="heldout", side="validation")

    def weights(self) -> dict[str, Any]:
        return {name: weight.clone() for name, weight in self.policy.state_dict().items()}

    def roll_back(self, why: str) -> None:
        """The best policy again, without the momentum that led away from it."""
        self.policy.load_state_dict(self.best_weights)
        self.optimizer.state.clear()
        self.job.track.say(f"{why}: back to the policy of iteration {self.best_iteration}")

    def check(self, iteration: int) -> None:
        """Mean combined reward on held-out prompts, and the gold judge beside it where there is one."""
        config, models = self.job.config, self.models
        samples = answered(self.job, models, self.prompts, label="heldout")
        score, _ = combined_score(self.job, models, samples)
        same = {"temperature": config.temperature, "pad_token_id": models.tokenizer.pad_token_id}
        kl = mean_kl(models.policy, models.reference, samples, **same)
        gold = {f"heldout/{key}": value for key, value in gold_of(samples).items()}
        values = {"heldout/reward_combined": score.mean().item(), "heldout/kl": kl} | gold
        for s, worth in zip(samples[:8], score.tolist(), strict=False):
            shown = {"iteration": iteration, "prompt": s.prompt.turns[-1].content, "text": s.text, "score": worth}
            self.job.track.sample(shown)
        self.job.track.log(values | self.watch.look(values), step=iteration)
        self.judge(iteration, reward=values["heldout/reward_combined"], kl=kl)

    def save(self) -> None:
        self.policy.load_state_dict(self.best_weights)
        self.job.track.say(f"stopped: {self.why}; kept iteration {self.best_iteration}")
        self.job.write_results({"stopped": self.why, "best_iteration": self.best_iteration})
        with whole(self.models.policy):
            save(self.models.policy, self.models.tokenizer, self.job.out / "checkpoint")
