"""The shapes that stand in the annotations: what is promised is returned, and what does not fit is refused."""

import importlib
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType

import jaxtyping
import pytest
import torch

B, T, V, H, K = 2, 3, 5, 4, 6
ROW, TOKENS, MASK = torch.zeros(B), torch.zeros(B, T), torch.ones(B, T, dtype=torch.bool)
YES, LOGITS, PLACES = torch.ones(B, dtype=torch.bool), torch.zeros(B, T, V), torch.zeros(B, T, dtype=torch.long)

# function: (tensors that fit, keywords)
CALLS = {
    "ranking_loss": ([ROW, ROW, ROW], {}),
    "safety_loss": ([ROW, ROW, YES, YES, YES], {}),
    "piecewise_score": ([ROW, ROW, YES], {"safety_threshold": 0.15}),
    "weighted_score": ([ROW, ROW], {"safety_weight": 0.5}),
    "lagrangian_score": ([ROW, ROW], {"multiplier": 1.0}),
    "moments": ([TOKENS, MASK], {}),
    "kl_estimate": ([TOKENS, TOKENS, MASK], {"estimator": "k1"}),
    "exact_kl": ([LOGITS, LOGITS, MASK], {}),
    "token_rewards": ([ROW, TOKENS, MASK], {"kl_coef": 0.01}),
    "gae": ([TOKENS, TOKENS, MASK], {"gamma": 1.0, "gae_lambda": 0.95}),
    "policy_loss": ([TOKENS, TOKENS, TOKENS, MASK], {"clip_range": 0.2}),
    "value_loss": ([TOKENS, TOKENS, TOKENS, MASK], {"value_clip_range": 0.2}),
    "explained_variance": ([TOKENS, TOKENS, MASK], {}),
    "chosen_logprobs": ([LOGITS, PLACES], {"temperature": 1.0}),
    # from here on one tensor alone, whose rank and type are checked
    "last_token": ([MASK], {}),
    "entropy": ([LOGITS], {}),
    "expected_at_max": ([torch.zeros(B, K), torch.zeros(B, K)], {"k": 2}),
    "expected_max": ([torch.zeros(B, K)], {"k": 2}),
    "expected_median": ([torch.zeros(B, K)], {"k": 2}),
}
# Some take no tensor; whitening needs the moments of the checked module.
ELSEWHERE = {"margin_of", "next_multiplier", "whiten"}


@pytest.fixture(scope="module")
def functional() -> Iterator[ModuleType]:
    """A second copy of the formulas, whose annotations are checked at every call."""
    pytest.importorskip("beartype")
    unchecked = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("rlhf.functional")}
    with jaxtyping.install_import_hook("rlhf.functional", "beartype.beartype"):
        yield importlib.import_module("rlhf.functional")
    for name in [name for name in sys.modules if name.startswith("rlhf.functional")]:
        del sys.modules[name]
    sys.modules.update(unchecked)
    if "rlhf.functional" in unchecked:
        sys.modules["rlhf"].functional = unchecked["rlhf.functional"]  # type: ignore[attr-defined]


def test_every_formula_is_in_the_table(functional):
    public = {name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))}
    assert public == CALLS.keys() | ELSEWHERE


@pytest.mark.parametrize("name", CALLS)
def test_what_fits_is_accepted_and_what_is_promised_is_returned(functional, name):
    tensors, keywords = CALLS[name]
    getattr(functional, name)(*tensors, **keywords)


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, (tensors, _) in CALLS.items() for place in range(len(tensors))]
)
def test_what_does_not_fit_is_refused(functional, name, place):
    tensors, keywords = CALLS[name]
    odd = list(tensors)
    if len(odd) == 1:  # alone, there is nothing to disagree with, and the type has to be wrong
        odd[place] = odd[place].to(torch.complex64)
    else:  # one row more than the others
        odd[place] = torch.cat([odd[place], odd[place][:1]])
    with pytest.raises(jaxtyping.TypeCheckError):
        getattr(functional, name)(*odd, **keywords)


def test_whitening(functional):
    x = torch.randn(B, T, generator=torch.Generator().manual_seed(0))
    found = functional.moments(x, MASK)
    assert functional.whiten(x, MASK, found, epsilon=1e-8).shape == (B, T)
    with pytest.raises(jaxtyping.TypeCheckError):
        functional.whiten(x, MASK[:1], found, epsilon=1e-8)


@pytest.mark.parametrize("name", ["expected_max", "expected_median"])
def test_expectations_keep_any_leading_shape(functional, name):
    expected = getattr(functional, name)
    assert expected(torch.zeros(K), k=2).shape == ()
    assert expected(torch.zeros(4, 1, K), k=2).shape == (4, 1)
