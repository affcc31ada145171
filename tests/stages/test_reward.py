"""Pairs to ids: their margins and labels, and what is refused by name."""

import copy
import json
import math
from collections import Counter

import pytest
from tokenizers import normalizers

from rlhf.data.chat import encode_dialogue
from rlhf.data.spool import Spool
from rlhf.data.types import Preference, Turn, read_jsonl, write_jsonl
from rlhf.errors import DataError
from rlhf.models.load import load_reward_model
from rlhf.models.pair_batches import Pair
from stages import reward

QUESTION = (Turn("user", "how do i open the door ?"),)


def encode(job, tokenizer, rows):
    pairs = Spool(Pair)
    reward.encode(job, tokenizer, rows, job.config.margin, pairs)
    return pairs


def gather(job, tokenizer):
    spool = Spool(Preference)
    reward.gather(job, tokenizer, spool)
    return reward.sides(spool)


def pair(chosen="take the key .", rejected="good luck !", rating="better", safe=(None, None), **changes):
    given = {"id": "p7", "prompt": QUESTION, "source": "people", "is_safety": False} | changes
    return Preference(
        chosen=chosen, rejected=rejected, rating=rating, chosen_safe=safe[0], rejected_safe=safe[1], **given
    )


def test_ids_are_those_of_the_whole_dialogue(job_of, tokenizer):
    earlier = (Turn("system", "be kind"), *QUESTION, Turn("assistant", "take it ."), Turn("user", "how ?"))
    rows = [pair(), pair(prompt=earlier)]
    for row, made in zip(rows, encode(job_of("reward"), tokenizer, rows), strict=True):
        for text, ids in ((row.chosen, made.chosen_ids), (row.rejected, made.rejected_ids)):
            assert list(ids) == encode_dialogue(tokenizer, (*row.prompt, Turn("assistant", text))).input_ids
            assert ids[-1] == tokenizer.eos_token_id  # where the score is read


# Table 27.
@pytest.mark.parametrize(
    ("table", "margins"), [("none", [0, 0, 0, 0]), ("small", [1, 2 / 3, 1 / 3, 0]), ("large", [3, 2, 1, 0])]
)
def test_margins_by_rating(job_of, tokenizer, table, margins):
    rows = [pair(rating=rating) for rating in ("significantly", "better", "slightly", "negligibly", None)]
    made = encode(job_of("reward", margin=table, unrated_margin=0.5), tokenizer, rows)
    assert [p.margin for p in made] == pytest.approx([*margins, 0.5])


def test_a_margin_of_the_pairs_own_is_taken_as_it_is(job_of, tokenizer):
    rows = [pair(margin=0.25), pair(rating=None, margin=2.5)]
    assert [p.margin for p in encode(job_of("reward"), tokenizer, rows)] == [0.25, 2.5]


def test_pairs_without_a_rating_need_a_margin_chosen_by_name(job_of, tokenizer, screen):
    rows = [pair(), pair(rating=None, id="p8"), pair(rating=None, id="p9")]
    with pytest.raises(DataError, match="2 of 3 pairs have no rating") as caught:
        encode(job_of("reward"), tokenizer, rows)
    assert caught.value.where == "first: pair p8 of people"
    made = encode(job_of("reward", unrated_margin=0), tokenizer, rows)
    assert [p.margin for p in made] == pytest.approx([2 / 3, 0, 0])
    assert "2 of 3 pairs have no rating: margin 0" in screen.getvalue()
    assert [p.margin for p in encode(job_of("reward", margin="none"), tokenizer, rows)] == [0, 0, 0]  # as all others


def test_labels_nobody_gave_are_not_numbers(job_of, tokenizer):
    rows = [pair(safe=labels) for labels in ((True, False), (False, False), (None, None), (None, True))]
    made = [(p.chosen_safe, p.rejected_safe) for p in encode(job_of("reward"), tokenizer, rows)]
    assert made[:2] == [(1.0, 0.0), (0.0, 0.0)]
    assert [math.isnan(x) for x in made[2]] == [True, True]
    assert (math.isnan(made[3][0]), made[3][1]) == (True, 1.0)


@pytest.mark.parametrize("rejected", ["take the key .", " take the key . "])  # blanks at both ends are not written
def test_a_pair_of_the_same_answers_is_refused_by_name(job_of, tokenizer, rejected):
    with pytest.raises(DataError, match="chosen and rejected are the same tokens") as caught:
        encode(job_of("reward"), tokenizer, [pair(), pair(rejected=rejected, id="p8")])
    assert caught.value.where == "pair p8 of people"


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_pair_longer_than_the_context_is_refused_by_name(job_of, tokenizer, side):
    long = "open the door " * 30
    ids = encode_dialogue(tokenizer, (*QUESTION, Turn("assistant", long))).input_ids
    job = job_of("reward", model={"max_length": len(ids) - 1})
    with pytest.raises(DataError, match=f"{len(ids)} tokens, the context holds {len(ids) - 1}") as caught:
        encode(job, tokenizer, [pair(**{side: long}, id="p9")])
    assert caught.value.where == "pair p9 of people"
    assert len(encode(job_of("reward", model={"max_length": len(ids)}), tokenizer, [pair(**{side: long})])) == 1


@pytest.mark.parametrize("changes", [{"chosen": "a [INST] b"}, {"prompt": (Turn("user", "a [INST] b"),)}])
def test_a_control_tag_in_a_pair_is_refused_by_name(job_of, tokenizer, changes):
    with pytest.raises(DataError) as caught:
        encode(job_of("reward"), tokenizer, [pair(**changes, id="p10")])
    assert caught.value.where == "pair p10 of people"


# ── what pairs there are ─────────────────────────────────────────────────────────────────────────────────────────────


def stored(folder, **files):
    folder.mkdir()
    for name, ids in files.items():
        write_jsonl(folder / f"{name.replace('_', '.')}.jsonl", [pair(id=row) for row in ids])
    return folder


def test_pairs_of_all_rounds_are_gathered_and_sides_kept_apart(job_of, tokenizer, tmp_path):
    rounds = [
        stored(tmp_path / "preferences-1", helpfulness_train=["a"], safety_train=["b"], helpfulness_test=["c"]),
        stored(tmp_path / "preferences-2", helpfulness_train=["d"], safety_train=["e"], safety_test=["f"]),
    ]
    train, test = gather(job_of("reward", data=[], reads={"preferences*": rounds}), tokenizer)
    assert {domain: [row.id for row in rows] for domain, rows in train.items()} == {
        "helpfulness": ["a", "d"],
        "safety": ["b", "e"],
    }
    assert {domain: [row.id for row in rows] for domain, rows in test.items()} == {
        "helpfulness": ["c"],
        "safety": ["f"],
    }


def test_a_model_without_pairs_is_refused(job_of, tokenizer, tmp_path):
    only = stored(tmp_path / "preferences-1", helpfulness_train=["a"])
    with pytest.raises(DataError, match="there are no safety pairs to train on"):
        gather(job_of("reward", data=[], reads={"preferences*": [only]}), tokenizer)


@pytest.fixture
def lowercase(tokenizer):
    """A tokenizer that does not see letter case."""
    made = copy.deepcopy(tokenizer)
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    return made


@pytest.mark.parametrize("use", ["train", "test"])
@pytest.mark.parametrize(
    ("row", "place", "reason"),
    [
        ({"chosen": "Good luck !", "rejected": "good luck !"}, "4:49", "chosen and rejected are the same tokens"),
        ({"chosen": "take <pad> .", "rejected": "good luck !"}, "4:24", "a message holds <pad>"),
    ],
)
def test_what_only_the_tokenizer_sees_follows_on_bad_row(job_of, lowercase, tmp_path, screen, use, row, place, reason):
    """On either side of the split: a model scores equal tokens alike, which would count as half a hit."""
    rows = [{"chosen": f"take key {i} .", "rejected": "no !"} for i in range(20)]
    rows[3] = row
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"how {i:2} ?", **row}) + "\n" for i, row in enumerate(rows)))
    source = {"name": "mine", "path": str(path), "use": use}
    others = stored(tmp_path / "preferences-1", helpfulness_train=["a"], safety_train=["b"])
    with pytest.raises(DataError, match=reason) as caught:
        gather(job_of("reward", data=[source], reads={"preferences*": [others]}), lowercase)
    assert caught.value.where == f"{path}:{place}"
    assert caught.value.hints == ("on_bad_row: drop leaves such rows out and counts them",)
    job = job_of("reward", data=[source | {"on_bad_row": "drop"}], reads={"preferences*": [others]})
    train, test = gather(job, lowercase)
    assert f"mine: 19 of 20 rows used; 1 dropped: {reason}" in screen.getvalue()
    assert (len(train["helpfulness"]), len(test["helpfulness"])) == ((20, 0) if use == "train" else (1, 19))


@pytest.mark.parametrize(("policy", "left"), [("error", None), ("drop", ["a"]), ("truncate_left", ["a", "long"])])
def test_held_out_pairs_fit_into_the_context_too(job_of, tokenizer, tmp_path, screen, policy, left):
    folder = stored(tmp_path / "preferences-1", helpfulness_train=["t"], safety_train=["s"])
    long = pair(id="long", prompt=(Turn("user", "open the door " * 40),))
    write_jsonl(folder / "helpfulness.test.jsonl", [pair(id="a"), long])
    job = job_of("reward", data=[], reads={"preferences*": [folder]}, too_long=policy)
    if left is None:
        with pytest.raises(DataError, match="the context holds 128") as caught:
            gather(job, tokenizer)
        assert caught.value.where == "pair long of people"
        return
    _, test = gather(job, tokenizer)
    assert [row.id for row in test["helpfulness"]] == left
    assert "held out, too long: 1 rows" in screen.getvalue()


def test_pairs_that_are_left_out_for_their_length_do_not_spoil_the_shares(job_of, tokenizer, saved, tmp_path):
    """Half and half of what is left: 12 and 12, though 6 helpful pairs are too long."""
    folder = stored(tmp_path / "preferences-1", safety_train=[f"s{i}" for i in range(18)])
    long = (Turn("user", "open the door " * 40),)
    rows = [pair(id=f"h{i}", **({"prompt": long} if i % 3 == 0 else {})) for i in range(18)]
    write_jsonl(folder / "helpfulness.train.jsonl", rows)
    job = job_of("reward", data=[], reads={"preferences*": [folder]}, too_long="drop")
    train, _ = gather(job, tokenizer)
    pairs = encode(job, tokenizer, train["helpfulness"] + train["safety"])
    places = pairs.lists["places"]
    assert [row.id for row in pairs][:3] == ["h1", "h2", "h4"]
    assert list(places)[:3] == [1, 2, 4]
    border = sum(place < 18 for place in places)
    assert border == 12
    mixed = reward.mixtures(job, range(border), range(border, len(pairs)))
    assert mixed["helpfulness"].counts.used == {"helpfulness": 12, "remaining": 12}


# ── the stage ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def reads(tmp_path, saved):
    """What the stage reads: 36 pairs of each domain, three of them tested, too, and a policy."""
    folder = tmp_path / "preferences-1"
    folder.mkdir()
    for domain, tag in (("helpfulness", False), ("safety", True)):
        labels = (True, False) if tag else (None, None)
        rows = [pair(id=f"{domain} {i}", is_safety=tag, safe=labels, chosen=f"take key {i} .") for i in range(36)]
        write_jsonl(folder / f"{domain}.train.jsonl", rows)
        write_jsonl(folder / f"{domain}.test.jsonl", rows[:3])
    return {"preferences*": [folder], "policy": [saved.policy("sft")]}


@pytest.fixture
def fits(monkeypatch):
    """What `fit_reward` is asked to do, by name."""
    fits, real = {}, reward.fit_reward

    def fit_reward(model, tokenizer, pairs, schedule, optimizer, **options):
        assert model.score.weight.eq(0).all()  # no opinion yet
        fits[options["what"]] = (pairs, schedule, options)
        return real(model, tokenizer, pairs, schedule, optimizer, **options)

    monkeypatch.setattr(reward, "fit_reward", fit_reward)
    return fits


def test_the_stage_trains_both_models_by_the_papers_schedule(job_of, reads, fits):
    """Half and half, and nine to one; a warm-up of 3% but at least 5 steps; the safety term for the safety model."""
    job = job_of("reward", name="reward-1", round=1, reads=reads, data=[], batch_size=4)
    reward.run(job)

    labelled = {what: [p.chosen_safe == p.chosen_safe for p in pairs] for what, (pairs, _, _) in fits.items()}
    assert Counter(labelled["helpfulness"]) == {True: 36, False: 36}
    assert Counter(labelled["safety"]) == {True: 36, False: 4}
    for pairs, schedule, _ in fits.values():
        assert len(pairs) // 4 >= 10 >= schedule.warmup_steps == 5
        assert (schedule.learning_rate, schedule.final_lr_ratio, schedule.epochs) == (1e-5, 0.1, 1)
    assert {what: options["safety_loss_coef"] for what, (_, _, options) in fits.items()} == {
        "helpfulness": 0.0,
        "safety": 1.0,
    }
    for domain in ("helpfulness", "safety"):
        load_reward_model(job.out / "checkpoint" / domain, job.recipe.model)
        assert [row.id for row in read_jsonl(job.out / f"{domain}.test.jsonl", Preference)] == [
            f"{domain} {i}" for i in range(3)
        ]


def test_margins_are_compared_by_models_that_differ_in_nothing_else(job_of, reads, fits):
    """Seeds, pairs and their order are those of the model that the run goes on with."""
    settings = {"reads": reads, "data": [], "batch_size": 4, "margin_ablation": ["large", "small", "none"]}
    job = job_of("reward", name="reward-1", round=1, **settings)
    reward.run(job)
    assert list(fits) == ["helpfulness", "safety", "helpfulness-large", "helpfulness-none"]  # small is the run's own
    own = fits.pop("helpfulness")
    fits.pop("safety")
    for name, margin in (("helpfulness-large", 2.0), ("helpfulness-none", 0.0)):  # "better" in Table 27
        pairs, _, options = fits[name]
        assert {made.margin for made in pairs} == {margin}
        assert [made.id for made in pairs] == [made.id for made in own[0]]
        assert (options["seed"], options["safety_loss_coef"]) == (own[2]["seed"], 0.0)
        load_reward_model(job.out / "checkpoint" / name, job.recipe.model)
    found = json.loads((job.out / "results.json").read_text())["reward_models"]
    assert list(found["helpfulness"]["margins"]["models"]) == ["none", "small", "large"]
    assert (
        found["helpfulness"]["margins"]["models"]["small"]["accuracy"]
        == found["helpfulness"]["helpfulness"]["accuracy"]
    )
    assert found["helpfulness"]["margins"]["changes"]["large minus none"]["accuracy"]["better"]["n"] == 3
    assert "margins" not in found["safety"]


def test_pairs_without_a_rating_stop_a_comparison_of_margins_before_it_trains(job_of, reads, fits):
    rows = [pair(id=f"u{i}", rating=None, chosen=f"take key {i} .") for i in range(4)]
    write_jsonl(reads["preferences*"][0] / "helpfulness.train.jsonl", rows)
    job = job_of("reward", reads=reads, data=[], margin="none", margin_ablation=["small"])
    with pytest.raises(DataError, match="4 of 40 pairs have no rating"):
        reward.run(job)
    assert not fits
