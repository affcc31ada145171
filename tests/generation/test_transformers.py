"""Sampling against transformers' own generate, plain forwards, and the laws of the draw."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.errors import ConfigError
from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.transformers import choose, generate

NEVER = -1  # an EOS that no model says
TINY = {"vocab_size": 300, "max_position_embeddings": 64, "initializer_range": 0.4, "tie_word_embeddings": False}
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
# Partly rotary and learned positions; biases; attention to the last few tokens only, in all layers or in every other.
ARCHITECTURES = {
    "gpt_neox": WIDTHS,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "qwen2": WIDTHS | {"num_key_value_heads": 2},
    "mistral": WIDTHS | {"num_key_value_heads": 2, "sliding_window": 4},
    "gemma2": WIDTHS | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
}


def prompts_of(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(8, 300, (n,), generator=generator).tolist() for n in lengths]


PROMPTS = prompts_of(3, 7, 7, 1, 12, 5)
KEYS = ["a", "b", "c", "d", "e", "f"]


def run(model, sampling, *, prompts=PROMPTS, keys=KEYS, seed=0, eos=1, **more):
    return generate(model, Request(prompts, keys, sampling, seed, eos_token_id=eos), **more)


def assert_same(found, wanted):
    """The same tokens and ends; log-probabilities but for the rounding of another batch's matrix products."""
    for group, other in zip(found, wanted, strict=True):
        assert [c.token_ids for c in group] == [c.token_ids for c in other]
        assert [c.finish_reason for c in group] == [c.finish_reason for c in other]
        for a, b in zip(group, other, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=5e-5)


@torch.no_grad()
def plain_logprobs(model, prompt, completion, temperature):
    """One row, no padding, no cache."""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs = (logits / temperature).log_softmax(-1)
    return [row[token].item() for row, token in zip(logprobs, completion.token_ids, strict=True)]


def greedy_by_transformers(model, prompt, *, eos, length):
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": length, "eos_token_id": eos, "pad_token_id": 2}
    return tuple(
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()
    )


# ── against other ways to the same answer ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("eos", [1, None])
def test_greedy_is_what_transformers_generates(policy, eos):
    found = run(policy, Sampling(1, 0.0, 12), eos=NEVER if eos is None else eos)
    for prompt, (completion,) in zip(PROMPTS, found, strict=True):
        assert completion.token_ids == greedy_by_transformers(policy, prompt, eos=eos, length=12)
    lengths = {len(completion.token_ids) for (completion,) in found}
    assert lengths == {12} if eos is None else len(lengths) > 3  # with an end, they end at different places


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_logprobs_are_those_of_a_plain_forward(policy, temperature):
    for prompt, group in zip(PROMPTS, run(policy, Sampling(4, temperature, 12)), strict=True):
        for completion in group:
            wanted = plain_logprobs(policy, prompt, completion, temperature)
            assert completion.logprobs == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_greedy_logprobs_are_those_of_temperature_one(policy):
    for prompt, (completion,) in zip(PROMPTS, run(policy, Sampling(1, 0.0, 12)), strict=True):
        assert completion.logprobs == pytest.approx(plain_logprobs(policy, prompt, completion, 1.0), abs=1e-5)


def other(kind, **shape):
    """A model of another architecture."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = AutoConfig.for_model(kind, **TINY, **(shape or ARCHITECTURES[kind]), **ids)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures(kind):
    model = other(kind)
    for prompt, (completion,) in zip(PROMPTS, run(model, Sampling(1, 0.0, 10)), strict=True):
        assert completion.token_ids == greedy_by_transformers(model, prompt, eos=1, length=10)
    for prompt, group in zip(PROMPTS, run(model, Sampling(3, 1.3, 10)), strict=True):
        for completion in group:
            assert completion.logprobs == pytest.approx(plain_logprobs(model, prompt, completion, 1.3), abs=1e-4)


# ── a sample is its own ──────────────────────────────────────────────────────────────────────────────────────────────

SAMPLING = Sampling(4, 1.0, 12)


@pytest.mark.parametrize("rows_per_batch", [1, 4, 9, 24])
def test_the_size_of_a_batch_changes_nothing(policy, rows_per_batch):
    assert_same(run(policy, SAMPLING, rows_per_batch=rows_per_batch), run(policy, SAMPLING))


def test_the_company_and_the_order_of_a_prompt_change_nothing(policy):
    together = run(policy, SAMPLING)
    for prompt, key, wanted in zip(PROMPTS, KEYS, together, strict=True):
        assert_same(run(policy, SAMPLING, prompts=[prompt], keys=[key]), [wanted])
    assert_same(run(policy, SAMPLING, prompts=PROMPTS[::-1], keys=KEYS[::-1])[::-1], together)


def test_more_samples_begin_with_the_fewer(policy):
    many = run(policy, Sampling(8, 1.0, 12))
    assert_same([group[:4] for group in many], run(policy, SAMPLING))


def test_more_tokens_begin_with_the_fewer(policy):
    long, short = (run(policy, Sampling(4, 1.0, n), eos=NEVER) for n in (12, 5))
    assert [[c.token_ids[:5] for c in group] for group in long] == [[c.token_ids for c in group] for group in short]


def test_a_sample_depends_on_seed_key_and_number(policy):
    sampling = Sampling(6, 1.0, 12)
    prompts = [PROMPTS[0], PROMPTS[0]]
    first = run(policy, sampling, prompts=prompts, keys=["a", "b"], eos=NEVER)
    again = run(policy, sampling, prompts=prompts, keys=["a", "b"], eos=NEVER, seed=1)
    texts = [completion.token_ids for group in (*first, *again) for completion in group]
    # 24 samples of one prompt: over 12 tokens of 3.9 nats each, no two are the same by chance.
    assert len(set(texts)) == 24


def test_no_prompt_no_answer(policy):
    assert run(policy, SAMPLING, prompts=[], keys=[]) == []


# ── the end of an answer ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_stops_at_its_eos_or_at_the_length(policy):
    answers = [completion for group in run(policy, Sampling(8, 1.0, 12)) for completion in group]
    for completion in answers:
        assert len(completion.logprobs) == len(completion.token_ids) <= 12
        assert 1 not in completion.token_ids[:-1]
        assert (completion.token_ids[-1] == 1) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(completion.token_ids) == 12
    assert {completion.finish_reason for completion in answers} == {"stop", "length"}
    # Some stop at the first token, and some at the very last place: neither is taken for an answer that was cut.
    assert {1, 12} <= {len(c.token_ids) for c in answers if c.finish_reason == "stop"}


def test_rows_that_leave_do_not_change_those_that_stay(policy):
    """Rows that ended leave the batch; told of no EOS, all stay to the end, and are cut at their EOS here."""
    leaving, staying = (run(policy, Sampling(8, 1.0, 12), eos=eos) for eos in (1, NEVER))
    for group, others in zip(leaving, staying, strict=True):
        for completion, whole in zip(group, others, strict=True):
            end = whole.token_ids.index(1) + 1 if 1 in whole.token_ids else 12
            assert completion.token_ids == whole.token_ids[:end]
            assert completion.logprobs == pytest.approx(whole.logprobs[:end], abs=1e-5)


def test_work_is_done_once_a_prompt_and_once_a_live_row(policy):
    shapes = []
    hook = policy.model.embed_tokens.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    answers = [completion for group in run(policy, Sampling(8, 1.0, 12)) for completion in group]
    hook.remove()
    # The prompts once, padded to the longest; then one token for each of the 48 rows that needs another after step t.
    needed = [sum(len(c.token_ids) > t for c in answers) for t in range(1, 12)]
    assert shapes == [(6, 12), *((rows, 1) for rows in needed if rows)]
    assert needed[0] > needed[-1] > 0


# ── the draw ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PROBABILITIES = torch.tensor([0.1, 0.4, 0.0, 0.2, 0.3])


def drawn(n, *, temperature=1.0, top_p=1.0, logits=None):
    """`choose` at n evenly spaced places of [0, 1), where each token must come up as often as it is likely, but one."""
    logits = PROBABILITIES.log() if logits is None else logits
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens, logprobs = choose(logits.expand(n, -1), uniform, temperature=temperature, top_p=top_p)
    return torch.bincount(tokens, minlength=len(logits)).double() / n, tokens, logprobs


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.1, 0.4, 0, 0.2, 0.3]),
        (0.5, 1.0, [1 / 30, 16 / 30, 0, 4 / 30, 9 / 30]),  # p^2 = .01 .16 .04 .09, which sum to .30
        (1.0, 0.39, [0, 1, 0, 0, 0]),
        (1.0, 0.41, [0, 4 / 7, 0, 0, 3 / 7]),  # .4 alone is less than .41
        (1.0, 0.69, [0, 4 / 7, 0, 0, 3 / 7]),
        (1.0, 0.71, [0, 4 / 9, 0, 2 / 9, 3 / 9]),
        (1.0, 0.91, [0.1, 0.4, 0, 0.2, 0.3]),
        (0.5, 0.52, [0, 1, 0, 0, 0]),  # the temperature comes before the cut: 16/30 = .533 is enough
        (0.0, 1.0, [0, 1, 0, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_worked_by_hand(temperature, top_p, expected):
    n = 10_000
    frequencies, tokens, logprobs = drawn(n, temperature=temperature, top_p=top_p)
    assert frequencies.tolist() == pytest.approx(expected, abs=1.01 / n)
    if temperature:
        assert logprobs.exp().tolist() == pytest.approx([expected[token] for token in tokens], rel=1e-5)
    else:
        assert logprobs.exp().unique().tolist() == pytest.approx([0.4])


@given(
    logits=st.lists(st.floats(-30, 30), min_size=1, max_size=12),
    temperature=st.floats(0.1, 3.0),
    top_p=st.floats(0.01, 1.0),
    last=st.booleans(),
)
def test_no_draw_ever_leaves_the_kept_set(logits, temperature, top_p, last):
    # The smallest and the largest double below 1 that a generator gives.
    uniform = torch.tensor([1 - 2.0**-53 if last else 0.0], dtype=torch.float64)
    row = torch.tensor([logits])
    token, logprob = choose(row, uniform, temperature=temperature, top_p=top_p)
    assert math.isfinite(logprob.item())
    ahead = (row / temperature).double().softmax(-1)[0]
    # Ahead by more than float32 can tell: of tokens that are as likely, either may be kept.
    assert ahead[ahead > ahead[token] * (1 + 1e-6)].sum().item() < top_p + 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_logits_that_are_no_numbers_give_a_log_probability_that_is_none(bad, temperature, top_p):
    logits = torch.zeros(2, 300)
    logits[1, 7] = bad
    token, logprob = choose(logits, torch.full((2,), 0.5, dtype=torch.float64), temperature=temperature, top_p=top_p)
    assert logprob.isfinite().tolist() == [True, False]
    assert 0 <= int(token[1]) < 300


def test_rows_are_drawn_each_from_its_own(policy):
    logits = torch.tensor([[0.0, 20.0], [20.0, 0.0], [0.0, 0.0]])
    uniform = torch.tensor([0.5, 0.5, 0.75], dtype=torch.float64)
    tokens, logprobs = choose(logits, uniform, temperature=1.0, top_p=1.0)
    assert tokens.tolist() == [1, 0, 1]
    assert logprobs.tolist() == pytest.approx([0.0, 0.0, math.log(0.5)], abs=1e-6)


def chi_square(counts, expected):
    """The statistic and its degrees of freedom; cells that hardly ever come up are taken together."""
    rare = expected < 5
    if rare.any():
        counts, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected))
    return ((counts - expected).square() / expected).sum().item(), len(expected) - 1


def test_first_tokens_are_drawn_from_the_model(policy):
    n, prompt = 20_000, PROMPTS[1]
    (group,) = run(policy, Sampling(n, 1.0, 1), prompts=[prompt], keys=["x"])
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=300).double()
    with torch.no_grad():
        p = policy(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    statistic, cells = chi_square(counts, n * p)
    assert statistic < cells + 5 * math.sqrt(2 * cells)  # mean and standard deviations of chi-square


def test_the_draw_is_the_one_of_a_running_sum_over_the_whole_vocabulary():
    """One sum in float64 over 1,000 tokens, most of them without weight: four blocks, the last one not full."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4_000, 1_000, generator=generator) * 4
    logits = logits.masked_fill(torch.rand(logits.shape, generator=generator) < 0.9, float("-inf"))
    uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64)
    tokens, logprobs = choose(logits, uniform, temperature=1.0, top_p=1.0)
    wanted = logits.double().softmax(-1)
    running = wanted.cumsum(-1)
    index = torch.searchsorted(running, (uniform * running[:, -1])[:, None], right=True)[:, 0]
    # The weights are summed in float32 within a block: one draw in a million or so falls on a border.
    assert (tokens != index).sum() <= 1
    torch.testing.assert_close(logprobs.double(), wanted.gather(1, tokens[:, None])[:, 0].log(), atol=1e-5, rtol=0)


def test_later_tokens_are_drawn_from_the_model(policy):
    """The second token of 20,000 samples, some of whose rows have left by then, against its exact distribution."""
    n, prompt = 20_000, PROMPTS[2]
    (group,) = run(policy, Sampling(n, 1.0, 2), prompts=[prompt], keys=["x"], rows_per_batch=n)
    second = torch.tensor([c.token_ids[1] for c in group if len(c.token_ids) == 2])
    with torch.no_grad():
        first = policy(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        first[1] = 0  # the EOS, after which there is no second token
        rows = torch.cat([torch.tensor(prompt).expand(300, -1), torch.arange(300)[:, None]], dim=1)
        p = first @ policy(rows).logits[:, -1].double().softmax(-1)
    statistic, cells = chi_square(torch.bincount(second, minlength=300).double(), n * p)
    assert 0 < n - len(second) < n / 2
    assert statistic < cells + 5 * math.sqrt(2 * cells)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1.0, 8), "at least one sample a prompt is needed, got 0"),
        ((4, -0.5, 8), "a temperature must be a number from 0 on, got -0.5"),
        ((1, float("nan"), 8), "got nan"),
        ((1, float("inf"), 8), "got inf"),
        ((4, 0.0, 8), "at temperature 0 all 4 samples of a prompt would be the same"),
        ((1, 1.0, 0), "got max_new_tokens 0"),
        ((1, 1.0, 8, 0.0), "top_p must be above 0 and at most 1, got 0.0"),
        ((1, 1.0, 8, 1.5), "got 1.5"),
    ],
)
def test_what_is_no_way_to_sample_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(*values)


def test_draws_of_one_sample_and_of_its_neighbours_are_independent(policy):
    """A model without an opinion says token floor(300 u): pairs of draws must fill the 10 x 10 squares evenly."""
    torch.nn.init.zeros_(policy.lm_head.weight)
    found = run(policy, Sampling(50, 1.0, 40), prompts=PROMPTS[:3], keys=KEYS[:3], eos=NEVER)
    tenth = torch.tensor([[c.token_ids for c in group] for group in found]) // 30  # [3 prompts, 50 samples, 40 steps]
    for one, other in (
        (tenth[:, :, :-1], tenth[:, :, 1:]),
        (tenth[:, :-1], tenth[:, 1:]),
        (tenth[:-1], tenth[1:]),
    ):
        counts = torch.bincount((one * 10 + other).flatten(), minlength=100).double()
        statistic, cells = chi_square(counts, torch.full((100,), one.numel() / 100, dtype=torch.float64))
        assert statistic < cells + 5 * math.sqrt(2 * cells)
