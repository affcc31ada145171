"""Packing loses nothing, mixes nothing, and the model sees each document as if it were alone."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.data.collate import Row, fill, pack, pad_packed, share_prefixes
from rlhf.errors import DataError


def documents(sizes):
    """Documents whose tokens are all different: token = 100 * document + place."""
    return [Row([100 * d + i for i in range(n)], [100 * d + i for i in range(n)]) for d, n in enumerate(sizes, start=1)]


def unpacked(packed):
    """The documents inside packed rows, found by where positions start again."""
    found = []
    for row in packed:
        for token, label, position in zip(row.input_ids, row.labels, row.position_ids, strict=True):
            if position == 0:
                found.append([])
            assert position == len(found[-1])
            found[-1].append((token, label))
    return found


def test_best_fit_decreasing_by_hand():
    # Longest first into rows of 10: 7 opens A, 6 opens B, 4 fits B exactly (A has 3 free), 3 fills A, 2 opens C.
    packed = pack(documents([4, 7, 2, 6, 3]), length=10)
    contents = [[t // 100 for t, p in zip(row.input_ids, row.position_ids, strict=True) if p == 0] for row in packed]
    assert contents == [[1, 4], [2, 5], [3]]
    assert [len(row.input_ids) for row in packed] == [10, 10, 2]
    assert fill(packed, length=10) == pytest.approx(22 / 30)


@given(sizes=st.lists(st.integers(0, 12), max_size=30), length=st.integers(12, 30))
@settings(deadline=None)
def test_no_token_is_lost_doubled_or_moved(sizes, length):
    given_documents = documents(sizes)
    packed = pack(given_documents, length=length)
    assert all(0 < len(row.input_ids) <= length for row in packed)
    found = sorted(unpacked(packed))
    assert [[t for t, _ in d] for d in found] == [d.input_ids for d in given_documents if d.input_ids]
    for document in found:  # the first token is nobody's target; every other label is kept
        assert [label for _, label in document] == [-100, *[t for t, _ in document[1:]]]
    # No two rows could share one: that is what best fit decreasing promises of any two that are at most half full.
    assert sum(len(row.input_ids) <= length // 2 for row in packed) <= 1


def test_masked_labels_stay_masked():
    (row,) = pack([Row([1, 2, 3], [-100, -100, 3]), Row([4, 5], [-100, 5])], length=8)
    assert row.as_dict() == {
        "input_ids": [1, 2, 3, 4, 5],
        "labels": [-100, -100, 3, -100, 5],
        "position_ids": [0, 1, 2, 0, 1],
    }


def test_what_is_too_long_is_an_error_unless_asked():
    rows = documents([5])
    with pytest.raises(DataError, match="document 0 has 5 tokens, a row holds 4"):
        pack(rows, length=4)
    (cut,) = pack(rows, length=4, too_long="truncate")
    assert cut.input_ids == [100, 101, 102, 103]
    split = pack(rows, length=4, too_long="split")
    assert sorted(tuple(row.input_ids) for row in split) == [(100, 101, 102, 103), (104,)]
    assert all(row.labels[0] == -100 for row in split)


def test_labels_that_do_not_match_are_refused():
    with pytest.raises(DataError, match="2 ids and 1 labels"):
        pack([Row([1, 2], [1])], length=4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_logits_and_loss_equal_each_document_alone(attention):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, attn_implementation=attention,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(1, 40, (n,), generator=generator).tolist() for n in (9, 5, 4, 7, 1)]
    rows = [Row(ids, list(ids)) for ids in drawn]
    packed = pack(rows, length=14)
    assert len(packed) < len(rows)  # or nothing would be tested
    batch = pad_packed([row.as_dict() for row in packed], pad_token_id=0)
    assert "attention_mask" not in batch
    with torch.no_grad():
        together = model(**batch, use_cache=False)
        alone = [model(torch.tensor([row.input_ids])).logits[0] for row in rows]
    seen, total, count = 0, 0.0, 0
    for ids, positions, logits in zip(batch["input_ids"], batch["position_ids"], together.logits, strict=True):
        starts = (positions == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            piece = ids[start:end].tolist()
            match = [k for k, row in enumerate(rows) if row.input_ids == piece]
            if not match:  # the padding, which is a document of its own
                assert set(piece) == {0}
                continue
            torch.testing.assert_close(logits[start:end], alone[match[0]], atol=1e-5, rtol=0)
            seen += 1
            target = torch.tensor(piece[1:], dtype=torch.long)
            total += torch.nn.functional.cross_entropy(alone[match[0]][:-1], target, reduction="sum").item()
            count += len(target)
    assert seen == len(rows)
    # The loss is the mean over tokens that have a context of their own: none crosses a border.
    assert together.loss.item() == pytest.approx(total / count, abs=1e-5)


def test_a_prompt_token_never_moves_the_loss():
    """Answer-only labels: whatever is asked, prompt positions send no gradient to the logits (S1)."""
    config = LlamaConfig(
        vocab_size=12, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    packed = pack([Row([1, 5, 6, 7], [-100, -100, 6, 7]), Row([1, 8, 9], [-100, -100, 9])], length=8)
    out = model(**pad_packed([row.as_dict() for row in packed], pad_token_id=0), use_cache=False)
    out.logits.retain_grad()
    out.loss.backward()
    touched = out.logits.grad.abs().sum(-1)[0] > 0
    # Logits at i are judged by label i + 1: answers stand at 2, 3 and 6, so positions 1, 2 and 5 are trained.
    assert touched.tolist() == [False, True, True, False, False, True, False]


# ── rows that begin another ──────────────────────────────────────────────────────────────────────────────────────────


def last_one(*ids, name=""):
    """A row whose last token alone bears loss."""
    return Row(list(ids), [-100] * (len(ids) - 1) + [ids[-1]], name)


def test_a_row_that_begins_another_is_read_in_it():
    other = Row([5, 6], [-100, 6], "other")
    rows = [last_one(1, 2, 3, 4, name="c"), other, last_one(1, 2, name="a"), last_one(1, 2, 3, name="b")]
    assert share_prefixes(rows) == [Row([1, 2, 3, 4], [-100, 2, 3, 4], "a, b, c"), other]


def test_of_two_that_it_begins_one_takes_it():
    rows = [last_one(1, 2), last_one(1, 2, 4), last_one(1, 2, 3)]
    assert share_prefixes(rows) == [last_one(1, 2, 4), Row([1, 2, 3], [-100, 2, 3], ", ")]


def test_no_token_bears_loss_twice():
    rows = [last_one(1, 2), last_one(1, 2), Row([1, 2, 3], [-100, 2, 3])]
    assert share_prefixes(rows) == rows
    # What begins like another and goes on differently is not a beginning of it.
    apart = [last_one(1, 2, 3), last_one(1, 3), last_one(1)]
    assert share_prefixes(apart[:2]) == apart[:2]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=12))
@settings(max_examples=200, deadline=None)
def test_every_loss_stays_with_what_stands_before_it(documents):
    """Of every token that bears loss, the ids up to it: as often as before, and of no fewer rows than needed."""
    rows = [last_one(*ids) for ids in documents]
    kept = share_prefixes(rows)

    def losses(some):
        return Counter(tuple(r.input_ids[: i + 1]) for r in some for i, label in enumerate(r.labels) if label != -100)

    assert losses(kept) == losses(rows)
    assert len(kept) <= len(rows)
