"""What is called an estimate, against the memory that torch takes for it; and numbers that stand in two places."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from rlhf import rollout
from rlhf.config import load
from rlhf.costs.memory import LOGITS, TILE, activations, joined, logits, reading
from rlhf.costs.shapes import Shape
from rlhf.costs.stages import SCORED, SCORED_ON_CPU
from rlhf.functional.kl import exact_kl
from rlhf.functional.logprobs import chosen_logprobs, entropy
from rlhf.generation.fused import Fused, Joined
from rlhf.models.packing import documents
from rlhf.models.score import AT_ONCE, AT_ONCE_ON_CPU

SHAPE = Shape(500, 64, 176, 6, 4, 2, 16)
ROWS, TOKENS = 8, 64


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SHAPE.vocab_size,
        hidden_size=SHAPE.hidden_size,
        intermediate_size=SHAPE.intermediate_size,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def peak(work) -> int:
    """The most bytes that torch held at a time beside what it held before."""
    work()  # what is taken once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = sorted((e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
    held = [0]
    for _, taken in events:
        held.append(held[-1] + taken)
    return max(held)


def of_a_step(llama, again, **given):
    """Bytes of a forward and backward, and the estimate."""
    model = load("tiny").recipe.model.model_copy(update={"gradient_checkpointing": again})
    llama.train()
    (llama.activation_checkpointing_enable if again else llama.activation_checkpointing_disable)()

    def step():
        llama.model(**given, use_cache=False).last_hidden_state.sum().backward()

    return peak(step), activations(SHAPE, model, tokens=ROWS * TOKENS)


@pytest.mark.parametrize("again", [False, True])
def test_activations_of_a_step(llama, again):
    found, estimate = of_a_step(llama, again, input_ids=torch.randint(0, 500, (ROWS, TOKENS)))
    assert found == pytest.approx(estimate, rel=0.2)


@pytest.mark.parametrize("again", [False, True])
def test_activations_of_packed_rows_hold_nothing_of_who_sees_whom(llama, again):
    """Four documents a row; with a mask it would be half as much again."""
    ids = torch.randint(0, 500, (ROWS, TOKENS))
    positions = torch.arange(TOKENS).remainder(TOKENS // 4).expand(ROWS, -1)
    batch = documents(llama.model, {"input_ids": ids, "labels": ids, "position_ids": positions})
    found, estimate = of_a_step(llama, again, **{name: given for name, given in batch.items() if name != "labels"})
    assert found == pytest.approx(estimate, rel=0.25)


@torch.no_grad()
def test_reading(llama):
    llama.eval()
    ids = torch.randint(0, 500, (ROWS, TOKENS))
    found = peak(lambda: llama.model(input_ids=ids, use_cache=False))
    assert found == pytest.approx(reading(SHAPE, load("tiny").recipe.model, tokens=ROWS * TOKENS), rel=0.2)


def test_copies_of_logits():
    """Six while PPO makes log-probabilities and entropy, seven where two policies are compared."""
    hidden, tokens = torch.randn(ROWS, 8), torch.randint(0, 4000, (1, ROWS))
    head, mask = torch.nn.Linear(8, 4000, bias=False), torch.ones(1, ROWS, dtype=torch.bool)

    def chosen():
        made = head(hidden)[None]
        kept = chosen_logprobs(made, tokens, temperature=1.0)
        with torch.no_grad():
            entropy(made / 1.0)
        kept.sum()

    def compared():
        with torch.no_grad():
            exact_kl(*(head(hidden)[None] / 1.0 for _ in range(2)), mask)

    for work, copies in ((chosen, 6), (compared, 7)):
        assert peak(work) == pytest.approx(logits(SHAPE, tokens=ROWS * 8, copies=copies, most=1e9), rel=0.1)


def test_the_copy_of_the_weights_that_decoding_makes(llama):
    fused = Fused(llama)
    parts = [part for block in fused.blocks for part in vars(block).values() if isinstance(part, Joined)]
    assert joined(SHAPE) == 4 * sum(part.weight.numel() for part in [*parts, fused.head])


def test_numbers_that_stand_in_two_places():
    assert rollout.LOGITS == LOGITS
    assert TOKEN_CHUNK_SIZE * _CHUNKED_LOGPROB_CHUNK_SIZE == TILE
    assert (AT_ONCE, AT_ONCE_ON_CPU) == (SCORED, SCORED_ON_CPU)
