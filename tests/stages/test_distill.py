"""Context distillation: adversarial prompts, no preprompt in what is stored, and strictly better answers only."""

import json
from collections import Counter

import pytest
import torch

from rlhf.data.chat import encode_prompt
from rlhf.data.types import Dialogue, Prompt, Turn, read_jsonl
from rlhf.errors import ConfigError, DataError
from rlhf.generation.protocol import Completion
from rlhf.microworld import caution
from rlhf.microworld.oracle import read_prompt
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


# ── which prompts ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mixed(tmp_path):
    """A file of 1000 prompts that say what they are: every twentieth is adversarial and has the safety tag."""
    rows = [{"prompt": f"{'ordinary' if i % 20 else 'evil'} {i}", "is_safety": i % 20 == 0} for i in range(1000)]
    return [source(tmp_path, "mixed", rows)]


def source(folder, name, rows):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": name, "path": str(folder / f"{name}.jsonl")}


def words(prompts):
    """How often each first word is said."""
    return Counter(p.turns[-1].content.split()[0] for p in prompts)


def test_as_many_are_distilled_on_as_were_asked_for_however_rare_they_are(job_of, mixed):
    """50 are adversarial; .81 of them, give or take 3 x 2.8, are to train on."""
    assert words(distill.asked(job_of("distill", data=mixed, prompts=30))) == {"evil": 30}
    everything = words(distill.asked(job_of("distill", data=mixed, prompts=2000)))
    assert set(everything) == {"evil"}
    assert 31 < everything["evil"] <= 50
    # On all prompts means as they come: 2 of 40.
    of_all = words(distill.asked(job_of("distill", data=mixed, prompts=40, asked="all")))
    assert of_all.total() == 40
    assert of_all["ordinary"] > 30


@pytest.mark.parametrize("asked", ["adversarial", "all"])
def test_what_is_replayed_is_ordinary(job_of, mixed, asked):
    assert words(distill.untagged(job_of("distill", data=mixed, asked=asked), 60)) == {"ordinary": 60}
    drawn = distill.untagged(job_of("distill", asked=asked), 300)
    assert len(drawn) == 300
    assert {read_prompt(p.turns)[0].kind for p in drawn} == {"safe", "border"}  # as the oracle reads the question


def refused(job_of, saved, monkeypatch, **settings):
    """A stage that must end before any model is loaded."""
    monkeypatch.setattr(distill, "speaker", None)
    monkeypatch.setattr(distill, "RewardModels", None)
    reads = {"policy": [saved.policy("sft")], "reward": [saved.reward("reward-1")]}
    distill.run(job_of("distill", reads=reads, max_new_tokens=6, **settings))


def test_where_every_prompt_is_adversarial_there_is_nothing_to_replay(job_of, saved, monkeypatch, tmp_path):
    data = [{**source(tmp_path, "harmless", [{"prompt": f"evil {i}"} for i in range(40)]), "kind": "safety"}]
    with pytest.raises(ConfigError, match="no prompt without the safety tag") as caught:
        refused(job_of, saved, monkeypatch, data=data, prompts=8)
    assert any("distill.replay_share=0" in hint for hint in caught.value.hints)
    job = job_of("distill", data=data, prompts=8, replay_share=0)
    assert words(distill.asked(job)) == {"evil": 8}
    assert distill.untagged(job, 0) == []


def test_where_no_prompt_is_adversarial_it_says_so(job_of, saved, monkeypatch, tmp_path):
    data = [source(tmp_path, "kind", [{"prompt": f"ordinary {i}"} for i in range(40)])]
    with pytest.raises(ConfigError, match="no prompt to distil on"):
        refused(job_of, saved, monkeypatch, data=data, prompts=8)


def test_a_prompt_that_is_too_long_under_its_preprompt_is_refused_before_any_model_is_loaded(
    job_of, saved, policy, tokenizer, monkeypatch
):
    asked = distill.asked(job_of("distill", prompts=8))
    plain = max(len(encode_prompt(tokenizer, p.turns)) for p in asked)
    policy.config.max_position_embeddings = plain + 6  # the plain prompts and an answer of 6 tokens fit to a token
    with pytest.raises(DataError, match=f"and an answer of 6 exceed the context of {plain + 6}"):
        refused(job_of, saved, monkeypatch, prompts=8, replay_share=0)


def test_a_prompt_to_replay_that_is_too_long_is_refused_then_too(job_of, saved, policy, monkeypatch, tmp_path):
    policy.config.max_position_embeddings = 1024
    evil = [{"prompt": f"evil {i}", "is_safety": True} for i in range(40)]
    data = [source(tmp_path, "mixed", [*evil, *({"prompt": f"{i} {'so ' * 1024}"} for i in range(40))])]
    with pytest.raises(DataError, match="exceed the context of 1024"):
        refused(job_of, saved, monkeypatch, data=data, prompts=8)


# ── scores, figures, the stage ───────────────────────────────────────────────────────────────────────────────────────


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


def test_the_stage_leaves_rows_without_preprompts_and_a_policy(job_of, saved, policy, monkeypatch):
    policy.config.max_position_embeddings = 512  # a preprompt is long in a tokenizer of 300 tokens
    reads = {"policy": [saved.policy("rejection-1")], "reward": [saved.reward("reward-1")]}
    job = job_of(
        "distill", reads=reads, prompts=24, max_new_tokens=6, replay_samples=2, epochs=1, batch_size=4,
        model={"max_length": 512},
    )  # fmt: skip
    judged, scores = [], distill.safety_scores
    monkeypatch.setattr(distill, "safety_scores", lambda *given: judged.append(given[-1]) or scores(*given))
    distill.run(job)
    rows = read_jsonl(job.out / "dialogues.jsonl", Dialogue)
    kept = [row for row in rows if row.source == "distill"]
    found = json.loads((job.out / "results.json").read_text())["distill"]
    assert 0 < len(kept) == found["kept"] < found["n"]
    assert [len(answers) for answers in judged] == [3 * found["n"]]  # an answer that is the same has the same score
    replayed = [row for row in rows if row.source == "replay"]
    assert 0 < len(replayed) == len(rows) - len(kept) <= len(kept)
    assert {read_prompt(row.turns[:-1])[0].kind for row in kept} == {"unsafe"}
    assert "unsafe" not in {read_prompt(row.turns[:-1])[0].kind for row in replayed}
    warnings = [text.partition("{")[0] for text in (*caution.GENERIC, *caution.BY_KIND.values())]
    for row in kept:
        text = " ".join(turn.content for turn in row.turns[:-1])
        assert not [warning for warning in warnings if warning in text]
    assert (job.out / "checkpoint" / "model.safetensors").exists()
