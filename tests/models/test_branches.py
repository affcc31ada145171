"""Rows that begin alike as one row: which, by the definition; and what it says of each, by transformers row by row."""

import itertools
import time

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from rlhf.models.branches import Tree, ends, lay_out, shared_prefix, trees, visible, work_of
from rlhf.models.score import AT_ONCE_ON_CPU, score

PAD = 2
ROWS = st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=1, max_size=12).map(sorted)


def answers(prompts, count, *, length=9, seed=4):
    """Sorted rows: so many prompts of 20 ids, each with answers of its own."""
    draw = torch.Generator().manual_seed(seed)

    def words(n):
        return torch.randint(8, 300, (n,), generator=draw).tolist()

    return sorted((*start, *words(length), 1) for start in [words(20) for _ in range(prompts)] for _ in range(count))


def by_definition(rows, first, last, work, longest):
    """(work, trees) of a stretch: one tree, or the best of each stretch inside it whose rows have more in common."""
    if last - first == 1:
        return work(len(rows[first])), [(first, last)]
    common = [shared_prefix(a, b) for a, b in itertools.pairwise(rows[first:last])]
    cuts = [first + i + 1 for i, n in enumerate(common) if n == min(common)]
    inside = [by_definition(rows, a, b, work, longest) for a, b in itertools.pairwise([first, *cuts, last])]
    spent, found = sum(cost for cost, _ in inside), [tree for _, part in inside for tree in part]
    tokens = min(common) + sum(len(row) - min(common) for row in rows[first:last])
    return (work(tokens), [(first, last)]) if tokens <= longest and work(tokens) < spent else (spent, found)


@given(rows=ROWS, per_key=st.integers(0, 4), longest=st.integers(1, 40))
@example(rows=[(0,), (0, 0), (0, 0, 0)], per_key=0, longest=40)  # each begins the next one
def test_the_trees_are_those_of_the_definition(rows, per_key, longest):
    def work(tokens):
        return tokens * (3 + per_key * tokens)

    found = trees(rows, work, longest=longest)
    assert [(tree.first, tree.last) for tree in found] == by_definition(rows, 0, len(rows), work, longest)[1]
    for tree in found:
        held = rows[tree.first : tree.last]
        assert tree.tokens == tree.trunk + sum(len(row) - tree.trunk for row in held)
        assert {row[: tree.trunk] for row in held} == {held[0][: tree.trunk]}
        assert all(len(row) > tree.trunk for row in held)  # where its score is read it stands alone
        assert len(held) == 1 or tree.tokens <= longest
    assert sum(work(tree.tokens) for tree in found) <= sum(work(len(row)) for row in rows)


def test_answers_to_a_prompt_are_a_tree_and_no_rows_are_none():
    rows = answers(3, 4)
    assert trees(rows, lambda n: n, longest=100) == [Tree(4 * i, 4 * i + 4, 20, 20 + 4 * 10) for i in range(3)]
    assert trees(rows, lambda n: n, longest=59) == [Tree(i, i + 1, 0, 30) for i in range(12)]  # no room
    many = answers(1, 8)
    assert trees(many, lambda n: n * n, longest=1000) == [Tree(i, i + 1, 0, 30) for i in range(8)]  # 100² > 8 * 30²
    assert trees([], lambda n: n, longest=100) == []


def test_thousands_of_rows_of_which_each_begins_the_next():
    rows = [(7,) * n for n in range(1, 3000)]
    found = trees(rows, lambda n: n, longest=10**9)
    assert [i for tree in found for i in range(tree.first, tree.last)] == list(range(len(rows)))
    assert sum(tree.tokens for tree in found) < 0.51 * sum(map(len, rows))


def test_a_tree_by_hand():
    made = lay_out([(2, [[4, 5, 6, 1], [4, 5, 7], [4, 5, 8, 1]]), (0, [[9, 1]])], pad_token_id=PAD)
    assert made["input_ids"].tolist() == [[4, 5, 6, 1, 7, 8, 1], [9, 1, 2, 2, 2, 2, 2]]
    assert made["position_ids"].tolist() == [[0, 1, 2, 3, 2, 2, 3], [0, 1, 0, 0, 0, 0, 0]]
    assert made["segments"].tolist() == [[0, 0, 1, 1, 2, 3, 3], [1, 1, -1, -1, -1, -1, -1]]
    assert ends(made["segments"]).nonzero().tolist() == [[0, 3], [0, 4], [0, 6], [1, 1]]
    seen = visible(made["segments"])[0].int().tolist()
    assert seen[3:] == [[1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1, 1]]


@torch.no_grad()
def test_a_branch_has_the_score_of_its_row_by_itself(reward_model):
    """Answers of unlike length, a row that another begins with, one that shares nothing, in batches of any size."""
    rows = [row[: 22 + i] for i, row in enumerate(answers(3, 4))]
    rows += [rows[3][:-1], rows[3][:5], (9, 1)]
    wanted = [reward_model.score(reward_model.model(torch.tensor([row])).last_hidden_state)[0, -1, 0] for row in rows]
    for tokens in (40, 100, 150, 10**6, None):
        found = score(reward_model, rows, pad_token_id=PAD, tokens_per_batch=tokens)
        assert found.tolist() == pytest.approx([float(value) for value in wanted], abs=1e-5)
    assert torch.stack(wanted).std() > 0.1


def read_of(reward_model, rows, **how):
    """The shapes that scoring these rows reads."""
    read = []
    hook = reward_model.model.embed_tokens.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    score(reward_model, rows, pad_token_id=PAD, **how)
    hook.remove()
    return read


def test_a_prompt_is_read_once_for_its_answers_unless_the_model_does_not_see_all(reward_model, monkeypatch):
    rows = answers(3, 4)
    assert read_of(reward_model, rows) == [(3, 60)]
    assert read_of(reward_model, rows, tokens_per_batch=1) == [(1, 30)] * 12  # every row by itself
    for change in ({"alibi": True}, {"layer_types": ["sliding_attention"] * 3}):
        with monkeypatch.context() as patch:
            for name, value in change.items():
                patch.setattr(reward_model.config, name, value, raising=False)
            assert read_of(reward_model, rows) == [(12, 30)]


def test_a_cpu_reads_no_more_at_once_than_its_caches_hold(reward_model):
    read = read_of(reward_model, [*answers(40, 4), *answers(100, 1, length=40, seed=5)])
    assert sum(rows * width for rows, width in read) == 40 * 60 + 100 * 61
    assert max(rows * width for rows, width in read) <= AT_ONCE_ON_CPU < 40 * 60


def test_rows_that_only_begin_with_the_same_id_take_no_time_to_tell_apart():
    rows = sorted((0, i % 50000, i) for i in range(200_000))
    before = time.process_time()
    found = trees(rows, lambda n: n * n, longest=100)
    assert len(found) == len(rows)
    assert time.process_time() - before < 5  # two seconds; copied stretch by stretch it was minutes


def test_work_counts_weights_and_keys(reward_model):
    config, weights = reward_model.config, sum(p.numel() for p in reward_model.parameters())
    weights -= reward_model.model.embed_tokens.weight.numel()
    keys = 2 * config.num_hidden_layers * config.hidden_size  # a query times a key, and its share of a value
    assert work_of(reward_model)(10) == 10 * (weights + 10 * keys)
