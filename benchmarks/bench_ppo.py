"""One PPO iteration: ours against TRL 1.12.0's PPOTrainer, interleaved in one process, and the losses of both.

TRL 1.12.0 is the last release with a PPOTrainer, so it needs an environment of its own, beside the project's:

    python -m venv --system-site-packages ppo-bench && ppo-bench/bin/pip install --no-deps trl==1.12.0
    PYTHONPATH=. ppo-bench/bin/python benchmarks/bench_ppo.py --points tiny-32 --rounds 5
    PYTHONPATH=. ppo-bench/bin/python benchmarks/bench_ppo.py --losses         # the same rollout, both formulas
    PYTHONPATH=. ppo-bench/bin/python benchmarks/bench_ppo.py --memory ours    # or trl: peak of a process of its own
    PYTHONPATH=. python benchmarks/bench_ppo.py --growth                       # ours alone, with what its cost grows

Random weights, two reward models and a critic of the policy's size, prompts of 16 to 64 tokens, up to 96 new ones, the
EOS at random. One optimizer step an iteration, in micro-batches of 8. An iteration of ours is what the stage does
between two lines of its log: sampling, scores, log-probabilities, advantages, update. It starts from token ids; reading
prompts and decoding answers to text are left out, as with TRL. One thread, process CPU seconds; each step of TRL's is
followed by an iteration of ours.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import log
from statistics import median
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from bench_generation import ending
from measure import Table, llama, llama_config, quiet, slope
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification

from rlhf.data.types import Prompt, Turn
from rlhf.functional.gae import gae
from rlhf.functional.kl import kl_estimate, token_rewards
from rlhf.functional.ppo import policy_loss, value_loss
from rlhf.functional.whiten import moments, whiten
from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.transformers import generate
from rlhf.models.load import freeze
from rlhf.models.reward_models import RewardModels
from rlhf.rollout import Rollout, Sample
from rlhf.schema import PPOConfig
from stages import ppo

EOS, PAD = 2, 0
MICRO, LONGEST = 8, 96
PHASES = ("sampling", "scores", "log-probabilities", "update")


@dataclass(frozen=True)
class Point:
    """One row of the table: model size and answers an iteration."""

    size: str
    batch: int
    target: float = 3.0
    longest: int = LONGEST

    @property
    def name(self) -> str:
        return f"{self.size}-{self.batch}"


POINTS = [Point("tiny", 32), Point("tiny", 128), Point("small", 16), Point("small", 32)]
GROWTH: dict[str, tuple[list[Point], Callable[[Ours], int]]] = {  # points that differ in one thing, and how much of it
    "answers": ([Point("tiny", n) for n in (16, 32, 64, 128)], lambda ours: ours.batch),
    "longest answer, tokens": ([Point("tiny", 32, longest=n) for n in (24, 48, 96, 192)], lambda ours: ours.longest),
    "weights": ([Point(s, 16) for s in ("tiny", "middle", "small")], lambda ours: ours.models.policy.num_parameters()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default="tiny-32,small-16", help=f"of {', '.join(p.name for p in POINTS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=("ours", "trl"), help="only one of the two: its peak memory")
    parser.add_argument("--losses", action="store_true", help="only the losses of both on TRL's rollout")
    parser.add_argument("--growth", action="store_true", help="only how ours grows with batch, length and model")
    options = parser.parse_args()
    quiet()
    if options.growth:
        show_growth(options.rounds)
        return
    try:
        import trl.experimental.ppo  # noqa: F401
    except ImportError:
        print("left out: this TRL has no PPOTrainer; the head of this file says how to get 1.12.0 beside it")
        return
    chosen = [point for point in POINTS if point.name in options.points.split(",")]
    if options.losses:
        show_losses()
    elif options.memory:
        show_memory(chosen[0], options.memory, options.rounds)
    else:
        show_speed(chosen, options.rounds)


# ── speed and memory ─────────────────────────────────────────────────────────────────────────────────────────────────


def show_speed(points: list[Point], rounds: int) -> None:
    head = ["model, batch", "TRL, samples/s", "ours, samples/s", "ratio", "aim", *(f"{p}, %" for p in PHASES)]
    table = Table("PPO: one iteration", head)
    for point in points:
        ours = Ours(point)
        theirs = Theirs(point, rounds + 1, after_step=ours.iteration)
        theirs.train()
        took, own = theirs.seconds[1:], ours.seconds[1:]  # the first of each is not counted
        shares = [[100 * phases[p] / s for phases, s in zip(ours.phases[1:], own, strict=True)] for p in PHASES]
        rates = [[point.batch / s for s in seconds] for seconds in (took, own)]
        ratios = [a / b for a, b in zip(took, own, strict=True)]
        table.row(f"{point.size}, {point.batch}", *rates, ratios, f"{point.target:g}", *shares)
    table.show()


def show_growth(rounds: int) -> None:
    """CPU seconds of an iteration against one thing at a time, and the slope of both logarithms."""
    table = Table("PPO: what an iteration costs", ["what grows", "from, to", "CPU seconds", "slope"])
    for what, (points, measure) in GROWTH.items():
        amounts, seconds = [], []
        for point in points:
            ours = Ours(point)
            for _ in range(rounds + 1):  # the first is not counted
                ours.iteration()
            amounts.append(measure(ours))
            seconds.append(median(ours.seconds[1:]))
        found = slope([log(n) for n in amounts], [log(s) for s in seconds])
        listed = ", ".join(f"{s:.3g}" for s in seconds)
        table.row(what, f"{amounts[0]:,} to {amounts[-1]:,}", listed, f"{found:.2f}")
    table.show()


def show_memory(point: Point, which: str, rounds: int) -> None:
    """Peak memory of a process that runs one of the two, above what it holds before the first iteration."""
    work = Ours(point) if which == "ours" else Theirs(point, rounds, after_step=lambda: None)
    resting = resident_mb()
    if isinstance(work, Ours):
        for _ in range(rounds):
            work.iteration()
    else:
        work.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{point.name}, {which}: {resting:.0f} MB before, peak {peak:.0f} MB, {peak - resting:.0f} MB for iterations")


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def five_models(size: str, longest: int = LONGEST) -> tuple[nn.Module, ...]:
    """Policy, reference, critic, helpfulness and safety model; the same weights at every call."""
    policy = ending(llama(size), mean=0.4 * longest, longest=longest)
    with torch.no_grad():
        policy.lm_head.bias[PAD] = -1e4  # TRL finds the end by the first pad
    policy.config.eos_token_id = EOS
    config = llama_config(size)
    config.num_labels = 1
    critic, helpfulness, safety = (LlamaForSequenceClassification(copy.deepcopy(config)) for _ in range(3))
    return policy, freeze(copy.deepcopy(policy)), critic, freeze(helpfulness), freeze(safety)


def prompts_of(point: Point, batches: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, 65, (point.batch * batches,), generator=draw).tolist()
    return [torch.randint(4, llama_config(point.size).vocab_size, (n,), generator=draw).tolist() for n in lengths]


class Ours:
    """The stage's own functions, between its reading of prompts and its log."""

    def __init__(self, point: Point) -> None:
        policy, reference, critic, helpfulness, safety = five_models(point.size, point.longest)
        tokenizer = SimpleNamespace(pad_token_id=PAD)
        self.models = ppo.Models(policy, critic, reference, RewardModels(helpfulness, safety, PAD, EOS), tokenizer)
        self.config = PPOConfig(batch_size=point.batch, minibatch_size=point.batch, microbatch_size=MICRO)
        self.job = SimpleNamespace(config=self.config, name="ppo", track=SimpleNamespace(ledger=lambda *a, **k: None))
        self.optimizers = ppo.make_optimizers(self.models, self.config)
        self.prompts, self.batch, self.longest = prompts_of(point, 8), point.batch, point.longest
        self.seconds: list[float] = []
        self.phases: list[dict[str, float]] = []

    def iteration(self) -> None:
        number, clock = len(self.seconds), [time.process_time()]
        start = number * self.batch % len(self.prompts)
        ids = self.prompts[start : start + self.batch]
        keys = [str(start + i) for i in range(len(ids))]
        answers = generate(self.models.policy, Request(ids, keys, Sampling(1, 1.0, self.longest), number, EOS))
        prompt = Prompt("bench", (Turn("user", "?"),), "bench", is_safety=False)
        samples = [Sample(prompt, tuple(row), answer[0], "") for row, answer in zip(ids, answers, strict=True)]
        clock.append(time.process_time())
        score, _ = ppo.combined_score(self.job, self.models, samples)
        rollout = Rollout.of(samples, pad_token_id=PAD, device="cpu")
        clock.append(time.process_time())
        learn = ppo.advantages_of(self.config, self.models, rollout, score, ids=[str(i) for i in range(self.batch)])
        clock.append(time.process_time())
        order = torch.randperm(self.batch, generator=torch.Generator().manual_seed(number))
        ppo.update(self.job, self.models, self.optimizers, rollout, learn, order, number)
        clock.append(time.process_time())
        self.phases.append(dict(zip(PHASES, (b - a for a, b in pairwise(clock)), strict=True)))
        self.seconds.append(clock[-1] - clock[0])


class Pair(nn.Module):
    """Two reward models' bodies, run one after the other, as one body for TRL."""

    def __init__(self, helpfulness: nn.Module, safety: nn.Module) -> None:
        super().__init__()
        self.helpfulness, self.safety = helpfulness, safety

    def forward(self, **inputs: Any) -> SimpleNamespace:
        states = [model(**inputs).hidden_states[-1] for model in (self.helpfulness, self.safety)]
        return SimpleNamespace(hidden_states=[torch.cat(states, -1)])


class Piecewise(nn.Module):
    """The piecewise reward of two models, as one reward model for TRL."""

    base_model_prefix = "pair"

    def __init__(self, helpfulness: nn.Module, safety: nn.Module) -> None:
        super().__init__()
        self.pair = Pair(helpfulness.model, safety.model)
        self.heads = nn.ModuleList((helpfulness.score, safety.score))

    def score(self, states: Tensor) -> Tensor:
        helpfulness, safety = (head(part) for head, part in zip(self.heads, states.chunk(2, -1), strict=True))
        return torch.where(torch.sigmoid(safety) < 0.15, safety, helpfulness)


class Theirs:
    """TRL's trainer with the same models, prompts and settings."""

    def __init__(self, point: Point, steps: int, *, after_step: Callable[[], None], **settings: Any) -> None:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl.experimental.ppo import PPOConfig as Settings
        from trl.experimental.ppo import PPOTrainer

        policy, reference, critic, helpfulness, safety = five_models(point.size)
        rows = Dataset.from_dict({"input_ids": prompts_of(point, 8)})
        self.folder = tempfile.TemporaryDirectory()
        self.seconds: list[float] = []
        bench = self

        class Clock(TrainerCallback):
            def on_train_begin(self, *args: Any, **given: Any) -> None:
                self.started = time.process_time()

            def on_step_end(self, *args: Any, **given: Any) -> None:
                bench.seconds.append(time.process_time() - self.started)
                after_step()
                self.started = time.process_time()

        defaults = {
            "per_device_train_batch_size": MICRO,
            "gradient_accumulation_steps": point.batch // MICRO,
            "num_mini_batches": 1,
            "num_ppo_epochs": 1,
            "local_rollout_forward_batch_size": min(32, point.batch),
            "learning_rate": 1e-6,
            "kl_coef": 0.01,
        }
        arguments = Settings(
            output_dir=self.folder.name,
            total_episodes=point.batch * steps,
            response_length=LONGEST,
            stop_token="eos",
            temperature=1.0,
            num_sample_generations=0,
            report_to=[],
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=10**9,
            gradient_checkpointing=False,
            **(defaults | settings),
        )
        self.trainer = PPOTrainer(
            args=arguments,
            processing_class=words(llama_config(point.size).vocab_size),
            model=policy,
            ref_model=reference,
            reward_model=Piecewise(helpfulness, safety),
            value_model=critic,
            train_dataset=rows,
            eval_dataset=rows.select(range(2)),
            callbacks=[Clock()],
        )
        self.logged: dict[str, float] = {}
        self.trainer.log = lambda metrics, *args, **given: self.logged.update(metrics)
        self.train = self.trainer.train


def words(vocabulary: int) -> Any:
    """A tokenizer that knows its special tokens and a word for every other id."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    known = {"<pad>": PAD, "<s>": 1, "</s>": EOS, "<unk>": 3} | {f"w{i}": i for i in range(4, vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(known, unk_token="<unk>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def show_losses() -> None:
    """Let TRL make one step in two mini-batches and take down its tensors; then our formulas on the same tensors.

    Two differences are known and taken out here. TRL gives the critic one position more, after the last token, and puts
    the score there if there is room. It whitens advantages by the variance over n - 1 and ours over n.
    """
    import trl.experimental.ppo.ppo_trainer as theirs

    point = Point("tiny", 16)
    run = Theirs(
        point,
        1,
        after_step=lambda: None,
        num_mini_batches=2,
        gradient_accumulation_steps=2,
        num_ppo_epochs=2,
        local_rollout_forward_batch_size=16,
        kl_coef=0.3,
        learning_rate=3e-3,  # so that ratios leave the clip
    )
    with torch.no_grad():  # away from the reference, so that there is a KL to pay
        head = run.trainer.ref_model.lm_head.weight
        head.add_(0.5 * head.std() * torch.randn_like(head))
    seen: dict[str, list[Any]] = defaultdict(list)
    record(theirs, "selective_log_softmax", lambda made, *_: seen["logprobs"].append(made.detach().clone()))
    record(theirs, "batch_generation", lambda made, _, queries, *__: seen["ids"].append((made[0], queries.shape[1])))
    record(theirs, "get_reward", lambda made, *_: seen["rewards"].append(made))
    record(theirs, "forward", lambda made, *_: seen["forwards"].append(made))
    record(theirs.np.random, "permutation", lambda made, *_: seen["orders"].append(torch.as_tensor(made)))
    run.train()
    for name, (wanted, found) in compared(run, seen).items():
        difference = abs(wanted - found)
        print(f"{name:20} TRL {wanted:+.7f}  ours {found:+.7f}  difference {difference:.1e}")
        if difference > 1e-5:
            sys.exit(f"{name} differs")


def record(place: Any, name: str, note: Callable[..., None]) -> None:
    """Call `note` with what a function returns and was given, whenever it is called."""
    real = getattr(place, name)

    def recorded(*args: Any, **given: Any) -> Any:
        made = real(*args, **given)
        note(made, *args)
        return made

    setattr(place, name, recorded)


def compared(run: Theirs, seen: dict[str, list[Any]]) -> dict[str, tuple[float, float]]:
    """Name -> what TRL logged, and what our formulas make of its tensors."""
    (ids, width), (old, reference, *new) = seen["ids"][0], seen["logprobs"]
    tokens = ids[:, width:]
    ended = (tokens == EOS).cumsum(1)
    mask = (ended == 0) | ((ended == 1) & (tokens == EOS))
    longer = torch.cat((torch.ones_like(mask[:, :1]), mask[:, :-1]), 1)  # the critic's one position more
    (full_values, _, _), (_, scores, _) = seen["rewards"]
    values = full_values[:, width - 1 : -1].squeeze(-1) * longer
    kl = kl_estimate(old, reference, mask, estimator="k1")
    rewards = token_rewards(scores, kl, longer, kl_coef=0.3)
    advantages, returns = gae(rewards, values, longer, gamma=1.0, gae_lambda=0.95)
    count = int(mask.sum())
    advantages = whiten(advantages, mask, moments(advantages, mask), epsilon=1e-8) * ((count - 1) / count) ** 0.5
    predictions = [
        made[1][:, width - 1 : -1].squeeze(-1).detach() for made in seen["forwards"] if isinstance(made, tuple)
    ]
    rows = [part for order in seen["orders"] for part in order.split(len(order) // 2)]
    policy, value, clipped = [], [], []
    for index, logprobs, predicted in zip(rows, new, predictions, strict=True):
        loss, stats = policy_loss(logprobs, old[index], advantages[index], mask[index], clip_range=0.2)
        policy.append(loss.item())
        clipped.append(stats.clip_fraction.item())
        value.append(value_loss(predicted, values[index], returns[index], longer[index], value_clip_range=0.2).item())
    found = {
        "objective/kl": kl.sum(1).mean().item(),
        "loss/policy_avg": sum(policy) / len(policy),
        "loss/value_avg": sum(value) / len(value),
        "policy/clipfrac_avg": sum(clipped) / len(clipped),
    }
    # TRL's log has a place for every step of accumulation, of which a mini-batch of one micro-batch fills half.
    filled = {name: 1.0 if name == "objective/kl" else 0.5 for name in found}
    return {name: (float(run.logged[name]) / filled[name], value) for name, value in found.items()}


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - started:.0f} s")
