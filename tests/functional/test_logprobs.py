"""Log-probabilities of chosen tokens: numbers by hand, torch's own log-softmax, and the memory they don't take."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf.functional.logprobs import chosen_logprobs, chosen_logprobs_from_hidden, entropy

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


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def head_and_hidden() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, 3, generator=generator).requires_grad_()
    head = torch.randn(40, 3, generator=generator).requires_grad_()
    return hidden, head, torch.randint(40, (2, 5), generator=generator)


@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 1000])
def test_chunks_agree_with_torch_in_value_and_gradient(chunk):
    hidden, head, tokens = head_and_hidden()
    weight = torch.arange(10.0).view(2, 5)  # so that positions are not interchangeable
    expected = torch.log_softmax(hidden @ head.T / 0.7, -1).gather(-1, tokens[..., None])[..., 0]
    wanted = torch.autograd.grad((expected * weight).sum(), (hidden, head))
    found = chosen_logprobs_from_hidden(hidden, head, tokens, temperature=0.7, chunk=chunk)
    torch.testing.assert_close(found, expected)
    # 1e-5: the head's gradient is summed over positions in another order
    torch.testing.assert_close(
        torch.autograd.grad((found * weight).sum(), (hidden, head)), wanted, atol=1e-5, rtol=1e-5
    )


def test_the_logits_never_exist_in_one_piece():
    hidden, head, tokens = head_and_hidden()
    with LargestTensor() as seen:
        chosen_logprobs_from_hidden(hidden, head, tokens, temperature=1.0, chunk=3).sum().backward()
    # three positions of forty words, or the gradient of the head; all logits would be 400
    assert seen.largest == max(3 * 40, head.numel())


def test_no_logits_are_kept_for_the_backward_pass():
    hidden, head, tokens = head_and_hidden()
    kept = storages_kept(lambda: chosen_logprobs_from_hidden(hidden, head, tokens, temperature=1.0, chunk=4))
    assert 4 * 40 not in kept.values()
    assert sum(size for address, size in kept.items() if address != head.data_ptr()) < 4 * 40


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
    hidden, head, tokens = head_and_hidden()
    with pytest.raises(ValueError, match="temperature"):
        chosen_logprobs(QUARTER, torch.tensor([[1]]), temperature=temperature)
    with pytest.raises(ValueError, match="temperature"):
        chosen_logprobs_from_hidden(hidden, head, tokens, temperature=temperature, chunk=1)


def test_chunks_of_nothing_are_refused():
    hidden, head, tokens = head_and_hidden()
    with pytest.raises(ValueError, match="chunk"):
        chosen_logprobs_from_hidden(hidden, head, tokens, temperature=1.0, chunk=0)
