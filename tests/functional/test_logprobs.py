"""Log-probabilities of chosen tokens: numbers by hand, torch's own log-softmax, and the memory they don't take."""

import math

import pytest
import torch

from rlhf.functional.logprobs import chosen_logprobs, entropy

# probabilities 1/4 and 3/4, at temperature 1
QUARTER = torch.tensor([[[0.0, math.log(3)]]])


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, -0.2876821),  # log 3/4
        (0.5, -0.1053605),  # logits double: log 9/10
        (2.0, -0.4557464),  # logits halve: log sqrt(3) / (1 + sqrt(3))
    ],
)
def test_one_token_by_hand(temperature, expected):
    found = chosen_logprobs(QUARTER, torch.tensor([[1]]), temperature=temperature)
    torch.testing.assert_close(found, torch.tensor([[expected]]))


def test_each_position_has_its_own_token_and_its_own_normaliser():
    # position 0: uniform over 2, log 1/2.  position 1: token 0 of (1/4, 3/4), log 1/4
    logits = torch.cat([torch.full((1, 1, 2), 500.0), QUARTER], dim=1)
    found = chosen_logprobs(logits, torch.tensor([[1, 0]]), temperature=1.0)
    torch.testing.assert_close(found, torch.tensor([[-0.6931472, -1.3862944]]))


def test_gradient_is_one_hot_minus_probability():
    logits = QUARTER.clone().requires_grad_()
    chosen_logprobs(logits, torch.tensor([[1]]), temperature=1.0).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[-0.25, 0.25]]]))


def test_half_precision_logits_are_normalised_in_single_precision():
    # 1024 equal logits: -log 1024 = -6.9314718, which bfloat16 would round to -6.9375
    logits = torch.full((1, 1, 1024), 3.0, dtype=torch.bfloat16)
    found = chosen_logprobs(logits, torch.tensor([[5]]), temperature=1.0)
    torch.testing.assert_close(found, torch.tensor([[-6.9314718]]))
    torch.testing.assert_close(entropy(logits), torch.tensor([[6.9314718]]))


def test_nothing_as_large_as_the_logits_is_kept_beside_them():
    logits = torch.randn(2, 3, 50, requires_grad=True)
    kept = storages_kept(lambda: chosen_logprobs(logits, torch.zeros(2, 3, dtype=torch.long), temperature=1.0))
    assert [size for address, size in kept.items() if address != logits.data_ptr() and size >= logits.numel()] == []


def storages_kept(compute) -> dict[int, int]:
    """Address -> numbers of every tensor that autograd keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = compute()  # alive until here, or addresses would be used again
    assert result.requires_grad
    return kept


def test_entropy_by_hand():
    logits = torch.stack([torch.zeros(4), torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])]).unsqueeze(0)
    # four equal: log 4.  two of four: log 2.  (1/4, 3/4): 1/4 log 4 + 3/4 log 4/3 = 0.5623351
    torch.testing.assert_close(entropy(logits), torch.tensor([[1.3862944, 0.6931472]]))
    torch.testing.assert_close(entropy(QUARTER), torch.tensor([[0.5623351]]))


def test_entropy_has_a_gradient_where_tokens_cannot_occur():
    logits = torch.tensor([[[0.0, 1.0, -torch.inf]]], requires_grad=True)
    entropy(logits).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_no_distribution_at_temperature_zero(temperature):
    with pytest.raises(ValueError, match="temperature"):
        chosen_logprobs(QUARTER, torch.tensor([[1]]), temperature=temperature)
