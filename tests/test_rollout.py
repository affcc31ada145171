"""Answers laid out as tensors against the same answers one row at a time."""

import copy

import pytest
import torch

from rlhf import rollout as rollouts
from rlhf.config import load
from rlhf.data.chat import encode_prompt
from rlhf.data.types import Prompt, Turn
from rlhf.errors import DataError, NonFiniteError
from rlhf.functional.logprobs import entropy
from rlhf.generation.protocol import Completion, Sampling
from rlhf.generation.transformers import InProcess
from rlhf.models import packing
from rlhf.models.load import save
from rlhf.models.score import token_values
from rlhf.resume.shards import keeping
from rlhf.rollout import (
    Rollout,
    Sample,
    completion_choices,
    completion_logprobs,
    completion_states,
    completion_values,
    mean_kl,
    padding_share,
    sample,
    sampler,
)
from rlhf.schema import GenerationConfig

PROMPTS = [
    Prompt(str(i), (*system, Turn("user", text)), "people", is_safety=False)
    for i, (system, text) in enumerate(
        [
            ((), "how do i open the door ?"),
            ((Turn("system", "take the key"),), "how do i open the house ?"),
            ((), "good luck"),
        ]
    )
]
TEMPERATURE = 1.3


@pytest.fixture
def samples(policy, tokenizer):
    """Four answers to each of the three prompts, one after the other; some stop, some are cut."""
    groups = sample(policy, tokenizer, PROMPTS, Sampling(4, TEMPERATURE, 10), seed=0)
    return [answer for group in groups for answer in group]


@pytest.fixture
def rollout(samples):
    return Rollout.of(samples, pad_token_id=2, device="cpu")


@torch.no_grad()
def alone(policy, answer):
    """Log-probabilities [T, V] of one answer's tokens: no padding, no head applied to a part."""
    logits = policy(torch.tensor([answer.row]), use_cache=False).logits[0]
    return (logits / TEMPERATURE).log_softmax(-1)[len(answer.prompt_ids) - 1 : -1]


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_samples_hold_prompt_answer_and_text(samples, tokenizer):
    for i, answer in enumerate(samples):
        prompt = PROMPTS[i // 4]
        assert answer.prompt == prompt
        assert list(answer.prompt_ids) == encode_prompt(tokenizer, prompt.turns)
        assert answer.row == (*answer.prompt_ids, *answer.completion.token_ids)
        assert answer.finished == (answer.completion.token_ids[-1] == tokenizer.eos_token_id)
        kept = [token for token in answer.completion.token_ids if token >= 8]  # the first 8 are control tokens
        assert answer.text == tokenizer.decode(kept).strip()
    assert {answer.finished for answer in samples} == {True, False}
    assert len({len(answer.completion.token_ids) for answer in samples}) > 2


def test_a_sample_is_drawn_by_its_prompts_id(policy, tokenizer, samples):
    (again,) = sample(InProcess(policy, 1), tokenizer, PROMPTS[1:2], Sampling(4, TEMPERATURE, 10), seed=0)
    assert [a.completion.token_ids for a in again] == [a.completion.token_ids for a in samples[4:8]]


def test_a_prompt_whose_answer_might_not_fit_is_refused_before_anything_is_sampled(policy, tokenizer):
    """The context is 128 tokens: what fits exactly is answered, one token more is not."""
    longest = max(len(encode_prompt(tokenizer, prompt.turns)) for prompt in PROMPTS)
    room = 128 - longest
    with torch.no_grad():
        policy.lm_head.weight[tokenizer.eos_token_id] = 0  # as good as never the end
    answers = [group[0] for group in sample(policy, tokenizer, PROMPTS, Sampling(1, 1.0, room), seed=0)]
    assert max(len(answer.row) for answer in answers) == 128
    policy.forward = None  # nothing is sampled, not even for the prompts that would fit
    with pytest.raises(DataError, match=rf"a prompt of {longest} tokens and an answer of {room + 1} exceed") as refused:
        sample(policy, tokenizer, PROMPTS, Sampling(1, 1.0, room + 1), seed=0)
    assert refused.value.what.endswith("exceed the context of 128")
    assert refused.value.where == "prompt 1 of people"  # the one with a system message


def test_a_dialogue_that_goes_on_stays_with_the_process_that_has_read_it(policy, tokenizer, monkeypatch):
    """Prompts are dealt by their length, so that each process has as much to read; not those of dialogues."""
    costs = []
    monkeypatch.setattr(
        rollouts, "dealt", lambda items, work, *, cost: costs.append([cost(item) for item in items]) or work(items)
    )
    for engine in (InProcess(policy), rollouts.remembering(policy), rollouts.remembering(InProcess(policy, 2))):
        sample(engine, tokenizer, PROMPTS, Sampling(1, 1.0, 4), seed=0)
    assert costs == [[24, 37, 9], [0, 0, 0], [0, 0, 0]]  # characters


def test_dialogues_are_held_in_parts_that_are_one_batch(policy, monkeypatch):
    assert rollouts.batches(InProcess(policy, 7), 20) == [range(20)]  # one that remembers nothing needs no parts
    assert rollouts.batches(Served(), 20, samples=3) == [range(20)]
    assert rollouts.batches(Served(), 0) == []
    engine = rollouts.remembering(InProcess(policy, 7))
    assert [list(part) for part in rollouts.batches(engine, 5, samples=3)] == [[0, 1], [2, 3], [4]]
    assert [len(part) for part in rollouts.batches(engine, 8)] == [7, 1]
    assert [len(part) for part in rollouts.batches(engine, 2, samples=8)] == [1, 1]  # one at a time at least
    monkeypatch.setattr(rollouts.team, "size", lambda: 3)
    assert [len(part) for part in rollouts.batches(engine, 8, samples=3)] == [6, 2]  # two for each of three processes


def test_what_a_killed_stage_has_left_is_read_for_what_goes_on_from_it(policy, tokenizer, tmp_path):
    """Two turns of two dialogues; the answers to the first are known in the second life, whose bits are the same."""

    def further(first):
        turns = [(*a.prompt.turns, Turn("assistant", a.text), Turn("user", "good luck")) for a in first]
        return [Prompt(f"{i}/1", spoken, "people", is_safety=False) for i, spoken in enumerate(turns)]

    def life(known=None):
        engine, answers = rollouts.remembering(policy), iter(known or ())
        asked = []

        def chunks(question, make):
            asked.append(next(answers, None) or make())
            return asked[-1]

        with keeping(chunks):
            first = [g[0] for g in sample(engine, tokenizer, PROMPTS[:2], Sampling(1, TEMPERATURE, 6), seed=0)]
            return asked, sample(engine, tokenizer, further(first), Sampling(2, TEMPERATURE, 6), seed=1)

    read = []
    policy.model.embed_tokens.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    answers, whole = life()
    one_life = [shape for shape in read if shape[1] > 1]
    read.clear()
    _, again = life(known=answers[:1])
    assert again == whole  # log-probabilities, too, to the last bit
    assert [shape for shape in read if shape[1] > 1] == one_life


class Served:
    """An engine that lives elsewhere, and is not well."""

    context = 128
    decoder = "elsewhere"

    def generate(self, request):
        well, ill = Completion((9, 8), (-0.1, -0.2), "stop"), Completion((9, 8), (-0.1, float("nan")), "stop")
        return [[well, ill] if key == "1" else [well, well] for key in request.keys]


def test_a_log_probability_that_is_no_number_is_met_whatever_engine_it_came_from(tokenizer):
    with pytest.raises(NonFiniteError, match="a sampled log-probability is not finite") as met:
        sample(Served(), tokenizer, PROMPTS, Sampling(2, 1.0, 10), seed=0)
    assert list(met.value.rows) == ["1"]


# ── layout ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def made(prompt_ids, token_ids, logprobs):
    return Sample(PROMPTS[0], tuple(prompt_ids), Completion(tuple(token_ids), tuple(logprobs), "stop"), "")


BY_HAND = [made([10, 11, 12], [13, 1], [-0.5, -1.5]), made([20], [21, 22, 1], [-0.1, -0.2, -0.3])]


def test_layout_by_hand():
    rollout = Rollout.of(BY_HAND, pad_token_id=2, device="cpu")
    assert len(rollout) == 2
    assert rollout.input_ids.tolist() == [[10, 11, 12, 13, 1], [20, 21, 22, 1, 2]]
    assert rollout.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert rollout.tokens.tolist() == [[13, 1, 2], [21, 22, 1]]
    assert rollout.completion_mask.tolist() == [[True, True, False], [True, True, True]]
    assert rollout.start.tolist() == [3, 1]
    assert rollout.old_logprobs.tolist() == [pytest.approx([-0.5, -1.5, 0.0]), pytest.approx([-0.1, -0.2, -0.3])]
    # Token 13 stands at 3 and is predicted at 2, the EOS at 3; there is no third token, and 4 is the last place.
    assert rollout.places().tolist() == [[2, 3, 4], [0, 1, 2]]


def test_rows_are_cut_to_the_longest_of_them_by_hand():
    rollout = Rollout.of(BY_HAND, pad_token_id=2, device="cpu")
    second = rollout.rows(torch.tensor([1]))
    assert second.input_ids.tolist() == [[20, 21, 22, 1]]
    assert second.attention_mask.tolist() == [[1, 1, 1, 1]]
    assert second.tokens.tolist() == [[21, 22, 1]]
    first = rollout.rows(torch.tensor([0]))
    assert first.input_ids.tolist() == [[10, 11, 12, 13, 1]]
    assert first.tokens.tolist() == [[13, 1]]
    assert first.completion_mask.tolist() == [[True, True]]
    assert first.start.tolist() == [3]
    assert first.old_logprobs.tolist() == [pytest.approx([-0.5, -1.5])]


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [11, 0, 5], [7], [3, 3]])
def test_rows_are_what_the_same_samples_make(samples, rollout, chosen):
    found = rollout.rows(torch.tensor(chosen))
    wanted = Rollout.of([samples[i] for i in chosen], pad_token_id=2, device="cpu")
    for name in Rollout.__dataclass_fields__:
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


def test_a_completion_stands_in_the_row_where_it_is_predicted(rollout):
    following = rollout.input_ids.gather(1, (rollout.places() + 1).clamp(max=rollout.input_ids.shape[1] - 1))
    assert torch.equal(following[rollout.completion_mask], rollout.tokens[rollout.completion_mask])


# ── what the models say of it ────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_logprobs_are_those_of_each_row_alone(policy, samples, rollout):
    logprobs = completion_logprobs(policy, rollout, temperature=TEMPERATURE)
    logits = policy.lm_head(completion_states(policy, rollout))
    assert logprobs.shape == rollout.tokens.shape
    logits = logits.split(rollout.completion_mask.sum(-1).tolist())  # nothing is computed for padding
    for i, answer in enumerate(samples):
        wanted, tokens = alone(policy, answer), torch.tensor(answer.completion.token_ids)
        torch.testing.assert_close((logits[i] / TEMPERATURE).log_softmax(-1), wanted, atol=1e-4, rtol=0)
        chosen = wanted.gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(logprobs[i, : len(tokens)], chosen, atol=1e-4, rtol=0)
        assert logprobs[i, len(tokens) :].eq(0).all()


@torch.no_grad()
def test_the_policy_that_sampled_says_the_same_again(policy, rollout):
    """The ratio of PPO starts at one: no other temperature, no shift by one, no padding that is seen."""
    again = completion_logprobs(policy, rollout, temperature=TEMPERATURE)
    mask = rollout.completion_mask
    torch.testing.assert_close(again[mask], rollout.old_logprobs[mask], atol=1e-4, rtol=0)
    other = completion_logprobs(policy, rollout, temperature=1.0)
    assert (other - rollout.old_logprobs)[mask].abs().mean() > 0.05


@torch.no_grad()
def test_values_stand_before_the_token_they_are_about(reward_model, samples, rollout):
    values = completion_values(reward_model, rollout)
    assert values.shape == rollout.tokens.shape
    for i, answer in enumerate(samples):
        row = torch.tensor([answer.row])
        every = token_values(reward_model, row, torch.ones_like(row))[0]
        # The value before the first token is read where the prompt ends; that of the whole answer is not among them.
        wanted = every[len(answer.prompt_ids) - 1 : -1]
        torch.testing.assert_close(values[i, : len(wanted)], wanted, atol=1e-4, rtol=0)


def test_the_kl_of_a_policy_to_itself_is_nothing(policy, samples):
    same = {"temperature": 1.0, "pad_token_id": 2}
    assert mean_kl(policy, copy.deepcopy(policy), samples, **same) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@torch.no_grad()
def test_the_kl_to_another_model_is_summed_over_each_answer_and_averaged_over_answers(
    policy, samples, temperature, monkeypatch
):
    other = copy.deepcopy(policy)
    for weight in other.parameters():
        weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    wanted = []
    for answer in samples:
        row = torch.tensor([answer.row])
        ours, theirs = (
            (m(row, use_cache=False).logits[0] / temperature).log_softmax(-1).double() for m in (policy, other)
        )
        places = slice(len(answer.prompt_ids) - 1, -1)
        wanted.append(torch.nn.functional.kl_div(theirs, ours, log_target=True, reduction="none")[places].sum().item())
    assert min(wanted) > 0.01
    same = {"temperature": temperature, "pad_token_id": 2}
    found = mean_kl(policy, other, samples, **same)
    assert found == pytest.approx(sum(wanted) / len(samples), rel=1e-4)
    assert found != pytest.approx(mean_kl(other, policy, samples, **same), rel=1e-3)  # it has a direction
    # More answers than are read at a time.
    assert mean_kl(policy, other, samples * 11, **same) == pytest.approx(found, rel=1e-5)
    widths = []
    hook = policy.lm_head.register_forward_hook(lambda _, args, logits: widths.append(len(logits)))
    monkeypatch.setattr(rollouts, "LOGITS", 7 * 300)
    assert mean_kl(policy, other, samples, **same) == pytest.approx(found, rel=1e-5)
    hook.remove()
    assert max(widths) == 7


def test_the_share_of_padding_by_hand(policy, rollout, monkeypatch):
    lengths = rollout.attention_mask.sum(-1).tolist()
    parts = [torch.tensor([0, 1]), torch.tensor([2])]
    computed = 2 * max(lengths[:2]) + lengths[2]
    monkeypatch.setattr(packing, "MOST_PADDING", 0.999)
    assert padding_share(policy, rollout, parts) == pytest.approx(1 - sum(lengths[:3]) / computed)
    assert padding_share(policy, rollout, [torch.tensor([i]) for i in range(len(rollout))]) == 0.0
    monkeypatch.setattr(packing, "MOST_PADDING", 0.0)
    assert padding_share(policy, rollout, parts) == 0.0


@pytest.mark.parametrize("tokens", [1, 7])
def test_logits_of_a_few_tokens_at_a_time_are_the_logits_of_all(policy, rollout, tokens, monkeypatch):
    """The same log-probabilities, entropies and gradient, and no more logits at once than were asked for."""
    made, widths = [], []
    hook = policy.lm_head.register_forward_hook(lambda _, args, logits: widths.append(len(logits)))
    for limit in (2**22, tokens * 300):
        monkeypatch.setattr(rollouts, "LOGITS", limit)
        logprobs, undecided = completion_choices(policy, rollout, temperature=TEMPERATURE, undecided=entropy)
        policy.zero_grad()
        logprobs.square().sum().backward()
        made.append((logprobs.detach(), undecided, torch.cat([p.grad.flatten() for p in policy.parameters()])))
    hook.remove()
    count = int(rollout.completion_mask.sum())
    assert widths[0] == count
    assert max(widths[1:]) == tokens
    assert sum(widths[1:]) == 2 * count  # once, and again for the gradient
    for found, wanted in zip(made[1], made[0], strict=True):
        assert wanted.abs().max() > 0.1
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_gradient_reaches_policy_and_critic(policy, reward_model, rollout):
    part = rollout.rows(torch.tensor([0, 5]))
    completion_logprobs(policy, part, temperature=1.0)[part.completion_mask].sum().backward()
    completion_values(reward_model, part)[part.completion_mask].sum().backward()
    for model in (policy, reward_model):
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_the_rows_decoded_together_are_those_of_the_setting(policy, tokenizer, tmp_path):
    """No forward is wider, and the answers are the same."""
    save(policy, tokenizer, tmp_path)
    model, widths = load("tiny").recipe.model, []
    engine = sampler(GenerationConfig(rows_per_batch=4), tmp_path, model)
    engine.model.register_forward_pre_hook(
        lambda _, __, inputs: widths.append(len(inputs["input_ids"])), with_kwargs=True
    )
    four, answers = Sampling(4, TEMPERATURE, 10), []
    for chosen in (engine, policy):
        groups = sample(chosen, tokenizer, PROMPTS, four, seed=0)
        answers.append([[s.completion.token_ids for s in group] for group in groups])
    assert answers[0] == answers[1]
    assert max(widths) == 4
