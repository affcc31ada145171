"""Processes add up where their group can, and what they added comes back to where it was."""

import pytest
from torch import distributed

from rlhf.processes import team


class Number:
    """As much of a tensor as has a device, which no GPU is needed for."""

    def __init__(self, value, device="cpu"):
        self.value, self.device = value, device

    def to(self, device):
        return Number(self.value, device)

    def copy_(self, other):
        self.value = other.value


@pytest.mark.parametrize(("backend", "device"), [("nccl", "cuda"), ("gloo", "cpu")])
def test_a_sum_is_made_where_the_group_can_and_left_where_the_tensor_is(monkeypatch, backend, device):
    def all_reduce(number):
        assert number.device == device
        number.value += 40

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    number = Number(2)
    assert team.summed(number) is number
    assert (number.value, number.device) == (42, "cpu")
