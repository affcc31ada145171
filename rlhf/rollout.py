"""Answers of a policy: sampled as text and ids, and, for PPO, laid out as tensors.

Letters: B rows, K completions a prompt, T completion tokens, S whole sequence, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.chat import decode_completion, encode_prompt
from rlhf.data.types import Prompt
from rlhf.errors import DataError
from rlhf.finite import require_finite
from rlhf.functional.kl import exact_kl
from rlhf.functional.logprobs import chosen_logprobs
from rlhf.generation.protocol import Completion, Engine, Request, Sampling
from rlhf.generation.transformers import InProcess
from rlhf.models import packing
from rlhf.models.load import context_of, freeze, load_policy
from rlhf.models.score import pad_right, token_values
from rlhf.models.shared import shared, whole
from rlhf.processes import team
from rlhf.processes.ranks import dealt
from rlhf.provenance.fingerprint import digest
from rlhf.resume.shards import generated, kept
from rlhf.schema import GenerationConfig, ModelConfig

LOGITS = 2**22
"""Numbers that logits may have at a time: 16 MB in single precision."""
CHUNK = 256
"""Rows that are kept together, of an engine that makes batches of its own."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to one prompt."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completion: Completion
    text: str

    @property
    def row(self) -> tuple[int, ...]:
        """Prompt and completion ids: what a reward model reads."""
        return self.prompt_ids + self.completion.token_ids

    @property
    def finished(self) -> bool:
        return self.completion.finish_reason == "stop"

    @property
    def usable(self) -> bool:
        """Whether it can be an example, or a turn to go on from: it says something, and ended by itself.

        What was cut off has no EOS of its own; whoever learned from it as if it had one would learn to stop anywhere.
        """
        return self.finished and bool(self.text)


def sampler(generation: GenerationConfig, checkpoint: Path, model: ModelConfig) -> Engine:
    """The engine that `generation.engine` names, with the weights of this checkpoint."""
    if generation.engine == "transformers":
        return speaker(generation, checkpoint, model)
    from rlhf.generation.vllm import open_vllm

    return open_vllm(generation, checkpoint, model)


def speaker(generation: GenerationConfig, checkpoint: Path, model: ModelConfig) -> InProcess:
    """A policy that answers and does not learn, in this process; processes may share it (see models/shared.py)."""
    return InProcess(shared(freeze(load_policy(checkpoint, model))), generation.rows_per_batch)


def sample(
    policy: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    seed: int,
    advance: Callable[[int], None] | None = None,
) -> list[list[Sample]]:
    """K answers to every prompt, in the order given; `advance` is told how many prompts each batch answered.

    Several processes do it together: each answers a share of the prompts, and gets the answers of all. What a killed
    stage has sampled before is not sampled again (see shards.py).

    Raises:
        DataError: if a prompt and the longest answer to it do not fit into the context.
        NonFiniteError: if a log-probability is nan or infinite.
    """
    engine = InProcess(policy) if isinstance(policy, torch.nn.Module) else policy
    with whole(*([engine.model] if isinstance(engine, InProcess) else [])):
        return dealt(
            prompts,
            lambda share: _sample(engine, tokenizer, share, sampling, seed, advance or (lambda count: None)),
            # A dialogue that goes on stays with the process that has read it, while none before it leaves.
            cost=lambda prompt: 0 if _remembers(engine) else sum(len(turn.content) for turn in prompt.turns),
        )


def remembering(policy: PreTrainedModel | Engine) -> Engine:
    """The engine for dialogues turn by turn: what it has read of one it does not read again."""
    engine = InProcess(policy) if isinstance(policy, torch.nn.Module) else policy
    return engine.remembering() if isinstance(engine, InProcess) else engine


def batches(engine: Engine, count: int, *, samples: int = 1) -> list[range]:
    """So many dialogues in parts that the processes answer in one batch each: an engine remembers its last batch."""
    rows = getattr(engine, "rows_per_batch", CHUNK)
    size = max(1, rows // samples) * team.size() if _remembers(engine) else max(1, count)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _remembers(engine: Engine) -> bool:
    return isinstance(engine, InProcess) and engine.dialogues is not None


def _sample(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    seed: int,
    advance: Callable[[int], None],
) -> list[list[Sample]]:
    """The answers to this process's share."""
    ids = [encode_prompt(tokenizer, prompt.turns) for prompt in prompts]
    _check_room(engine.context, prompts, ids, sampling.max_new_tokens)
    request = Request(ids, [prompt.id for prompt in prompts], sampling, seed, tokenizer.eos_token_id)
    answers: list[list[Completion]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(ids[i]))
    # As the engine would batch them, so that keeping them changes no batch.
    size = max(1, getattr(engine, "rows_per_batch", CHUNK) // sampling.samples_per_prompt)
    for part in (order[start : start + size] for start in range(0, len(order), size)):
        asked = request.part(part)
        for i, group in zip(part, _answered(engine, asked), strict=True):
            answers[i] = group
        generated(sum(len(answer.token_ids) for i in part for answer in answers[i]), engine.decoder)
        advance(len(part))
    return [
        [Sample(prompt, tuple(row), answer, decode_completion(tokenizer, answer.token_ids)) for answer in group]
        for prompt, row, group in zip(prompts, ids, answers, strict=True)
    ]


def _answered(engine: Engine, asked: Request) -> list[list[Completion]]:
    """Answers to one batch: those that a killed stage has left, or new ones."""
    made = False

    def make() -> Any:
        nonlocal made
        made = True
        found = engine.generate(asked)
        check_logprobs(found, asked.keys)
        return [[(c.token_ids, c.logprobs, c.finish_reason) for c in group] for group in found]

    what = (asked.prompts, asked.keys, astuple(asked.sampling), asked.seed, asked.eos_token_id)
    found = kept(digest(what), make)
    if not made and isinstance(engine, InProcess):
        engine.skip(asked)
    return [[Completion(tuple(tokens), tuple(logprobs), end) for tokens, logprobs, end in group] for group in found]


def check_logprobs(answers: Sequence[Sequence[Completion]], keys: Sequence[str]) -> None:
    """NonFiniteError naming the prompts whose answers no sound model has drawn, whatever engine it ran in."""
    flat = [answer for group in answers for answer in group]
    totals = torch.tensor([sum(answer.logprobs) for answer in flat])
    names = [key for key, group in zip(keys, answers, strict=True) for _ in group]
    tokens, _ = pad_right([answer.token_ids for answer in flat], pad_token_id=0, device="cpu")
    require_finite(totals, "a sampled log-probability", ids=names, tokens=tokens)


def require_fit(
    checkpoint: Path, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, longest: int
) -> None:
    """DataError, before any model is loaded, if a prompt and the longest answer to it do not fit into the context."""
    different = list({prompt.turns: prompt for prompt in prompts}.values())
    ids = [encode_prompt(tokenizer, prompt.turns) for prompt in different]
    _check_room(context_of(checkpoint), different, ids, longest)


def _check_room(limit: int, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], longest: int) -> None:
    """DataError if a prompt and its answer might not fit into the context: positions beyond it were never trained."""
    for prompt, row in zip(prompts, ids, strict=True):
        if len(row) + longest > limit:
            raise DataError(
                f"a prompt of {len(row)} tokens and an answer of {longest} exceed the context of {limit}",
                where=f"prompt {prompt.id} of {prompt.source}",
                hints=["leave such prompts out", "lower max_new_tokens", "or raise model.max_length"],
            )


@dataclass(frozen=True, slots=True)
class Rollout:
    """A batch of samples as tensors, all padded on the right.

    Attributes:
        input_ids, attention_mask: [B, S] prompt and completion.
        tokens: [B, T] the completion's tokens.
        completion_mask: [B, T] True on completion tokens that exist.
        start: [B] index in S of the first completion token.
        old_logprobs: [B, T] nats, under the policy that sampled.
    """

    input_ids: Tensor
    attention_mask: Tensor
    tokens: Tensor
    completion_mask: Tensor
    start: Tensor
    old_logprobs: Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample], *, pad_token_id: int, device: torch.device | str) -> Rollout:
        input_ids, attention_mask = pad_right([s.row for s in samples], pad_token_id=pad_token_id, device=device)
        tokens, mask = pad_right([s.completion.token_ids for s in samples], pad_token_id=pad_token_id, device=device)
        old = torch.zeros(tokens.shape, device=device)
        for i, s in enumerate(samples):
            old[i, : len(s.completion.logprobs)] = torch.tensor(s.completion.logprobs)
        start = torch.tensor([len(s.prompt_ids) for s in samples], device=device)
        return cls(input_ids, attention_mask, tokens, mask.bool(), start, old)

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor) -> Rollout:
        """These rows, cut to the longest of them."""
        width = int(self.attention_mask[index].sum(-1).max())
        length = int(self.completion_mask[index].sum(-1).max())
        return Rollout(
            self.input_ids[index, :width],
            self.attention_mask[index, :width],
            self.tokens[index, :length],
            self.completion_mask[index, :length],
            self.start[index],
            self.old_logprobs[index, :length],
        )

    def longest_first(self, index: Tensor) -> Tensor:
        """These rows by length: neighbours leave each other little to pad, and the first need most memory."""
        return index[self.attention_mask[index].sum(-1).argsort(descending=True, stable=True).to(index.device)]

    def spread(self, values: Tensor) -> Tensor:
        """[N] one value for every completion token that exists, row by row -> [B, T], 0 elsewhere."""
        mask = self.completion_mask
        return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)

    def places(self) -> Tensor:
        """[B, T] for every completion token the index in S of the token before it, whose output predicts it."""
        steps = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (self.start[:, None] - 1 + steps).clamp(max=self.input_ids.shape[1] - 1)


def padding_share(policy: PreTrainedModel, rollout: Rollout, parts: Sequence[Tensor]) -> float:
    """How much of what a model computes is padding, when these rows are forwarded together."""
    masks = [rollout.rows(index).attention_mask for index in parts]
    real = sum(int(mask.sum()) for mask in masks)
    computed = sum(int(mask.sum()) if packing.packed(policy.base_model, mask) else mask.numel() for mask in masks)
    return 1 - real / computed if computed else 0.0


def completion_states(policy: PreTrainedModel, rollout: Rollout) -> Tensor:
    """[N, H] the states that predict the completion tokens that exist, row by row."""
    hidden = packing.states(policy.base_model, rollout.input_ids, rollout.attention_mask)
    rows, steps = rollout.completion_mask.nonzero(as_tuple=True)
    return hidden[rows, rollout.start[rows] - 1 + steps]


def completion_logprobs(policy: PreTrainedModel, rollout: Rollout, *, temperature: float) -> Tensor:
    """[B, T] log-probabilities (nats) of the completion tokens, at the temperature they were sampled at."""
    return completion_choices(policy, rollout, temperature=temperature)[0]


def completion_choices(
    policy: PreTrainedModel,
    rollout: Rollout,
    *,
    temperature: float,
    undecided: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, T] of the completion tokens, and what `undecided` makes of the logits over temperature.

    Logits are made for a few tokens at a time, and made again for the gradient: those of all never exist together.
    """
    head = policy.get_output_embeddings()

    def read(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states)[None]
        made = chosen_logprobs(logits, tokens[None], temperature=temperature)[0]
        with torch.no_grad():
            return made, made.new_zeros(len(made)) if undecided is None else undecided(logits / temperature)[0]

    states, tokens = completion_states(policy, rollout), rollout.tokens[rollout.completion_mask]
    rows = max(1, LOGITS // head.weight.shape[0])
    if len(tokens) <= rows:
        found = [read(states, tokens)]
    else:
        parts = zip(torch.split(states, rows), torch.split(tokens, rows), strict=True)
        found = [checkpoint(read, *part, use_reentrant=False) for part in parts]
    logprobs, others = (rollout.spread(torch.cat(made)) for made in zip(*found, strict=True))
    return logprobs, others


def completion_values(critic: PreTrainedModel, rollout: Rollout) -> Tensor:
    """[B, T] the critic's estimate before each completion token is chosen."""
    values = token_values(critic, rollout.input_ids, rollout.attention_mask)
    return values.gather(1, rollout.places())


@torch.no_grad()
def mean_kl(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    samples: Sequence[Sample],
    *,
    temperature: float,
    pad_token_id: int,
) -> float:
    """Mean over answers of KL(policy || reference) in nats, summed over tokens and exact over the vocabulary.

    Both are taken at this temperature, of a few tokens at a time. Where the answers were sampled from the policy at it,
    the mean is unbiased for the KL of whole answers.
    """
    rollout = Rollout.of(samples, pad_token_id=pad_token_id, device=policy.device)
    heads = [model.get_output_embeddings() for model in (policy, reference)]
    with whole(policy, reference):
        tokens, total = max(1, LOGITS // heads[0].weight.shape[0]), 0.0
        for index in torch.split(torch.arange(len(rollout)), 64):
            part, kl = rollout.rows(index), []
            states = (torch.split(completion_states(model, part), tokens) for model in (policy, reference))
            for both in zip(*states, strict=True):
                ours, theirs = (head(read)[None] / temperature for head, read in zip(heads, both, strict=True))
                kl.append(exact_kl(ours, theirs, torch.ones(ours.shape[:2], dtype=torch.bool, device=ours.device)))
            total += torch.cat(kl, 1).sum().item()
    return total / len(rollout)
