"""Training: the schedule against its formula, losses against numbers worked by hand, all on tiny models."""

import copy
import dataclasses
import io
import json
import math

import pytest
import torch
import trl
from datasets import Dataset
from rich.console import Console

from rlhf.data.collate import PackedRow, Row, pack
from rlhf.data.spool import Rows, Spool
from rlhf.errors import ConfigError, NonFiniteError
from rlhf.models import pair_batches
from rlhf.models.score import score
from rlhf.resume.preemption import Stop
from rlhf.resume.saves import Saves
from rlhf.schema import AdamW
from rlhf.tracking.track import Tracker
from rlhf.training import row_trainer
from rlhf.training.trainers import (
    Pair,
    Schedule,
    SimilarLengths,
    fit_lm,
    fit_reward,
    reward_loss,
    steps_of,
    warmup_steps,
)

NAN = float("nan")


@pytest.fixture
def screen():
    return io.StringIO()


@pytest.fixture
def track(tmp_path, screen):
    with Tracker(tmp_path, run="test", step="sft", console=Console(file=screen)) as tracker:
        yield tracker


def logged(track):
    return [json.loads(line) for line in (track.folder / "metrics.jsonl").read_text().splitlines()]


def schedule(**changes):
    flat = {"learning_rate": 1e-3, "final_lr_ratio": 1.0, "batch_size": 4, "warmup_steps": 0}
    return Schedule(**(flat | changes))


def saves_of(track):
    """Saves that are never due."""
    return Saves(track.folder, key="key", track=track, every=600, stop=Stop(), note=lambda *_, **__: None)


def fit(policy, tokenizer, rows, track, *, micro=None, first_step=0, **changes):
    optimizer = AdamW(microbatch_size=micro)
    options = {"seed": 0, "track": track, "saves": saves_of(track), "what": "sft", "first_step": first_step}
    fit_lm(policy, tokenizer, rows, schedule(**changes), optimizer, **options)


def fit_pairs(model, tokenizer, pairs, track, *, micro=None, **changes):
    optimizer = AdamW(microbatch_size=micro)
    options = {"safety_loss_coef": 1.0, "center_coef": 0.01, "seed": 0, "track": track, "what": "helpfulness"}
    options["saves"] = saves_of(track)
    return fit_reward(model, tokenizer, pairs, schedule(**changes), optimizer, **options)


def distance(first, second):
    """The largest difference of any weight of two models."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


# ── schedules ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("total", "warmup"), [(1000, 30), (200, 6), (166, 5), (100, 5), (5, 5), (3, 3)])
def test_reward_models_warm_up_for_three_percent_but_at_least_five_steps(total, warmup):
    assert warmup_steps(total, ratio=0.03, least=5) == warmup  # and never for more than there are


def test_fine_tunes_warm_up_without_a_least():
    assert [warmup_steps(total, ratio=0.03) for total in (10, 100, 1000)] == [0, 3, 30]


@pytest.mark.parametrize(("rows", "epochs", "steps"), [(8, 1, 2), (9, 1, 3), (9, 2, 6), (1, 3, 3), (0, 2, 2)])
def test_steps_by_hand(rows, epochs, steps):
    assert steps_of(rows, batch_size=4, epochs=epochs) == steps


LONE = pack([Row([9, 10, 11, 1], [-100, 10, 11, 1])], length=4)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_the_learning_rate_warms_up_and_falls_as_a_cosine(policy, tokenizer, track, final):
    peak, warmup, total = 2e-3, 15, 40
    fit(
        *(policy, tokenizer, LONE, track),
        learning_rate=peak, final_lr_ratio=final, batch_size=1, warmup_steps=warmup, steps=total,
    )  # fmt: skip

    def formula(step):
        before = step - 1  # the first step is made with what stands at the start of the schedule
        if before < warmup:
            return peak * before / warmup
        cosine = (1 + math.cos(math.pi * (before - warmup) / (total - warmup))) / 2
        return peak * (final + (1 - final) * cosine)

    found = {row["step"]: row["sft/learning_rate"] for row in logged(track)}
    assert sorted(found) == [1, 10, 20, 30, 40]
    assert found == pytest.approx({step: formula(step) for step in found}, rel=1e-6, abs=1e-12)
    assert found[10] == pytest.approx(peak * 9 / 15)
    # The last step is one short of the end: (1 + cos(24/25 pi)) / 2 = .0039 of the way above it.
    assert found[40] == pytest.approx(peak * (final + (1 - final) * 0.0039), abs=peak * 1e-4)


def test_steps_of_a_second_part_are_counted_on(policy, tokenizer, track):
    for first_step in (0, 10):
        fit(policy, tokenizer, LONE, track, first_step=first_step, batch_size=1, steps=10)
    assert [row["step"] for row in logged(track)] == [1, 10, 11, 20]


@pytest.mark.parametrize(
    ("rows", "micro", "epochs", "steps"), [(10, 2, 3, 9), (10, None, 2, 6), (9, 2, 1, 3), (3, 1, 2, 2)]
)
def test_as_many_steps_are_made_as_were_counted(policy, tokenizer, track, screen, rows, micro, epochs, steps):
    """A cosine that is longer or shorter than the training ends at another learning rate than it should."""
    fit(policy, tokenizer, LONE * rows, track, micro=micro, epochs=epochs)
    assert steps_of(rows, batch_size=4, epochs=epochs) == steps
    assert screen.getvalue().splitlines()[-1].startswith(f"[sft] {steps}/{steps} ")


def test_a_batch_that_microbatches_do_not_divide_is_refused(policy, tokenizer, track):
    with pytest.raises(ConfigError, match=r"batch_size \(8\) must be a multiple of microbatch_size \* processes \(3\)"):
        fit(policy, tokenizer, LONE, track, micro=3, batch_size=8)


# ── language models ──────────────────────────────────────────────────────────────────────────────────────────────────

# A prompt of three tokens and its answer; two exchanges; a long answer. Two packed rows, the second one padded.
DOCUMENTS = [
    Row([0, 20, 21, 30, 31, 1], [-100, -100, -100, 30, 31, 1]),
    Row([0, 40, 41, 1, 0, 42, 43, 1], [-100, -100, 41, 1, -100, -100, 43, 1]),
    Row([0, 50, *range(60, 68), 1], [-100, -100, *range(60, 68), 1]),
]
PACKED = pack(DOCUMENTS, length=14)


@torch.no_grad()
def loss_of(policy, documents):
    """Mean loss of the labelled tokens, each document by itself."""
    losses = []
    for document in documents:
        logprobs = policy(torch.tensor([document.input_ids]), use_cache=False).logits[0].log_softmax(-1)
        wanted = [(place - 1, label) for place, label in enumerate(document.labels) if label != -100]
        losses += [-logprobs[place, label].item() for place, label in wanted]
    return sum(losses) / len(losses)


def test_the_loss_is_that_of_the_answers_each_document_by_itself(policy, tokenizer, track):
    assert [len(row.input_ids) for row in PACKED] == [14, 11]
    wanted = loss_of(policy, DOCUMENTS)
    fit(policy, tokenizer, PACKED, track, batch_size=2)
    assert logged(track)[0]["sft/loss"] == pytest.approx(wanted, abs=1e-3)


def test_logits_made_at_once_teach_and_say_what_those_of_trl_do(policy, tokenizer, tmp_path, monkeypatch):
    """Also where a step has more than one micro-batch, and one of them no loss at all."""
    silent = dataclasses.replace(PACKED[1], labels=[-100] * len(PACKED[1].labels))
    for name, rows, micro in (("whole", PACKED, None), ("parts", PACKED, 1), ("silent", [PACKED[0], silent], 1)):
        learnt, said = [], []
        for most in (2**24, 0):
            monkeypatch.setattr(row_trainer, "FEW_LOGITS", most)
            model = copy.deepcopy(policy)
            made, scored = [], model.lm_head.forward
            model.lm_head.forward = lambda hidden, made=made, scored=scored: made.append(hidden) or scored(hidden)
            (folder := tmp_path / f"{name}-{most}").mkdir()
            with Tracker(folder, run="test", step="sft", console=Console(file=io.StringIO())) as track:
                fit(model, tokenizer, rows, track, batch_size=2, micro=micro, epochs=3)
            assert bool(made) == bool(most)  # TRL's way goes past the head
            learnt.append(torch.cat([weight.flatten() for weight in model.state_dict().values()]))
            said.append({name: value for name, value in logged(track)[0].items() if name != "time"})
        torch.testing.assert_close(*learnt, atol=1e-5, rtol=1e-4)
        assert said[0] == pytest.approx(said[1], rel=1e-4)
        assert {"sft/entropy", "sft/mean_token_accuracy", "sft/loss"} <= said[0].keys()


def test_predictions_are_those_of_the_step_that_is_logged(policy, tokenizer, track):
    """Entropy and right guesses of both micro-batches of steps 1 and 10, by torch's own distribution."""
    made = []
    policy.lm_head.register_forward_hook(lambda module, given, logits: made.append(logits.detach()[0]))
    fit(policy, tokenizer, LONE * 2, track, batch_size=2, micro=1, steps=10, learning_rate=1e-2)
    assert len(made) == 20
    wanted = torch.tensor([10, 11, 1])
    for row, step in zip(logged(track), (1, 10), strict=True):
        own = torch.cat(made[2 * step - 2 : 2 * step])
        entropy = torch.distributions.Categorical(logits=own).entropy().mean().item()
        right = (own.argmax(-1) == wanted.repeat(2)).double().mean().item()
        assert (row["step"], row["sft/entropy"]) == (step, pytest.approx(entropy, rel=1e-4))
        assert row["sft/mean_token_accuracy"] == pytest.approx(right)
    assert logged(track)[1]["sft/entropy"] < 0.9 * logged(track)[0]["sft/entropy"]  # so that a mean would be another


def test_tokens_without_a_label_bear_no_loss(policy, tokenizer, track):
    """No gradient reaches the places that predict a prompt, a document's start, or padding."""
    found = []
    # What the head reads; attention has been, so that a place is reached through its own prediction alone.
    policy.model.norm.register_full_backward_hook(lambda module, given, gradients: found.append(gradients[0].clone()))
    fit(policy, tokenizer, PACKED, track, batch_size=2)
    (gradient,) = found
    assert gradient.shape[:2] == (1, 28)  # the rows are laid end to end
    reached = (gradient.abs().sum(-1) > 0).view(2, 14)
    # Rows are shuffled; they are told apart by how many tokens bear loss: 3 + 4, and 9.
    rows = sorted(reached.tolist(), key=sum)
    predicts = [[label != -100 for label in row.labels[1:]] for row in PACKED]
    assert rows[0] == [*predicts[0], False]
    assert rows[1] == [*predicts[1], *[False] * 4]


def test_of_running_text_every_token_is_predicted_but_the_first_of_a_row(policy, tokenizer, track):
    """However the rows are split over micro-batches: the end of one does not predict the beginning of the next."""
    texts = [list(range(first, first + 9)) for first in (20, 40, 60, 80)]
    rows = [PackedRow(text, text, list(range(9)), (f"{text[0]}",)) for text in texts]
    wanted = loss_of(policy, [Row(text, [-100, *text[1:]]) for text in texts])
    split, start = copy.deepcopy(policy), copy.deepcopy(policy)
    fit(policy, tokenizer, rows, track, epochs=3)
    assert logged(track)[0]["sft/loss"] == pytest.approx(wanted, abs=1e-3)
    fit(split, tokenizer, rows, track, epochs=3, micro=1)
    assert distance(policy, split) < 1e-5
    assert distance(policy, start) > 1e-3


def test_microbatches_are_worth_the_batch_they_make(policy, tokenizer, track):
    """Every labelled token counts alike, though the rows of one micro-batch hold few of them and of another many."""
    few = Row([0, 70, 71, 72, 1], [-100, -100, -100, -100, 1])
    rows = [row for document in (*DOCUMENTS, few) for row in pack([document], length=11)]
    split, start = copy.deepcopy(policy), copy.deepcopy(policy)
    fit(policy, tokenizer, rows, track, epochs=3)
    fit(split, tokenizer, rows, track, epochs=3, micro=1)
    assert distance(policy, split) < 1e-5
    assert distance(policy, start) > 1e-3


def test_a_loss_that_is_not_finite_ends_the_training(policy, tokenizer, track):
    with torch.no_grad():
        policy.lm_head.weight[5, 5] = NAN
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 1 of sft"):
        fit(policy, tokenizer, PACKED, track)


def test_a_weight_that_is_not_finite_ends_it_even_if_no_loss_shows_it(policy, tokenizer, track):
    with torch.no_grad():
        policy.model.embed_tokens.weight[299] = NAN  # of a token that no row holds
    with pytest.raises(NonFiniteError, match=r"parameter model\.embed_tokens\.weight is not finite"):
        fit(policy, tokenizer, PACKED, track)


# ── reward models ────────────────────────────────────────────────────────────────────────────────────────────────────


def loss(chosen, rejected, margin, chosen_safe, rejected_safe, *, safety=1.0, center=0.0):
    labels = {"margin": margin, "chosen_safe": chosen_safe, "rejected_safe": rejected_safe}
    tensors = {name: torch.tensor(values) for name, values in labels.items()}
    scores = (torch.tensor(values, requires_grad=True) for values in (chosen, rejected))
    return reward_loss(*scores, tensors, safety_loss_coef=safety, center_coef=center)


@pytest.mark.parametrize(
    ("margin", "wanted"), [(0.0, 0.6931), (1 / 3, 0.8736), (2 / 3, 1.0810), (1.0, 1.3133), (2.0, 2.1269), (3.0, 3.0486)]
)
def test_the_margin_loss_of_equal_scores(margin, wanted):
    """ln(1 + exp(m)): softplus of the margin, since the gap is 0."""
    total, parts = loss([0.5], [0.5], [margin], [NAN], [NAN])
    assert total.item() == pytest.approx(wanted, abs=1e-4)
    assert parts["loss/safety"] == 0


def test_the_whole_loss_by_hand():
    # ln(1 + 1/e) = .3133, ln 2 = .6931, ln(1 + e) = 1.3133
    # ranking: gaps less margins are 1 and -1: (.3133 + 1.3133) / 2 = .8133
    # safety: the first pair alone is labelled, right by 1 and undecided: (.3133 + .6931) / 2 = .5032, over two: .2516
    # center: (1 + 0)^2 and 0: .5
    total, parts = loss([1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, NAN], [0.0, NAN], safety=2.0, center=0.1)
    assert total.item() == pytest.approx(0.81326 + 2 * 0.25160 + 0.1 * 0.5, abs=1e-4)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {"loss/ranking": 0.81326, "loss/safety": 0.25160, "accuracy": 0.5, "mean_score": 0.25, "score_gap": 0.5},
        abs=1e-4,
    )


@pytest.mark.parametrize(("chosen_safe", "rejected_safe"), [(NAN, NAN), (NAN, 0.0), (1.0, NAN)])
def test_a_pair_without_both_labels_has_no_safety_term(chosen_safe, rejected_safe):
    chosen, rejected = (torch.tensor([x], requires_grad=True) for x in (2.0, -1.0))
    safe = {"chosen_safe": torch.tensor([chosen_safe]), "rejected_safe": torch.tensor([rejected_safe])}
    labels = {"margin": torch.tensor([0.0]), **safe}
    total, _ = reward_loss(chosen, rejected, labels, safety_loss_coef=100.0, center_coef=0.0)
    total.backward()
    # ln(1 + exp(-3)) = .0486, and its slope -sigmoid(-3) = -.0474: nothing but the ranking.
    assert total.item() == pytest.approx(0.0486, abs=1e-4)
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-0.0474, 0.0474), abs=1e-4)


GOOD, BAD = 100, 101


def pair(number, *, length=4, safe=NAN):
    """A pair whose answers differ in one token."""
    start = [0, 10 + number % 50, *[20] * length]
    return Pair([*start, GOOD, 1], [*start, BAD, 1], margin=1 / 3, chosen_safe=safe, rejected_safe=safe)


def test_what_can_be_told_apart_is_learned(reward_model, tokenizer, track):
    pairs = [pair(i, length=i % 5) for i in range(24)]
    before = copy.deepcopy(reward_model)
    fit_pairs(reward_model, tokenizer, pairs[:16], track, learning_rate=5e-3, epochs=5)

    def right(model):
        """Of pairs that were not trained on."""
        sides = ([p.chosen_ids for p in pairs[16:]], [p.rejected_ids for p in pairs[16:]])
        chosen, rejected = (score(model, rows, pad_token_id=tokenizer.pad_token_id) for rows in sides)
        return (chosen - rejected > 1 / 3).float().mean().item()

    assert right(before) < 0.9
    assert right(reward_model) == 1.0
    assert logged(track)[-1]["helpfulness/accuracy"] > 0.9


def test_every_pair_is_trained_on_whatever_its_length(reward_model, tokenizer, track, screen, monkeypatch):
    """TRL would leave longer ones than its max_length, 1024 tokens, out without a word."""
    pairs = [pair(i, length=length) for i, length in enumerate([0, 3, 1100, 9, 130, 0, 60])]
    seen, collate = [], pair_batches.collate
    monkeypatch.setattr(
        pair_batches, "collate", lambda sides, *more, **key: seen.extend(sides) or collate(sides, *more, **key)
    )
    fit_pairs(reward_model, tokenizer, pairs, track, batch_size=2)
    assert sorted(seen) == sorted((p.chosen_ids, p.rejected_ids) for p in pairs)
    assert screen.getvalue().splitlines()[-1].startswith("[sft] helpfulness 4/4 ")


def test_pairs_on_disk_train_the_same_model_bit_for_bit(reward_model, tokenizer, track, tmp_path):
    pairs = [
        dataclasses.replace(pair(i, length=3 + 7 * i % 11, safe=[1.0, 0.0, NAN][i % 3]), id=f"p{i}") for i in range(9)
    ]
    spool = Spool(Pair)
    for made in pairs:
        spool.append(made)
    assert repr(spool[4]) == repr(pairs[4])  # nan is not nan
    other = copy.deepcopy(reward_model)
    fit_pairs(reward_model, tokenizer, pairs, track, batch_size=2, epochs=2)
    (tmp_path / "disk").mkdir()
    with Tracker(tmp_path / "disk", run="test", step="sft", console=Console(file=io.StringIO())) as tracker:
        fit_pairs(other, tokenizer, Rows(spool, range(9)), tracker, batch_size=2, epochs=2)
        assert [row | {"time": 0} for row in logged(tracker)] == [row | {"time": 0} for row in logged(track)]
    assert distance(reward_model, other) == 0


@pytest.mark.parametrize("layout", ["two rows", "shared prompt"])
def test_the_loss_and_the_step_are_those_of_trls_trainer(reward_model, tokenizer, track, tmp_path, monkeypatch, layout):
    """One batch through TRL's own RewardTrainer, with margins and centring: the same loss, the same weights then."""
    pairs = [dataclasses.replace(pair(i, length=3 + 7 * i % 11), margin=i / 3) for i in range(6)]
    ours, theirs = reward_model, copy.deepcopy(reward_model)
    monkeypatch.setattr(pair_batches, "sees_all", lambda model: layout == "shared prompt")
    batching = fit_pairs(ours, tokenizer, pairs, track, batch_size=6, learning_rate=1e-3)
    assert batching.layout == layout
    rows = [{"chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids, "margin": p.margin} for p in pairs]
    optimizer = AdamW()
    arguments = trl.RewardConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=6,
        max_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        center_rewards_coefficient=0.01,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
    )
    trainer = trl.RewardTrainer(theirs, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    wanted = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    found = next(row["helpfulness/loss"] for row in logged(track) if "helpfulness/loss" in row)
    assert found == pytest.approx(wanted, abs=1e-5)
    assert distance(ours, theirs) < 1e-5


def test_microbatches_of_pairs_are_worth_the_batch_they_make(reward_model, tokenizer, track):
    """Also where some hold labelled pairs and others none."""
    pairs = [pair(i, length=7 * i % 11, safe=float(i % 2) if i < 5 else NAN) for i in range(12)]
    split, start = copy.deepcopy(reward_model), copy.deepcopy(reward_model)
    fit_pairs(reward_model, tokenizer, pairs, track, learning_rate=3e-4)
    fit_pairs(split, tokenizer, pairs, track, learning_rate=3e-4, micro=1)
    assert distance(reward_model, split) < 1e-5
    assert distance(reward_model, start) > 5e-4


def test_a_score_that_is_not_finite_ends_the_training(reward_model, tokenizer, track):
    with torch.no_grad():
        reward_model.score.weight[0, 0] = NAN
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 1 of helpfulness"):
        fit_pairs(reward_model, tokenizer, [pair(i) for i in range(4)], track)


@pytest.mark.parametrize(("rows", "batch_size"), [(10, 4), (8, 4), (3, 4), (1000, 4), (417, 8)])
def test_rows_of_similar_length_share_a_batch_in_random_order(rows, batch_size):
    lengths = [(37 * i * i) % 211 + 1 for i in range(rows)]
    sampler = SimilarLengths(lengths, batch_size=batch_size, seed=3)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first == again  # the order is of the epoch, not of how often this process has asked
    assert sorted(first) == sorted(second) == list(range(rows)) == list(range(len(sampler)))
    assert list(SimilarLengths(lengths, batch_size=batch_size, seed=3)) == first
    batches = [[lengths[i] for i in first[start : start + batch_size]] for start in range(0, rows, batch_size)]
    assert all(batch == sorted(batch, reverse=True) for batch in batches)  # whole ones: a short one comes last
    if rows < 400:
        return
    assert first != second  # every epoch has an order of its own
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)  # shuffled rows would take more than half as much again
    longest = torch.tensor([float(max(batch)) for batch in batches])
    place = torch.arange(float(len(batches)))
    assert abs(torch.corrcoef(torch.stack([longest, place]))[0, 1]) < 0.4  # no sweep from long to short
