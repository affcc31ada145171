"""Context distillation: adversarial prompts, no preprompt in what is stored, and strictly better answers only."""

import json

import pytest
import torch

from rlhf.data.chat import encode_prompt
from rlhf.data.types import Dialogue, Prompt, Turn, read_jsonl
from rlhf.generation.protocol import Completion
from rlhf.microworld import caution
from rlhf.models.score import score
from rlhf.rollout import Sample
from stages import distill


def prompt(name="p"):
    return Prompt(name, (Turn("user", "how do i kill the king ?"),), "microworld", is_safety=True, kind="unsafe")


def answer(text, *, finished=True):
    return Sample(prompt(), (0, 8), Completion((9, 1), (0.0, 0.0), "stop" if finished else "length"), text)


@pytest.mark.parametrize(("keep", "wanted"), [("better", ["a"]), ("all", ["a", "b", "c"])])
def test_only_strictly_better_answers_are_kept(job_of, keep, wanted):
    prompts = [prompt(name) for name in "abcde"]
    answers = [answer("no"), answer("so"), answer("so"), answer("cut", finished=False), answer("")]
    before, after = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]), torch.tensor([0.1, 0.0, 0.9, 5.0, 5.0])
    rows = distill.kept_rows(job_of("distill", keep=keep), prompts, answers, before, after)
    assert [row.id for row in rows] == [f"distill-{name}" for name in wanted]
    assert rows[0].turns == (*prompt().turns, Turn("assistant", "no"))


def test_only_adversarial_prompts_are_asked_and_none_twice(job_of):
    found = distill.asked(job_of("distill", prompts=300))
    assert {p.kind for p in found} == {"unsafe"}
    assert all(p.is_safety for p in found)
    assert len({p.turns for p in found}) == len(found)
    assert {p.kind for p in distill.asked(job_of("distill", prompts=300, asked="all"))} == {"safe", "border", "unsafe"}


def test_both_answers_are_scored_without_the_preprompt(job_of, rewards, tokenizer):
    job = job_of("distill")
    under = Sample(distill.prompt_under(job, prompt()), (0, 8), Completion((9, 1), (0.0, 0.0), "stop"), "no")
    found = distill.safety_scores(job, tokenizer, rewards, [prompt()], [under])
    row = [*encode_prompt(tokenizer, prompt().turns), 9, 1]
    assert found.item() == pytest.approx(score(rewards.safety, [row], pad_token_id=2).item(), abs=1e-5)


@pytest.mark.parametrize("preprompt", ["generic", "category"])
def test_a_category_has_its_template_unless_generic_ones_are_asked_for(job_of, preprompt):
    system = distill.prompt_under(job_of("distill", preprompt=preprompt), prompt()).turns[0]
    assert system.role == "system"
    assert (system.content == caution.BY_KIND["unsafe"]) == (preprompt == "category")


def test_figures_by_hand():
    before, after = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.5, 1.0, 1.0])
    apart = torch.tensor([1.0, 3.0, 2.0])
    found = distill.figures(before, after, apart, kept=1)
    assert (found["n"], found["kept"], found["worse"]) == (3, 1, pytest.approx(1 / 3))
    assert [row["change"] for row in found["by_original"]] == [-0.5, 0.0, 1.0]  # by the answer apart, the lowest first


def test_where_nothing_changes_bad_answers_do_not_seem_to_gain():
    draw = torch.Generator().manual_seed(0)
    before, after, apart = torch.randn(3, 3000, generator=draw)  # three answers of one policy to prompts all alike
    low, _, high = distill.figures(before, after, apart, kept=0)["by_original"]
    assert abs(low["change"] - high["change"]) < 4 * (4 / 1000) ** 0.5  # each mean change has a variance of 2 / 1000


def test_the_stage_leaves_rows_without_preprompts_and_a_policy(job_of, saved, policy):
    policy.config.max_position_embeddings = 512  # a preprompt is long in a tokenizer of 300 tokens
    reads = {"policy": [saved.policy("rejection-1")], "reward": [saved.reward("reward-1")]}
    job = job_of(
        "distill", reads=reads, prompts=24, max_new_tokens=6, replay_samples=2, epochs=1, batch_size=4,
        model={"max_length": 512},
    )  # fmt: skip
    distill.run(job)
    rows = read_jsonl(job.out / "dialogues.jsonl", Dialogue)
    kept = [row for row in rows if row.source == "distill"]
    found = json.loads((job.out / "results.json").read_text())["distill"]
    assert 0 < len(kept) == found["kept"] < found["n"]
    assert len(rows) > len(kept)
    warnings = [text.partition("{")[0] for text in (*caution.GENERIC, *caution.BY_KIND.values())]
    for row in kept:
        text = " ".join(turn.content for turn in row.turns[:-1])
        assert not [warning for warning in warnings if warning in text]
    assert (job.out / "checkpoint" / "model.safetensors").exists()
