"""What evaluation says over several rounds: how ratings drift, and what older reward models know of newer pairs."""

from types import SimpleNamespace

from rlhf.data.types import Preference, Turn, write_jsonl
from stages.evaluate import across_rounds


def pairs(*ratings):
    question = (Turn("user", "how do i open the door ?"),)
    answers = [("take the key .", f"good luck {i} !") for i in range(len(ratings))]
    return [
        Preference("p", question, chosen, rejected, "people", rating, None, None, is_safety=False)
        for (chosen, rejected), rating in zip(answers, ratings, strict=True)
    ]


def preferences(folder, *ratings):
    folder.mkdir()
    for domain in ("helpfulness", "safety"):
        write_jsonl(folder / f"{domain}.test.jsonl", pairs(*ratings))
    return folder


def test_every_rounds_models_meet_the_newest_pairs(job_of, tmp_path, saved, tokenizer):
    models = (saved.reward("reward-1"), saved.reward("reward-2"))
    rounds = [
        preferences(tmp_path / "preferences-1", "better", "better", "slightly", "slightly"),
        preferences(tmp_path / "preferences-2", "slightly", "better"),
    ]
    job = job_of("evaluate", reads={"preferences*": rounds, "reward*": models})
    found = across_rounds(SimpleNamespace(job=job, judged_by=models[-1], tokenizer=tokenizer), models)
    for domain in ("helpfulness", "safety"):
        mix = found[domain]["rating_mix"]
        assert [(shares["better"], shares["slightly"]) for shares in mix.values()] == [(0.5, 0.5), (0.5, 0.5)]
        assert found[domain]["rating_drift"]["better"]["mean"] == 0
        stale = found[domain]["staleness"]
        assert {name: row["n"] for name, row in stale["on_newest"].items()} == {"reward-1": 2, "reward-2": 2}
        assert stale["refreshing_gains"]["mean"] == 0  # the two are the same model
        assert stale["on_its_own"]["n"] == 4


def test_rounds_are_left_out_where_nobody_asks(job_of, tmp_path, saved, tokenizer):
    models = (saved.reward("reward-1"), saved.reward("reward-2"))
    rounds = [preferences(tmp_path / f"preferences-{number}", "better", "slightly") for number in (1, 2)]
    job = job_of("evaluate", reads={"preferences*": rounds, "reward*": models}, across_rounds=False)
    assert across_rounds(SimpleNamespace(job=job, judged_by=models[-1], tokenizer=tokenizer), models) == {}


def test_one_round_has_nothing_to_compare(job_of, tmp_path, saved, tokenizer):
    models, rounds = (saved.reward("reward-1"),), [preferences(tmp_path / "preferences-1", "better")]
    job = job_of("evaluate", reads={"preferences*": rounds, "reward*": models})
    found = across_rounds(SimpleNamespace(job=job, judged_by=models[-1], tokenizer=tokenizer), models)
    assert set(found["safety"]) == {"rating_mix"}
