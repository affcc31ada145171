"""The default engine: sampling on the model's own forward, for any causal language model made of attention.

Four things separate it from `model.generate(num_return_sequences=K)`: a prompt is encoded once for its K samples,
the cache is allocated once instead of growing by concatenation, finished rows leave the batch, and of a dialogue that
goes on only the last turn is read. The random number of sample k of a prompt at step t depends on (seed, prompt key, k,
t) alone, so the draw does not depend on the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from rlhf.generation.caches import RowCache, SharedPrompts
from rlhf.generation.dialogues import Dialogues
from rlhf.generation.fused import Fused, applies
from rlhf.generation.protocol import Completion, Request
from rlhf.models.load import positions
from rlhf.models.packing import unlimited

BLOCK = 256
"""Tokens of the vocabulary that are summed together before one of them is looked for."""


@dataclass(frozen=True)
class InProcess:
    """A model in this process as an engine."""

    model: PreTrainedModel
    rows_per_batch: int = 256
    dialogues: Dialogues | None = None
    """What has been read of dialogues that are to go on."""

    def remembering(self) -> InProcess:
        """The same, for dialogues turn by turn: what it has read of one it does not read again.

        Of a model that counts the slots of its cache, to see the last of them only, nothing is kept: some are empty.
        """
        return replace(self, dialogues=Dialogues()) if unlimited(self.model) else self

    @property
    def context(self) -> int:
        return positions(self.model.config)

    @property
    def decoder(self) -> str:
        return "fused" if applies(self.model) else "forward"

    def generate(self, request: Request) -> list[list[Completion]]:
        return generate(self.model, request, rows_per_batch=self.rows_per_batch, dialogues=self.dialogues)

    def skip(self, request: Request) -> None:
        """The answers to this are known already, from a stage that was killed; what is asked next may go on from it."""
        if self.dialogues is not None:
            self.dialogues.skip(request)


@torch.no_grad()
def generate(
    model: PreTrainedModel, request: Request, *, rows_per_batch: int = 256, dialogues: Dialogues | None = None
) -> list[list[Completion]]:
    """K completions of every prompt, in the order given; `rows_per_batch` is memory and speed only."""
    model.eval()
    for earlier in dialogues.before(request) if dialogues else ():
        for chosen in _batches(earlier, rows_per_batch):
            _read(model, earlier.part(chosen).prompts, dialogues)
    found: list[list[Completion]] = [[] for _ in request.prompts]
    k = request.sampling.samples_per_prompt
    step = Fused(model) if applies(model) else Whole(model)
    for chosen in _batches(request, rows_per_batch):
        rows = _decode(model, step, request.part(chosen), dialogues)
        for place, i in enumerate(chosen):
            found[i] = rows[place * k : (place + 1) * k]
    return found


def _batches(request: Request, rows_per_batch: int) -> list[list[int]]:
    """The prompts of each batch, the shortest first: where a row stands in its batch may decide about its last bits."""
    order = sorted(range(len(request.prompts)), key=lambda i: len(request.prompts[i]))
    size = max(1, rows_per_batch // request.sampling.samples_per_prompt)
    return [order[start : start + size] for start in range(0, len(order), size)]


class Whole:
    """One step of decoding by the model's own forward, whatever its architecture."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache) -> Tensor:
        """The logits [R, V] after `tokens` [R] at `positions` [R]; `mask` [R, S] is 1 where a row sees."""
        logits: Tensor = self.model(
            input_ids=tokens[:, None], attention_mask=mask, position_ids=positions[:, None], past_key_values=cache
        ).logits
        return logits[:, -1]


def _decode(
    model: PreTrainedModel, step: Whole | Fused, request: Request, dialogues: Dialogues | None
) -> list[Completion]:
    """One batch: prefill the prompts, then one token per live row and step. Rows are [prompt * K + k]."""
    sampling, device = request.sampling, model.device
    rows = len(request.prompts) * sampling.samples_per_prompt
    logits, cache, mask, position = _prefill(model, request, dialogues, shared=isinstance(step, Fused))
    width = 0 if mask is None else mask.shape[1] - sampling.max_new_tokens
    uniforms = _uniforms(request).to(device)
    tokens = torch.zeros((rows, sampling.max_new_tokens), dtype=torch.long, device=device)
    logprobs = torch.zeros((rows, sampling.max_new_tokens), device=device)
    length = torch.full((rows,), sampling.max_new_tokens, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    live = torch.arange(rows, device=device)
    for t in range(sampling.max_new_tokens):
        token, logprob = choose(logits, uniforms[live, t], temperature=sampling.temperature, top_p=sampling.top_p)
        tokens[live, t], logprobs[live, t] = token, logprob
        stop = token == request.eos_token_id
        length[live[stop]], ended[live[stop]] = t + 1, True
        if t + 1 == sampling.max_new_tokens or bool(stop.all()):
            break
        if bool(stop.any()):
            kept = _leave(cache, stop)
            live, token, position = live[kept], token[kept], position[kept]
            mask = None if mask is None else mask[kept]
        logits = step(token, position, None if mask is None else mask[:, : width + t + 1], cache)
        position = position + 1
    return [
        Completion(tuple(ids[:n]), tuple(lps[:n]), "stop" if end else "length")
        for ids, lps, n, end in zip(tokens.tolist(), logprobs.tolist(), length.tolist(), ended.tolist(), strict=True)
    ]


def _leave(cache: Cache, stop: Tensor) -> Tensor:
    """Take the rows that stop out of the cache; for each row of the smaller batch, which row it was.

    The last rows fill the gaps, so that what moves is one row for each that leaves, and not the whole cache.
    """
    kept = (~stop).nonzero()[:, 0]
    rows = len(kept)
    holes, movers = stop[:rows].nonzero()[:, 0], kept[kept >= rows]
    for layer in cache.layers:
        layer.shrink(holes, movers, rows)
    return torch.arange(rows, device=stop.device).index_put((holes,), movers)


def _prefill(
    model: PreTrainedModel, request: Request, dialogues: Dialogues | None, *, shared: bool
) -> tuple[Tensor, Cache, Tensor | None, Tensor]:
    """Encode each prompt once, then give each of its K rows its cache: a copy, or where it is `shared` its place."""
    k, room = request.sampling.samples_per_prompt, request.sampling.max_new_tokens
    logits, cache, seen = _read(model, request.prompts, dialogues)
    kind = SharedPrompts if shared and k > 1 else RowCache
    # One by one: what a layer was read into goes before the next is copied, unless it is held for the next turn.
    for i, layer in enumerate(cache.layers):
        cache.layers[i] = kind(layer.keys, layer.values, seen=seen, copies=k, room=room)
    mask = None if bool(seen.all()) else torch.nn.functional.pad(seen, (0, room), value=1).repeat_interleave(k, 0)
    return logits.repeat_interleave(k, 0), cache, mask, seen.sum(-1).repeat_interleave(k)


def _read(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], dialogues: Dialogues | None
) -> tuple[Tensor, DynamicCache, Tensor]:
    """The logits [P, V] after each prompt, its keys and values, and which of their slots [P, S] hold a token.

    Prompts are padded on the left here, so that all rows write their next token to the same slot. What with does not
    matter: nothing sees it.
    """
    # Told of the model's config, the cache of sliding attention would drop the oldest keys, which are the padding of
    # short prompts but tokens of long ones. It keeps them all here, and the mask hides what is out of sight.
    nothing = DynamicCache(), torch.zeros((len(prompts), 0), dtype=torch.long, device=model.device)
    cache, seen = (dialogues.recall(prompts) if dialogues else None) or nothing
    fresh = [prompt[read:] for prompt, read in zip(prompts, seen.sum(-1).tolist(), strict=True)]
    width = max(map(len, fresh))
    lengths = torch.tensor([len(row) for row in fresh], device=model.device)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in fresh], device=model.device)
    seen = torch.cat((seen, (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()), 1)
    positions = (seen.cumsum(-1) - 1).clamp(min=0)[:, -width:]
    logits = model(
        input_ids=ids,
        attention_mask=None if bool(seen.all()) else seen,  # no padding: attention needs no mask
        position_ids=positions,
        past_key_values=cache,
        logits_to_keep=1,
    ).logits[:, -1]
    if dialogues is not None:
        dialogues.keep(prompts, cache, seen)
    return logits, cache, seen


def choose(logits: Tensor, uniform: Tensor, *, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the cumulative distribution at `uniform`.

    Args:
        logits: [R, V].
        uniform: [R] in [0, 1), float64.
        temperature: 0 takes the most likely token, whose log-probability is then that of temperature 1.
        top_p: keep the smallest set of tokens with at least this probability.

    Returns:
        tokens [R] and their log-probabilities [R] (nats) in the distribution drawn from.
    """
    scaled = logits.float() if temperature in (0, 1) else logits.float() / temperature
    if temperature == 0:
        token = scaled.argmax(-1)
        return token, scaled.gather(1, token[:, None])[:, 0] - scaled.logsumexp(-1)
    if top_p < 1.0:
        scaled = _nucleus(scaled, top_p)
    highest = scaled.amax(-1, keepdim=True)
    weights = (scaled - highest).exp()
    token, total = _invert(weights, uniform)
    logprob = (scaled.gather(1, token[:, None]) - highest)[:, 0].double() - total.log()
    return token, logprob.float()


def _nucleus(scaled: Tensor, top_p: float) -> Tensor:
    """The logits with every token outside the smallest set of probability `top_p` at minus infinity."""
    ordered, index = scaled.log_softmax(-1).sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.empty_like(scaled).scatter_(1, index, ordered)


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the running sum of `weights` [R, V] passes `uniform` of the total; tokens and totals [R].

    Two levels, first the block of tokens and then the token in it: one running sum in float64 over all of V would take
    longer than the rest of the draw. Both look for the first sum above a value below the last, so that a token without
    weight is never found. Of weights that are not finite none is above: the last token, by its log-probability, tells.
    """
    rows = torch.arange(len(weights), device=weights.device)
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % BLOCK)).view(len(weights), -1, BLOCK)
    sums = blocks.sum(-1)
    running = sums.double().cumsum(-1)
    total = running[:, -1]
    target = uniform * total
    block = torch.searchsorted(running, target[:, None], right=True)[:, 0].clamp(max=running.shape[-1] - 1)
    own = sums[rows, block].double()
    share = ((target - (running[rows, block] - own)) / own).clamp(min=0)
    within = blocks[rows, block].double().cumsum(-1)
    last = within[:, -1]
    target = (share * last).minimum(last.nextafter(torch.zeros_like(last)))
    place = torch.searchsorted(within, target[:, None], right=True)[:, 0]
    return (block * BLOCK + place).clamp(max=weights.shape[-1] - 1), total


def _uniforms(request: Request) -> Tensor:
    """Uniform numbers [prompts * K, max_new_tokens] that depend on (seed, key, k, t) alone."""
    rows = []
    for key in request.keys:
        for k in range(request.sampling.samples_per_prompt):
            digest = hashlib.sha256(f"{request.seed}/{key}/{k}".encode()).digest()
            stream = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
            rows.append(stream.random(request.sampling.max_new_tokens))
    return torch.from_numpy(np.stack(rows))
