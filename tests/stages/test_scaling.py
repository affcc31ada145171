"""Safety data scaling: the same helpfulness rows in every model, nested shares of the safety rows, all measured."""

import json

import pytest
import torch

from rlhf.data import pool
from rlhf.data.pool import PoolEntry
from rlhf.data.types import Prompt, Turn
from rlhf.errors import DataError
from rlhf.generation.protocol import Completion
from rlhf.models.reward_models import Scores
from rlhf.reporting.figures import scaling_charts
from rlhf.rollout import Sample
from stages import scaling


def entry(number, *, unsafe, text="take the key .", finished=True, k=0):
    return PoolEntry(
        prompt_id=f"p{number}", prompt=(Turn("user", f"how {number} ?"),), is_safety=unsafe, completion=text,
        scores={"combined": 0.0}, round=1, policy="d", temperature=1.0, seed=0, k=k, finished=finished,
    )  # fmt: skip


@pytest.fixture
def reads(tmp_path, saved):
    folder = tmp_path / "rejection-1"
    folder.mkdir()
    entries = [entry(n, unsafe=n >= 4) for n in range(12)]
    entries += [entry(0, unsafe=False, text="never ends", finished=False, k=1), entry(12, unsafe=True, text="")]
    pool.append(folder / "pool.jsonl", entries)
    return {"base": [saved.policy("base")], "reward": [saved.reward("reward-1")], "rejection*": [folder]}


def test_each_share_trains_a_model_on_all_helpfulness_rows_and_its_part_of_the_safety_rows(job_of, reads, monkeypatch):
    trained, parts = [], []

    def fine_tune(policy, tokenizer, rows, job, *, part):
        trained.append([r.turns for r in rows])
        parts.append(part)

    monkeypatch.setattr(scaling, "fine_tune", fine_tune)
    job = job_of("scaling", reads=reads, shares=[0.0, 0.25, 1.0], prompts=9, max_new_tokens=4)
    scaling.run(job)
    unsafe = [[turns for turns in rows if int(turns[0].content.split()[1]) >= 4] for rows in trained]
    assert len(set(parts)) == 3  # a killed run passes over a part that is done: two models under one name lose one
    assert [len(rows) for rows in unsafe] == [0, 2, 8]  # a quarter of eight is two; the empty answer is no row
    assert [len(rows) for rows in trained] == [4, 6, 12]
    assert unsafe[1] == unsafe[2][:2]
    assert "never ends" not in {turns[-1].content for rows in trained for turns in rows}
    found = json.loads((job.out / "results.json").read_text())["safety_scaling"]
    assert [row["safety_rows"] for row in found.values()] == [0, 2, 8]
    for row in found.values():
        assert {"reward_helpfulness", "reward_safety", "safety_p10", "violation_rate", "false_refusal"} <= set(row)
    # The policies were not trained here: the same answers, hence the same figures.
    assert found["0"]["violation_rate"] == found["1"]["violation_rate"]
    (chart,) = scaling_charts({"safety_scaling": found})
    assert "violations" in chart.alt
    assert "refused, borderline" in chart.alt


def test_without_an_oracle_borderline_prompts_are_no_ordinary_ones(job_of):
    def said(text, kind="", is_safety=False):
        prompt = Prompt("p", (Turn("user", "how ?"),), "people", is_safety=is_safety, kind=kind)
        return Sample(prompt, (8,), Completion((9,), (0.0,), "stop"), text)

    no, yes = "I cannot help with that.", "Take the key."
    answers = [said(no), said(yes), said(yes), said(yes), said(no, "border"), said(yes, "border")]
    answers += [said(yes, is_safety=True), said(no, is_safety=True), said(no, is_safety=True), said(no, is_safety=True)]
    safety = torch.tensor([0.0] * 6 + [-1.0, 1.0, 1.0, 1.0])
    row = scaling.measured(job_of("scaling"), lambda *_, **__: Scores(safety, safety, safety), answers)
    assert row["false_refusal"] == {"ordinary": 0.25, "borderline": 0.5}
    assert row["unsafe_by_reward_model"] == 0.25
    assert set(row["interval"]) == {
        "reward_helpfulness", "reward_safety", "false_refusal.ordinary", "false_refusal.borderline",
        "unsafe_by_reward_model",
    }  # fmt: skip
    (chart,) = scaling_charts({"safety_scaling": {"0": row, "1": row}})
    assert "unsafe by the reward model: 0.25 at 0, 0.25 at 100; refused, ordinary: 0.25 at 0" in chart.alt
    assert "violations" not in chart.alt


def test_a_pool_without_safety_prompts_is_refused(job_of, reads, tmp_path, rewards, tokenizer):
    (tmp_path / "other").mkdir()
    pool.append(tmp_path / "other" / "pool.jsonl", [entry(0, unsafe=False)])
    with pytest.raises(DataError, match="no answers to prompts with the safety tag"):
        scaling.pooled(job_of("scaling", reads={**reads, "rejection*": [tmp_path / "other"]}), tokenizer, rewards)


def test_without_figures_there_is_no_plot():
    assert scaling_charts({}) == []
