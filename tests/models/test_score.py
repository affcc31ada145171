"""A score against transformers' own, and against everything it must not depend on."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.models.reward_models import RewardModels
from rlhf.models.score import batches_by_length, pad_right, read_score, score, token_values

EOS, PAD = 1, 2


def dialogues(*lengths):
    """Rows of ordinary tokens, each ended by an EOS."""
    generator = torch.Generator().manual_seed(2)
    return [[*torch.randint(8, 300, (n - 1,), generator=generator).tolist(), EOS] for n in lengths]


ROWS = dialogues(5, 17, 2, 9, 9, 30, 12)


@torch.no_grad()
def alone(model, row):
    """The scalar head at every token of one row, without padding: [S]."""
    hidden = model.model(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state
    return (hidden @ model.score.weight.T)[0, :, 0]


# ── where it is read ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_score_is_read_at_the_last_token_that_exists():
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.1, 1.2, 1.3, 1.4], [2.1, 2.2, 2.3, 2.4]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    assert read_score(values, mask).tolist() == pytest.approx([0.4, 1.2, 2.1])


def test_it_is_transformers_own_score(reward_model):
    ids, mask = pad_right(ROWS, pad_token_id=PAD, device="cpu")
    with torch.no_grad():
        wanted = reward_model(input_ids=ids, attention_mask=mask).logits[:, 0]
    assert score(reward_model, ROWS, pad_token_id=PAD).tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
    assert wanted.std() > 0.1  # of a model that tells rows apart


def test_it_is_the_value_at_the_eos_or_where_the_answer_was_cut(reward_model):
    row = ROWS[1]
    values = alone(reward_model, row)
    cut = [row[:n] for n in range(1, len(row) + 1)]
    assert score(reward_model, cut, pad_token_id=PAD).tolist() == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize("last", [PAD, 0])
def test_a_row_may_end_with_any_token_even_the_one_it_is_padded_with(reward_model, last):
    row = [*ROWS[0], last]
    found = score(reward_model, [row, ROWS[5]], pad_token_id=PAD)
    assert found[0].item() == pytest.approx(alone(reward_model, row)[-1].item(), abs=1e-5)


# ── what it does not depend on ───────────────────────────────────────────────────────────────────────────────────────


def test_neither_company_nor_order_nor_repetition_changes_a_score(reward_model):
    together = score(reward_model, ROWS, pad_token_id=PAD)
    by_itself = torch.cat([score(reward_model, [row], pad_token_id=PAD) for row in ROWS])
    assert together.tolist() == pytest.approx(by_itself.tolist(), abs=1e-5)
    backwards = score(reward_model, ROWS[::-1], pad_token_id=PAD).flip(0)
    assert backwards.tolist() == pytest.approx(together.tolist(), abs=1e-5)
    twice = score(reward_model, [*ROWS, *ROWS[::-1]], pad_token_id=PAD)
    assert torch.equal(twice[: len(ROWS)], twice[len(ROWS) :].flip(0))


def test_equal_rows_are_read_once_and_short_ones_are_not_padded_to_long_ones(reward_model):
    shapes = []
    hook = reward_model.model.embed_tokens.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    score(reward_model, [*ROWS, *ROWS, ROWS[0]], pad_token_id=PAD, tokens_per_batch=40)
    hook.remove()
    # Lengths 30 | 17 12 | 9 9 5 2: two of 17 make 34 tokens, four of 9 make 36; one more would pass 40 each time.
    # Both of the last leave padding, so their rows are laid end to end.
    assert [tuple(shape) for shape in shapes] == [(1, 30), (1, 17 + 12), (1, 9 + 9 + 5 + 2)]


@pytest.mark.parametrize("tokens", [1, 30, 64, 10**6])
def test_the_size_of_a_batch_changes_nothing(reward_model, tokens):
    found = score(reward_model, ROWS, pad_token_id=PAD, tokens_per_batch=tokens)
    wanted = [alone(reward_model, row)[-1].item() for row in ROWS]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("extra", [0, 1, 40])
@pytest.mark.parametrize("pad", [PAD, EOS, 77])
@torch.no_grad()
def test_neither_the_amount_of_padding_nor_its_token_changes_a_value(reward_model, extra, pad):
    ids, mask = pad_right([*ROWS, [8] * (30 + extra)], pad_token_id=pad, device="cpu")
    values = token_values(reward_model, ids, mask)
    for i, row in enumerate(ROWS):
        assert values[i, : len(row)].tolist() == pytest.approx(alone(reward_model, row).tolist(), abs=1e-5)


def test_scores_in_half_precision_are_read_out_in_single(reward_model):
    assert score(reward_model.to(torch.bfloat16), ROWS, pad_token_id=PAD).dtype == torch.float32


def test_scoring_leaves_no_trace(reward_model):
    reward_model.train()
    assert not score(reward_model, ROWS, pad_token_id=PAD).requires_grad
    assert not reward_model.training
    ids, mask = pad_right(ROWS, pad_token_id=PAD, device="cpu")
    assert token_values(reward_model, ids, mask).requires_grad  # the critic learns through the same function


# ── rows to batches ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_padding_by_hand():
    ids, mask = pad_right([[5, 6, 7], [8]], pad_token_id=PAD, device="cpu")
    assert ids.tolist() == [[5, 6, 7], [8, 2, 2]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@given(lengths=st.lists(st.integers(1, 50), max_size=40), tokens=st.integers(1, 200))
def test_batches_hold_every_row_once_and_no_more_than_they_may(lengths, tokens):
    batches = batches_by_length(lengths, tokens=tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
    # Similar lengths: what one batch holds is no longer than what the batch before it holds.
    for one, other in pairwise(batches):
        assert min(lengths[i] for i in one) >= max(lengths[i] for i in other)


# ── both models ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_reward_models_make_one_score(reward_model):
    torch.manual_seed(1)
    safety = type(reward_model)(reward_model.config).eval()
    found = RewardModels(reward_model, safety, PAD, EOS)(ROWS, [True, False] * 3 + [False], safety_threshold=0.4)
    wanted = {model: torch.tensor([alone(model, row)[-1].item() for row in ROWS]) for model in (reward_model, safety)}
    assert found.helpfulness.tolist() == pytest.approx(wanted[reward_model].tolist(), abs=1e-5)
    assert found.safety.tolist() == pytest.approx(wanted[safety].tolist(), abs=1e-5)
    # Eq. 4: the safety score on safety prompts and wherever sigmoid(score) is below the threshold.
    for i, combined in enumerate(found.combined.tolist()):
        decides = i in (0, 2, 4) or torch.sigmoid(found.safety[i]) < 0.4
        assert combined == (found.safety if decides else found.helpfulness)[i].item()
    assert len({bool(torch.sigmoid(x) < 0.4) for x in found.safety[1::2]}) == 2  # both cases occur


def test_an_answer_that_was_cut_is_scored_as_if_it_had_ended(reward_model):
    """The models have only ever been read at an EOS: where there is none it is added, and never a second one."""
    models = RewardModels(reward_model, reward_model, PAD, EOS)
    read = []
    hook = reward_model.model.embed_tokens.register_forward_pre_hook(lambda _, args: read.extend(args[0].tolist()))
    cut = [tuple(row[:-1]) for row in ROWS]  # as ids come from a sample
    found = models(cut, [False] * len(ROWS), safety_threshold=0.0)
    hook.remove()
    wanted = Counter(token for row in 2 * ROWS for token in row)
    assert Counter(token for row in read for token in row if token != PAD) == wanted
    whole = models(ROWS, [False] * len(ROWS), safety_threshold=0.0)
    assert torch.equal(found.combined, whole.combined)
    # Only the last place counts: an EOS earlier on, as after every turn of a dialogue, ends no answer.
    dialogue = [*ROWS[0], *ROWS[1][:-1]]
    wanted = alone(reward_model, [*dialogue, EOS])[-1].item()
    assert models([dialogue], [False], safety_threshold=0.0).combined.item() == pytest.approx(wanted, abs=1e-5)
