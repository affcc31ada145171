"""Shares are exact, and what can't be exact is refused."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.mixing import helpfulness_mix, safety_mix
from rlhf.errors import DataError


def rows(kind, n):
    return [f"{kind}{i}" for i in range(n)]


def count(mixed):
    assert len(set(mixed.rows)) == len(mixed.rows)
    return Counter(row[0] for row in mixed.rows)


def test_safety_is_nine_to_one_by_hand():
    # 1000 safety rows hold 111 nines; each needs one helpfulness row: 999 + 111, one safety row is left out.
    mixed = safety_mix(rows("s", 1000), rows("h", 500), seed=0)
    assert count(mixed) == {"s": 999, "h": 111}
    expected = (
        "999 safety (90.0%) + 111 helpfulness (10.0%) pairs; left out to keep the share: 1 safety, 389 helpfulness"
    )
    assert str(mixed.counts) == expected


def test_the_scarcer_kind_decides():
    assert count(safety_mix(rows("s", 1000), rows("h", 2), seed=0)) == {"s": 18, "h": 2}
    assert count(helpfulness_mix(rows("h", 30), rows("r", 7), seed=0)) == {"h": 7, "r": 7}


def test_helpfulness_is_half_and_half():
    mixed = helpfulness_mix(rows("h", 40), rows("r", 90), seed=0)
    assert count(mixed) == {"h": 40, "r": 40}
    assert "left out to keep the share: 50 remaining" in str(mixed.counts)


@given(safety=st.integers(9, 300), helpfulness=st.integers(1, 60), share=st.sampled_from([0.9, 0.75, 0.5]))
def test_the_share_is_exact_whatever_is_given(safety, helpfulness, share):
    found = count(safety_mix(rows("s", safety), rows("h", helpfulness), share=share, seed=1))
    assert found["s"] == pytest.approx(share * (found["s"] + found["h"]), abs=1e-9)


def test_a_share_of_all_or_nothing_needs_no_other_kind():
    assert count(safety_mix(rows("s", 5), [], share=1.0, seed=0)) == {"s": 5}
    assert count(safety_mix([], rows("h", 5), share=0.0, seed=0)) == {"h": 5}


def test_seeds_decide_and_rows_are_shuffled():
    def mix(seed):
        return safety_mix(rows("s", 90), rows("h", 90), seed=seed).rows

    assert mix(0) == mix(0)
    assert set(mix(0)) != set(mix(1))
    assert mix(0) != sorted(mix(0), key=lambda row: row[0] != "s")


@pytest.mark.parametrize(("safety", "helpfulness"), [(8, 100), (100, 0), (0, 0)])
def test_what_cannot_be_kept_is_refused(safety, helpfulness):
    with pytest.raises(DataError, match="needs at least 9 safety"):
        safety_mix(rows("s", safety), rows("h", helpfulness), seed=0)


def test_a_share_outside_of_it_is_refused():
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        safety_mix(["a"], ["b"], share=1.5, seed=0)
