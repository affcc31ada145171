"""What each stage holds and does: its models at the fullest moment, its tokens and its operations. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.costs.hardware import Hardware
from rlhf.costs.memory import (
    LOGITS,
    TILE,
    WIDTH,
    Bytes,
    activations,
    adapter,
    frozen,
    joined,
    logits,
    reading,
    trained,
)
from rlhf.costs.shapes import Shape

if TYPE_CHECKING:
    from rlhf.schema import Recipe, Source


SCORED, SCORED_ON_CPU = 8192, 2048
"""Tokens that a reward model reads at a time (rlhf/models/score.py)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One stage, once: bytes of one rank, and work of all ranks together."""

    stage: str
    bytes: Bytes
    tokens: float
    flops: float
    disk: float

    def seconds(self, hardware: Hardware) -> float | None:
        """At the stated share of the GPUs' peak."""
        return self.flops / (hardware.gpus * hardware.tflops * 1e12 * hardware.mfu) if hardware.tflops else None


@dataclass(frozen=True, slots=True)
class _Plan:
    """A recipe on hardware, with the few sums that the stages share."""

    recipe: Recipe
    shape: Shape
    hardware: Hardware

    def sharded(self, learns: Bytes) -> Bytes:
        """The share of one rank of a model in the Trainer's hands."""
        return learns.sharded(self.hardware.engine, self.hardware.gpus)

    @property
    def ranks(self) -> int:
        """How many share a model that is whole only while it works."""
        return 1 if self.hardware.engine == "ddp" else self.hardware.gpus

    def shared(self, *models: Bytes) -> Bytes:
        """One rank's parts of models."""
        return sum(models, Bytes()) / self.ranks

    def whole(self, *models: Bytes) -> Bytes:
        """What stands beside the parts of models that work: their weights, and gradients of one that learns."""
        return replace(sum(models, Bytes()), optimizer=0) if self.ranks > 1 else Bytes()

    def policy(self, *, learns: bool = False) -> Bytes:
        return (trained if learns else frozen)(self.shape, self.recipe.model, scored=False)

    def scored(self, *, learns: bool = False) -> Bytes:
        return (trained if learns else frozen)(self.shape, self.recipe.model, scored=True)

    def micro(self, config: Any, rows: int) -> int:
        """Rows of one forward on one rank."""
        return int(config.microbatch_size or max(1, rows // self.hardware.gpus))

    def step(self, config: Any, batch: int, length: int, *, heads: float = 0) -> Bytes:
        """What a step needs beside model, gradients and moments: of one micro-batch, and `heads` bytes of logits."""
        rows, model = self.micro(config, batch), self.recipe.model
        made = heads + activations(self.shape, model, tokens=rows * length)
        if rows * self.hardware.gpus < batch and not model.lora.rank:  # the embedding's next gradient is made whole
            made += self.shape.vocab_size * self.shape.hidden_size * WIDTH[model.dtype]
        return Bytes(activations=made)

    def tuning(self, config: Any, batch: int, length: int, *, predicted: float) -> Bytes:
        """A step of fine-tuning. TRL's head makes a tile of logits at a time, where Triton is without copies of it.

        Few logits, on a CPU, are all made at once, with fewer copies (rlhf/training/row_trainer.py).
        """
        tokens = self.micro(config, batch) * length * predicted
        heads = logits(self.shape, tokens=tokens, copies=8 if self.hardware.cpu else 1, most=TILE)
        return self.step(config, batch, length, heads=heads)

    def decoding(self, prompts: int, new: int, *, samples: int = 1, turns: float = 1) -> Bytes:
        """Reading the prompts that are answered at once, or the answers' cache and logits, whichever is more.

        A prompt after some turns holds them, and their answers, all read before but for the last answer and turn; what
        was read is held for the next. One that is sampled several times is read once, and on a CPU, where decoding lays
        weights out for itself, kept once.
        """
        model, asked = self.recipe.model, self.hardware.prompt_tokens
        length = int(min(turns * (asked + new) - new, max(model.max_length - new, asked)))
        together = max(1, self.recipe.generation.rows_per_batch // samples)
        mine = min(together, max(1, prompts // self.hardware.gpus))
        fused = self.hardware.cpu and (model.dtype, model.lora.rank, model.quantisation) == ("float32", None, "none")
        read, kept, fresh = self.cache(mine, length), fused and samples > 1, length if turns == 1 else asked + new
        grown = (kept or turns > 1) * read + self.cache(mine * samples, new + length * (not kept))
        reading_it = reading(self.shape, model, tokens=mine * min(fresh, length), seen=length)
        reads = Bytes(cache=read, activations=reading_it)
        draws = logits(self.shape, tokens=mine * samples, copies=4, most=inf)
        return Bytes(weights=joined(self.shape) * fused) + fullest(reads, Bytes(cache=grown, activations=draws))

    def cache(self, rows: int, tokens: int) -> float:
        return self.shape.cache(rows, tokens, bytes_each=WIDTH[self.recipe.model.dtype])

    def scoring(self, prompts: int, new: int, *, samples: int = 1, turns: float = 1) -> Bytes:
        """A reward model, whole then, reads the answers, some thousand tokens at a time."""
        length = int(min(turns * (self.hardware.prompt_tokens + new), self.recipe.model.max_length))
        most, seen = (SCORED_ON_CPU, 0) if self.hardware.cpu else (SCORED, length)
        tokens = min(prompts * samples * length / self.hardware.gpus, most)
        made = reading(self.shape, self.recipe.model, tokens=tokens, seen=seen)
        return self.whole(self.scored()) + Bytes(activations=made)

    def answering(self, prompts: int, new: int, *, samples: int = 1, turns: float = 1) -> Bytes:
        """A policy, whole then, answers; then reward models read."""
        speaking = self.whole(self.policy()) + self.decoding(prompts, new, samples=samples, turns=turns)
        return fullest(speaking, self.scoring(prompts, new, samples=samples, turns=turns))

    def compared(self, answers: int, new: int) -> Bytes:
        """KL of two policies over the vocabulary, of some answers at a time."""
        return Bytes(activations=logits(self.shape, tokens=min(answers, 64) * new, copies=7, most=LOGITS))

    def forward(self, tokens: float, length: float) -> float:
        """Operations of a forward pass: two a weight and token, and attention over half the row."""
        attention = 2 * self.shape.layers * self.shape.heads * self.shape.head_dim * length
        return tokens * (2 * (self.shape.linear + self.shape.vocab_size * self.shape.hidden_size) + attention)

    def learning(self, tokens: float, length: float) -> float:
        """Forward and backward; an adapter spares the gradients of the weights, checkpointing repeats the forward."""
        model = self.recipe.model
        passes = 3 - (1 if model.lora.rank else 0) + (1 if model.gradient_checkpointing else 0)
        return passes * self.forward(tokens, length)

    def rows_of(self, config: Any) -> int:
        """Rows of a stage's data: those of a file of lines are counted, elsewhere the limit has the word."""
        return sum(_rows(source, otherwise=self.hardware.rows) for source in config.data)

    def saved(self, *, scored: bool = False) -> float:
        """Bytes of a checkpoint."""
        model, shape = self.recipe.model, self.shape
        if model.lora.rank:
            return adapter(shape, model, scored=scored)
        return (shape.scored if scored else shape.policy) * WIDTH[model.dtype]


def _base(p: _Plan) -> Cost:
    config, model = p.recipe.base, p.recipe.model
    if model.path is not None:
        return Cost("base", Bytes(), 0, 0, 0)
    whole = model.model_copy(update={"lora": type(model.lora)(), "quantisation": "none"})
    tokens = config.steps * config.batch_size * config.row_length
    tokens += config.extension_steps * config.extension_batch_size * config.extension_length
    full = _Plan(p.recipe.model_copy(update={"model": whole}), p.shape, p.hardware)
    parts = [(config.batch_size, config.row_length)]
    parts += [(config.extension_batch_size, config.extension_length)] if config.extension_steps else []
    learning = [full.tuning(config, rows, length, predicted=1) for rows, length in parts]
    held = full.policy(learns=True) + fullest(*learning)  # it trains whole on every rank
    return Cost("base", held, tokens, full.learning(tokens, config.row_length), full.saved())


def _rows(source: Source, *, otherwise: int) -> int:
    file = Path(source.path or "").expanduser()
    if file.suffix != ".jsonl" or not file.is_file():
        return source.limit or otherwise
    with file.open("rb") as lines:
        found = sum(not line.isspace() for line in lines)
    return min(source.limit or found, found)


def fullest(*moments: Bytes) -> Bytes:
    """The one that holds most."""
    return max(moments, key=lambda found: found.total)


def _fine_tuned(p: _Plan, stage: str, rows: float, *, beside: Bytes | None = None) -> Cost:
    """Fine-tuning on so many dialogues, beside what else is still there."""
    config, longest = getattr(p.recipe, stage), p.recipe.model.max_length
    length = config.row_length or longest
    tokens = rows * min(longest, 2 * p.hardware.prompt_tokens) * config.epochs
    learning = p.tuning(config, config.batch_size, length, predicted=0.5)  # an answer as long as its prompt
    held = p.sharded(p.policy(learns=True)) + learning + (beside or Bytes())
    return Cost(stage, held, tokens, p.learning(tokens, length), p.saved())


def _sft(p: _Plan) -> Cost:
    return _fine_tuned(p, "sft", p.rows_of(p.recipe.sft))


def _sampling(p: _Plan, answers: float, new: int, *, prompts: float, models: float = 1) -> tuple[float, float]:
    """Tokens and operations of answers as long as allowed, each read by so many models; a prompt is read once."""
    prompt = p.hardware.prompt_tokens
    tokens = answers * new + prompts * prompt
    read = answers * (prompt + new)
    return tokens, p.forward(tokens, prompt + new) + (models - 1) * p.forward(read, prompt + new)


def _tuned_on_samples(p: _Plan, stage: str, work: tuple[float, float], answering: Bytes, rows: float) -> Cost:
    """Answers by the newest policy, then fine-tuning on so many rows; both reward models are there all the time."""
    rewards = p.shared(p.scored(), p.scored())
    tuned = _fine_tuned(p, stage, rows, beside=rewards)
    held = fullest(p.shared(p.policy()) + rewards + answering, tuned.bytes)
    return Cost(stage, held, work[0] + tuned.tokens, work[1] + tuned.flops, tuned.disk)


def _preferences(p: _Plan) -> Cost:
    config = p.recipe.preferences
    prompts = config.helpfulness_prompts + config.safety_prompts + 2 * config.test_prompts
    tokens, flops = _sampling(p, 2 * prompts, config.max_new_tokens, prompts=2 * prompts)
    held = p.shared(p.policy()) + p.whole(p.policy()) + p.decoding(prompts, config.max_new_tokens)
    return Cost("preferences", held, tokens, flops, 0)


def _reward(p: _Plan) -> Cost:
    config, length = p.recipe.reward, min(p.recipe.model.max_length, 2 * p.hardware.prompt_tokens)
    pairs = p.rows_of(config)
    if "preferences" in p.recipe.stages:
        pairs += p.recipe.preferences.helpfulness_prompts + p.recipe.preferences.safety_prompts
    more = len(config.other_margins)  # models, of the pairs of one of the two
    tokens = (2 + more) * pairs * length * config.epochs
    # A micro-batch is held as long as its longest pair.
    longest = p.hardware.longest_pair or p.recipe.model.max_length
    learning = p.sharded(p.scored(learns=True)) + p.step(config, config.batch_size, 2 * longest)
    reporting = p.shared(p.scored(), p.scored()) + p.scoring(2 * pairs, p.hardware.prompt_tokens)  # on held-out pairs
    held = fullest(learning, reporting)
    return Cost("reward", held, tokens, p.learning(tokens, length), (2 + more) * p.saved(scored=True))


def _rejection(p: _Plan) -> Cost:
    config, k = p.recipe.rejection, p.recipe.rejection.samples_per_prompt
    tried = len(config.temperatures) * config.temperature_prompts if len(config.temperatures) > 1 else 0
    prompts = config.prompts + tried
    work = _sampling(p, prompts * k, config.max_new_tokens, prompts=prompts, models=3)
    answering = p.answering(config.prompts, config.max_new_tokens, samples=k)
    return _tuned_on_samples(p, "rejection", work, answering, config.prompts / (1 - config.sft_share))


def _distill(p: _Plan) -> Cost:
    config = p.recipe.distill
    replayed = config.prompts * config.replay_share / (1 - config.replay_share)
    answers = 2 * config.prompts + replayed * config.replay_samples
    work = _sampling(p, answers, config.max_new_tokens, prompts=2 * config.prompts + replayed, models=3)
    answering = p.answering(config.prompts, config.max_new_tokens, samples=2)
    return _tuned_on_samples(p, "distill", work, answering, config.prompts + replayed)


def _gatt(p: _Plan) -> Cost:
    config = p.recipe.gatt
    lengths = range(config.min_turns, config.max_turns + 1)
    cuts = sum(min(config.cuts, max(1, turns - 1)) for turns in lengths) / len(lengths)  # none ends with the first turn
    replayed = config.dialogues * cuts * config.replay_share / (1 - config.replay_share)
    prompts = config.dialogues * (config.min_turns + config.max_turns) / 2 + replayed
    new, k = config.max_new_tokens, config.samples_per_turn
    work = _sampling(p, prompts * k, new, prompts=prompts, models=3)
    # After the shortest there are fewer at every turn, and each is longer.
    least, most = config.min_turns, config.max_turns
    held = {turn: config.dialogues * (most + 1 - turn) // (most + 1 - least) for turn in range(least, most + 1)}
    answering = fullest(*(p.answering(held[turn], new, samples=k, turns=turn) for turn in held))
    return _tuned_on_samples(p, "gatt", work, answering, config.dialogues + replayed)  # cuts are read in one pass


def _ppo(p: _Plan) -> Cost:
    """Policy and critic learn; reference, two reward models and the best policy so far stand beside them."""
    config, new = p.recipe.ppo, p.recipe.ppo.max_new_tokens
    policy, critic, best = p.policy(learns=True), p.scored(learns=True), Bytes(weights=p.saved())
    parts = p.shared(policy, critic, best, p.scored(), p.scored())
    # With LoRA, the best policy is an adapter, and so is the reference, which is not cut.
    parts, compared = (parts + best, []) if p.recipe.model.lora.rank else (parts + p.shared(p.policy()), [p.policy()])
    length, asked = p.hardware.prompt_tokens + new, max(config.batch_size, config.heldout_prompts)
    heads = logits(p.shape, tokens=p.micro(config, config.minibatch_size) * new, copies=6, most=LOGITS)
    learning = fullest(
        p.whole(policy) + p.step(config, config.minibatch_size, length, heads=heads),
        p.whole(critic) + p.step(config, config.minibatch_size, length),
    )
    asking = fullest(
        p.whole(p.policy()) + p.decoding(asked, new),
        p.scoring(asked, new),
        p.whole(p.policy(), *compared) + p.compared(asked, new),
        p.shared(best),  # a better one is copied before it goes
    )
    held = fullest(parts + learning, replace(parts, gradients=0) + asking)
    answers = config.iterations * config.batch_size
    checks = (config.iterations // config.heldout_every + 1) * config.heldout_prompts
    tokens, flops = _sampling(p, answers + checks, config.max_new_tokens, prompts=answers + checks, models=3)
    read = answers * length
    flops += 3 * p.forward(read, length) + 2 * p.learning(read, length)  # old log-probs, reference, values; two updates
    return Cost("ppo", held, tokens, flops, p.saved())


def _scaling(p: _Plan) -> Cost:
    """The pool is scored once; then a model for each share, and its answers. Half of the pool is taken for safety."""
    config, k = p.recipe.scaling, p.recipe.rejection.samples_per_prompt
    pooled = p.recipe.rounds * p.recipe.rejection.prompts
    length, answers = p.hardware.prompt_tokens + p.recipe.rejection.max_new_tokens, len(config.shares) * config.prompts
    tokens, flops = _sampling(p, answers, config.max_new_tokens, prompts=answers, models=3)
    work = (tokens, flops + 2 * p.forward(pooled * k * length, length))
    rows = pooled * sum(1 + s for s in config.shares) / 2
    tuned = _tuned_on_samples(p, "scaling", work, p.answering(config.prompts, config.max_new_tokens), rows)
    return replace(tuned, disk=len(config.shares) * tuned.disk)


def _evaluate(p: _Plan) -> Cost:
    config = p.recipe.evaluate
    policies = sum(name in p.recipe.stages for name in ("base", "sft", "distill", "gatt", "ppo"))
    policies += p.recipe.rounds if "rejection" in p.recipe.stages else 0
    if not config.data:  # nobody is asked anything
        return Cost("evaluate", p.policy() + p.policy() + p.scored() + p.scored(), 0, 0, 0)
    answers = config.prompts + config.best_of_prompts * config.best_of_samples
    tokens, flops = _sampling(p, policies * answers, config.max_new_tokens, prompts=policies * answers, models=4)
    new, turns = config.max_new_tokens, max(config.turns)
    alone, talking = p.answering(answers, new), p.answering(config.dialogues, new, turns=turns)
    held = p.shared(p.policy(), p.policy(), p.scored(), p.scored())
    held += fullest(alone, talking, p.whole(p.policy(), p.policy()) + p.compared(config.prompts, new))
    return Cost("evaluate", held, tokens, flops, 0)


STAGES: dict[str, Callable[[_Plan], Cost]] = {
    "base": _base,
    "sft": _sft,
    "preferences": _preferences,
    "reward": _reward,
    "rejection": _rejection,
    "distill": _distill,
    "gatt": _gatt,
    "ppo": _ppo,
    "scaling": _scaling,
    "evaluate": _evaluate,
}


def cost_of(stage: str, recipe: Recipe, shape: Shape, hardware: Hardware) -> Cost:
    """What one stage of a recipe costs, once."""
    return STAGES[stage](_Plan(recipe, shape, hardware))
