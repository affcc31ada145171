"""The audit: a ledger as planned is proved, and every way of losing or doubling a sample is named."""

import json

import pytest

from rlhf.provenance.audit import read

PLAN = {"part": "sft", "ids": ["a", "b", "c"], "draws": 3, "epochs": 2}
STEPS = [(1, 0, [2, 0]), (2, 0, [1]), (3, 1, [1, 2]), (4, 1, [0])]  # three samples in batches of two, twice


def faults(tmp_path, steps, plan=PLAN):
    rows = [plan, *({"part": plan["part"], "step": n, "epoch": e, "rows": r} for n, e, r in steps)]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "ledger.jsonl").write_text("".join(lines), encoding="utf-8")
    (part,) = read(tmp_path / "ledger.jsonl")
    return list(part.faults())


def test_each_sample_once_an_epoch_has_no_faults(tmp_path):
    assert faults(tmp_path, STEPS) == []
    assert faults(tmp_path, STEPS, PLAN | {"ids": ["a", "line\u2028separator", "next\x85line"]}) == []


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        (STEPS[:3], "epoch 2: sample a 0 times, planned 1"),
        ([*STEPS[:1], *STEPS[2:]], "step 2 is missing or doubled"),
        ([*STEPS[:2], STEPS[1], *STEPS[2:]], "epoch 1: sample b 2 times, planned 1"),
        ([*STEPS[:1], (2, 0, [0]), *STEPS[2:]], "epoch 1: sample b 0 times, planned 1"),
        ([*STEPS, (5, 2, [0, 1])], "epoch 3: sample a 1 times, planned 0"),
        ([], "epoch 1: sample a 0 times, planned 1"),
    ],
)
def test_what_was_lost_or_doubled_is_named(tmp_path, steps, fault):
    assert fault in faults(tmp_path, steps)


def test_iterations_draw_on_and_may_end_early_but_leave_out_nothing(tmp_path):
    plan = {"part": "ppo", "ids": ["a", "b", "c"], "draws": 2, "epochs": 4}
    drawn = [(1, 0, [1]), (2, 0, [0]), (3, 1, [2, 3]), (4, 2, [5, 4])]  # a b, c a, b c
    assert faults(tmp_path, drawn, plan) == []
    assert faults(tmp_path, drawn[:3], plan) == []
    assert faults(tmp_path, [*drawn[:2], (3, 2, [5, 4])], plan) != []
    assert "epoch 2: sample a 0 times, planned 1" in faults(tmp_path, [*drawn[:2], (3, 1, [2, 2])], plan)
