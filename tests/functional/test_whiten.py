"""Whitening: what it promises, and what it does not read."""

import pytest
import torch

from rlhf.functional.whiten import moments, whiten


def everywhere(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def scores_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 8, generator=generator) * 3 + 5, torch.rand(4, 8, generator=generator) > 0.3


def test_four_numbers_by_hand():
    # mean 2.5, variance (2.25 + 0.25 + 0.25 + 2.25) / 4 = 1.25, std 1.118034
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = moments(x, everywhere(x))
    assert [float(m) for m in found] == [4.0, 2.5, 1.25]
    expected = torch.tensor([-1.341641, -0.447214, 0.447214, 1.341641])
    torch.testing.assert_close(whiten(x, everywhere(x), found, epsilon=1e-8), expected)


def test_mean_zero_variance_one_where_the_mask_is_true():
    x, where = scores_and_mask()
    inside = whiten(x, where, moments(x, where), epsilon=1e-8)[where]
    # 1e-6: single-precision rounding of numbers of size 1
    torch.testing.assert_close(inside.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(inside.var(correction=0), torch.tensor(1.0))


def test_positive_affine_changes_cancel_whatever_the_scale():
    # recipe check S8; a number added to std would show at the scale of 1e-6
    x = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)
    plain = whiten(x, everywhere(x), moments(x, everywhere(x)), epsilon=1e-12)
    for scale, shift in ((10.0, 0.0), (1e-6, 3.0), (1.0, -700.0)):
        y = scale * x + shift
        # 1e-7: y keeps about ten digits of x at the scale of 1e-6
        torch.testing.assert_close(
            whiten(y, everywhere(y), moments(y, everywhere(y)), epsilon=1e-12), plain, atol=1e-7, rtol=0
        )


def test_nothing_is_read_or_written_where_the_mask_is_false():
    x = torch.tensor([1.0, torch.nan, 3.0, torch.inf])
    where = torch.tensor([True, False, True, False])
    found = moments(x, where)
    assert [float(m) for m in found] == [2.0, 2.0, 1.0]
    assert whiten(x, where, found, epsilon=1e-8)[~where].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("constant", [0.1, 1000.1, 0.0])
def test_constant_numbers_become_zeros(constant):
    # 0.1 + ... + 0.1 in single precision is not a multiple of 0.1: a careless mean leaves dust, and dust / std is 1
    x = torch.full((37,), constant)
    assert whiten(x, everywhere(x), moments(x, everywhere(x)), epsilon=1e-8).tolist() == [0.0] * 37


def test_epsilon_is_the_smallest_std_divided_by():
    # std 0.5 under a floor of 2: (0 - 0.5) / 2 and (1 - 0.5) / 2
    x = torch.tensor([0.0, 1.0])
    assert whiten(x, everywhere(x), moments(x, everywhere(x)), epsilon=2.0).tolist() == [-0.25, 0.25]


def test_statistics_carry_no_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not any(m.requires_grad for m in moments(x, everywhere(x)))


def test_too_few_numbers_and_a_useless_floor_are_refused():
    x = torch.tensor([3.0, 4.0])
    one = torch.tensor([True, False])
    with pytest.raises(ValueError, match="at least 2 numbers, got 1"):
        whiten(x, one, moments(x, one), epsilon=1e-8)
    with pytest.raises(ValueError, match="epsilon"):
        whiten(x, everywhere(x), moments(x, everywhere(x)), epsilon=0.0)
