"""One row for both completions against two rows, and against transformers: the same scores, the same gradients."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.models.branches import shared_prefix, visible
from rlhf.models.pair_batches import Pair, cheapest, collate, length_of, pair_scores, sizes_of, tokens_of

EOS, PAD = 1, 2


def rows(*shapes, seed=3):
    """(prompt, chosen, rejected) lengths to pairs of ids with an EOS at both ends."""
    draw = torch.Generator().manual_seed(seed)

    def words(n, first=8):
        return torch.randint(first, 300, (n,), generator=draw).tolist()

    made = []
    for prompt, chosen, rejected in shapes:
        start = words(prompt)
        made.append(([*start, 5, *words(chosen - 2), EOS], [*start, 6, *words(rejected - 2), EOS]))
    return made


PAIRS = rows((20, 4, 9), (3, 12, 2), (0, 5, 5), (31, 2, 2))


def gradients(model, layout, pairs):
    """Scores of a batch, and the gradient of the ranking loss with respect to every weight."""
    model.zero_grad()
    chosen, rejected = pair_scores(model, collate(pairs, layout, pad_token_id=PAD))
    (-torch.nn.functional.logsigmoid(chosen - rejected).mean()).backward()
    return chosen.detach(), rejected.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_one_row_gives_the_scores_of_two_and_their_gradients(reward_model):
    two, one = gradients(reward_model, "two rows", PAIRS), gradients(reward_model, "shared prompt", PAIRS)
    torch.testing.assert_close(one[0], two[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one[1], two[1], atol=1e-5, rtol=1e-5)
    for name, wanted in two[2].items():
        assert (one[2][name] - wanted).norm() <= 1e-4 * wanted.norm(), name


@pytest.mark.parametrize("layout", ["two rows", "shared prompt"])
@torch.no_grad()
def test_both_give_the_scores_of_transformers_row_by_row(reward_model, layout):
    found = torch.stack(pair_scores(reward_model, collate(PAIRS, layout, pad_token_id=PAD)))
    for i, j in itertools.product(range(2), range(len(PAIRS))):
        alone = reward_model(input_ids=torch.tensor([PAIRS[j][i]])).logits.item()
        assert found[i, j].item() == pytest.approx(alone, abs=1e-5)


@torch.no_grad()
def test_the_other_completion_the_batch_and_the_side_are_not_seen(reward_model):
    """Recipe S5 for the shared row: other company, other order, the sides exchanged."""
    chosen, _ = pair_scores(reward_model, collate(PAIRS, "shared prompt", pad_token_id=PAD))
    for i, (mine, other) in enumerate(PAIRS):
        start = mine[: shared_prefix(mine, other)]
        beside = (mine, [*start, 7, *[9] * 30, EOS])
        turned = (beside[1], mine)
        one = pair_scores(reward_model, collate([beside], "shared prompt", pad_token_id=PAD))[0]
        two = pair_scores(reward_model, collate([PAIRS[3], turned], "shared prompt", pad_token_id=EOS))[1]
        assert [one[0].item(), two[1].item()] == pytest.approx([chosen[i].item()] * 2, abs=1e-5)


def test_what_a_token_sees_by_hand():
    # prompt prompt chosen rejected padding
    assert visible(torch.tensor([[0, 0, 1, 2, -1]]))[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_a_shared_row_by_hand():
    made = collate([([4, 5, 6, 1], [4, 5, 7, 8, 1]), ([4, 1], [9, 1])], "shared prompt", pad_token_id=PAD)
    assert made["input_ids"].tolist() == [[4, 5, 6, 1, 7, 8, 1], [4, 1, 9, 1, 2, 2, 2]]
    assert made["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4], [0, 1, 0, 1, 0, 0, 0]]
    assert made["segments"].tolist() == [[0, 0, 1, 1, 2, 2, 2], [1, 1, 2, 2, -1, -1, -1]]
    assert tokens_of(made) == 11
    assert tokens_of(collate([([4, 5, 6, 1], [4, 5, 7, 8, 1])], "two rows", pad_token_id=PAD)) == 9


@given(a=st.lists(st.integers(0, 3), min_size=1, max_size=8), b=st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_the_prefix_is_the_longest_that_leaves_both_a_token(a, b):
    n = shared_prefix(a, b)
    assert a[:n] == b[:n]
    assert n < min(len(a), len(b))
    assert n == min(len(a), len(b)) - 1 or a[n] != b[n]
    assert length_of(a, b, "shared prompt") == len(a) + len(b) - n


# ── which layout ─────────────────────────────────────────────────────────────────────────────────────────────────────


def both(sides):
    """Sizes of the pairs, and one batch of all of them in each layout."""
    places = range(len(sides))
    sizes = sizes_of(Pair(chosen, rejected, 0.0, 1.0, 0.0) for chosen, rejected in sides)
    return sizes, {"two rows": [places], "shared prompt": [places]}


def test_long_prompts_are_shared_and_long_completions_are_not(reward_model):
    long_prompts, long_completions = rows((90, 5, 5), (90, 5, 5)), rows((2, 900, 900), (2, 900, 900))
    found = cheapest(reward_model, *both(long_prompts))
    # 100 tokens a pair instead of 190, without padding.
    assert (found.layout, found.tokens, found.padding) == ("shared prompt", 200, 0.0)
    assert 0.5 < found.work < 0.6
    # One row of 1,802 has to attend over twice as many keys as two rows of 902.
    found = cheapest(reward_model, *both(long_completions))
    assert (found.layout, found.tokens, found.work) == ("two rows", 2 * 2 * 902, 1.0)


def test_padding_is_counted(reward_model):
    found = cheapest(reward_model, *both(rows((90, 5, 5), (80, 5, 5))))
    # Rows of 100 and 90 tokens in a batch 100 wide.
    assert found.padding == pytest.approx(10 / 200)


def test_a_model_that_masks_in_its_own_way_gets_two_rows(reward_model):
    reward_model.config._attn_implementation = "flash_attention_2"
    assert cheapest(reward_model, *both(rows((90, 5, 5)))).layout == "two rows"
    reward_model.config._attn_implementation = "sdpa"
    reward_model.config.sliding_window = 16
    assert cheapest(reward_model, *both(rows((90, 5, 5)))).layout == "two rows"
