"""The KL penalty: numbers by hand, what the estimators estimate, and where the score lands."""

import pytest
import torch

from rlhf.functional.kl import exact_kl, kl_estimate, last_token, token_rewards

HALF = torch.tensor([[0.5, -0.5]])
ZERO = torch.zeros(1, 2)
BOTH = torch.tensor([[True, True]])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.5, -0.5]),
        ("k2", [0.125, 0.125]),
        ("k3", [0.106531, 0.148721]),  # e^-0.5 - 1 + 0.5 and e^0.5 - 1 - 0.5
    ],
)
def test_estimators_by_hand(estimator, expected):
    torch.testing.assert_close(
        kl_estimate(HALF, ZERO, BOTH, estimator=estimator), torch.tensor([expected]), atol=1e-6, rtol=0
    )


def test_k1_and_k3_average_to_the_divergence_and_k2_comes_close():
    # over all tokens of a vocabulary of two, weighted by pi = (1/2, 1/2); pi_0 = (1/4, 3/4)
    # KL(pi || pi_0) = 1/2 log 2 + 1/2 log 2/3 = 1/2 log 4/3 = 0.1438410, and the other way round it would be 0.1308
    policy, reference = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    for estimator in ("k1", "k3"):
        mean = kl_estimate(policy, reference, BOTH, estimator=estimator).mean()
        torch.testing.assert_close(mean, torch.tensor(0.1438410))
    # k2 is biased: (log^2 2 + log^2 2/3) / 4 = (0.480453 + 0.164402) / 4 = 0.1612138
    torch.testing.assert_close(kl_estimate(policy, reference, BOTH, estimator="k2").mean(), torch.tensor(0.1612138))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_padding_is_neither_read_nor_written(estimator):
    logprobs = torch.tensor([[-1.0, torch.nan]], requires_grad=True)
    kl = kl_estimate(logprobs, torch.tensor([[-2.0, -torch.inf]]), torch.tensor([[True, False]]), estimator=estimator)
    kl.sum().backward()
    assert kl[0, 1] == 0.0
    assert logprobs.grad.isfinite().all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_policy_is_at_no_distance_from_itself(estimator):
    # recipe check S9: the penalty is 0 before the first step
    assert kl_estimate(HALF, HALF, BOTH, estimator=estimator).tolist() == [[0.0, 0.0]]


def test_unknown_estimator():
    with pytest.raises(ValueError, match="unknown estimator 'k4'; known: k1, k2, k3"):
        kl_estimate(HALF, ZERO, BOTH, estimator="k4")


def test_exact_divergence_by_hand_is_not_symmetric():
    # logits need not be normalised: 7 is added to each row of the policy
    half, skewed = torch.tensor([[[0.5, 0.5]]]).log() + 7, torch.tensor([[[0.25, 0.75]]]).log()
    mask = torch.tensor([[True]])
    torch.testing.assert_close(exact_kl(half, skewed, mask), torch.tensor([[0.1438410]]))
    # 1/4 log 1/2 + 3/4 log 3/2 = -0.1732868 + 0.3040988
    torch.testing.assert_close(exact_kl(skewed, half, mask), torch.tensor([[0.1308120]]))


def test_exact_divergence_with_tokens_that_cannot_occur():
    half = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    third = torch.zeros(1, 1, 3)
    mask = torch.tensor([[True]])
    # two of three equally likely: log 3/2 = 0.4054651; a possible token that the reference forbids: infinitely far
    torch.testing.assert_close(exact_kl(half, third, mask), torch.tensor([[0.4054651]]))
    assert exact_kl(half, half, mask).tolist() == [[0.0]]
    assert exact_kl(third, half, mask).tolist() == [[torch.inf]]


def test_exact_divergence_is_zero_in_the_padding():
    logits = torch.tensor([[[1.0, 0.0], [torch.nan, torch.nan]]])
    kl = exact_kl(logits, torch.zeros(1, 2, 2), torch.tensor([[True, False]]))
    assert kl[0, 0] > 0
    assert kl[0, 1] == 0


def test_last_token():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.bool)
    assert last_token(mask).tolist() == [1, 2, 0, 1]


def test_an_empty_completion_has_no_last_token():
    with pytest.raises(ValueError, match=r"rows without a completion token: \[1\]"):
        last_token(torch.tensor([[True, False], [False, False]]))


def test_rewards_by_hand():
    score = torch.tensor([2.0, -1.0])
    kl = torch.tensor([[0.5, 0.25, torch.nan], [1.0, -1.0, 2.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = token_rewards(score, kl, mask, kl_coef=0.1)
    # the second row also sums to -1 - 0.1 * (1 - 1 + 2) = -1.2, equation 4
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 2.0 - 0.025, 0.0], [-0.1, 0.1, -1.0 - 0.2]]))


def test_inputs_are_left_alone():
    kl = torch.ones(1, 2)
    token_rewards(torch.ones(1), kl, BOTH, kl_coef=0.1)
    assert kl.tolist() == [[1.0, 1.0]]


def test_paying_for_distance_is_refused():
    with pytest.raises(ValueError, match="kl_coef"):
        token_rewards(torch.ones(1), torch.ones(1, 2), BOTH, kl_coef=-0.01)
    # without the penalty only the score is left
    assert token_rewards(torch.ones(1), torch.ones(1, 2), BOTH, kl_coef=0.0).tolist() == [[0.0, 1.0]]


def test_a_row_without_tokens_cannot_be_rewarded():
    with pytest.raises(ValueError, match="without a completion token"):
        token_rewards(torch.ones(1), torch.ones(1, 2), torch.tensor([[False, False]]), kl_coef=0.1)
