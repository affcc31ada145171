"""Dialogues turn by turn: what was read is not read again, and nothing else is different."""

import pytest
import torch

from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.transformers import InProcess, generate
from tests.generation.test_transformers import ARCHITECTURES, NEVER, assert_same, other, prompts_of

SPOKEN = prompts_of(3, 7, 7, 1, 12, 5)
FURTHER = [prompts_of(4, 1, 6, 3, 2, 5)[i:] + prompts_of(4, 1, 6, 3, 2, 5)[:i] for i in range(3)]  # what users say next


def asked(prompts, keys, turn, *, k=2):
    return Request(prompts, keys, Sampling(k, 1.0, 6), seed=turn, eos_token_id=1)


def hold(engine, *, leave=frozenset(), order=None, k=2, known=()):
    """Four turns of six dialogues; `leave`: dialogues that end after two. The answers and prompts by turn."""
    prompts, found, history = dict(zip("abcdef", SPOKEN, strict=True)), [], []
    for turn in range(4):
        names = [name for name in (order or "abcdef") if turn < 2 or name not in leave]
        request = asked([prompts[name] for name in names], names, turn, k=k)
        if turn < len(known):
            groups = known[turn]
            engine.skip(request)
        else:
            groups = engine.generate(request)
        found.append(groups)
        history.append(request)
        for name, group in zip(names, groups, strict=True):
            best = group[-1].token_ids
            prompts[name] = [*prompts[name], *best, *FURTHER[turn % 3]["abcdef".index(name)]]
    return found, history


def sizes(policy, run):
    """How many tokens each reading of more than one a row took."""
    taken = []
    hook = policy.model.embed_tokens.register_forward_pre_hook(lambda _, args: taken.append(tuple(args[0].shape)))
    run()
    hook.remove()
    return [shape for shape in taken if shape[1] > 1]


@pytest.mark.parametrize("leave", [frozenset(), frozenset("bde")])
@pytest.mark.parametrize("k", [1, 2])
def test_the_answers_are_those_of_reading_all_of_it(policy, leave, k):
    found, history = hold(InProcess(policy).remembering(), leave=leave, k=k)
    for groups, request in zip(found, history, strict=True):
        assert_same(groups, generate(policy, request))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures(kind):
    model = other(kind)
    found, history = hold(InProcess(model).remembering())
    for groups, request in zip(found, history, strict=True):
        assert_same(groups, generate(model, request))


def test_of_a_dialogue_that_goes_on_the_last_turn_is_read(policy):
    engine, taken = InProcess(policy).remembering(), []
    taken = sizes(policy, lambda: hold(engine, k=2))
    (first, *later) = taken
    assert first == (6, 12)
    _, history = hold(InProcess(policy).remembering())
    for shape, before, now in zip(later, history, history[1:], strict=False):
        longest = max(len(b) - len(a) for a, b in zip(before.prompts, now.prompts, strict=True))
        assert shape == (6, longest)


def test_prompts_that_are_new_are_read_whole(policy):
    engine = InProcess(policy).remembering()
    request = asked(SPOKEN, "abcdef", 0)
    taken = sizes(policy, lambda: [engine.generate(request) for _ in range(2)])
    assert taken == [(6, 12), (6, 12)]  # the same prompt again has nothing left to read: the whole of it is
    one_new = [[*SPOKEN[0], 9], *SPOKEN[1:3], [17, 18]]
    assert sizes(policy, lambda: engine.generate(asked(one_new, "abcd", 1))) == [(4, 7)]


def test_nothing_is_kept_where_nobody_asked(policy):
    engine = InProcess(policy)
    assert engine.dialogues is None
    taken = sizes(policy, lambda: hold(engine, k=1))
    _, history = hold(InProcess(policy), k=1)
    assert taken == [(6, max(map(len, request.prompts))) for request in history]


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_after_a_kill_the_bits_are_those_of_a_run_without_one(policy, lost):
    """The answers to some turns are known, and only read; what is drawn after them has the same bits."""
    whole, _ = hold(InProcess(policy).remembering(), order="fcadbe")
    again, _ = hold(InProcess(policy).remembering(), order="fcadbe", known=whole[:lost])
    assert again == whole  # log-probabilities, too, to the last bit


def test_requests_that_were_answered_before_another_dialogue_began_are_not_read(policy):
    """Two batches, one after the other, the first known: only what goes on is read."""
    engine = InProcess(policy).remembering()
    engine.skip(asked(SPOKEN[:2], "ab", 0))
    engine.skip(asked([[*SPOKEN[0], 5], [*SPOKEN[1], 6]], "ab", 1))
    engine.skip(asked(SPOKEN[2:4], "cd", 0))
    assert len(engine.dialogues.unread) == 1
    taken = sizes(policy, lambda: engine.generate(asked([[*SPOKEN[2], 5, 6], [*SPOKEN[3], 6]], "cd", 1)))
    assert taken == [(2, 7), (2, 2)]


def test_attention_that_slides_keeps_nothing():
    model = other("mistral")
    assert model.config.sliding_window == 4
    assert InProcess(model).remembering().dialogues is None


def test_the_gaps_between_turns_do_not_add_up(policy):
    """A cache is as wide as the longest dialogue before it, whatever was padded on the way there."""
    engine = InProcess(policy).remembering()
    _, history = hold(engine)
    last = history[-1]
    cache, seen = engine.dialogues.recall([tuple(p) for p in last.prompts])
    assert seen.shape[1] == cache.layers[0].keys.shape[2] == max(map(len, last.prompts))
    assert seen.sum(1).tolist() == [len(p) for p in last.prompts]
    with torch.no_grad():
        longest = max(last.prompts, key=len)
        row = last.prompts.index(longest)
        plain = policy(input_ids=torch.tensor([longest]), use_cache=True).past_key_values
    for kept, read in zip(cache.layers, plain.layers, strict=True):
        torch.testing.assert_close(kept.keys[row], read.keys[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(kept.values[row], read.values[0], atol=1e-5, rtol=1e-5)


def test_an_end_that_never_comes(policy):
    engine = InProcess(policy).remembering()
    for turn in range(2):
        prompts = [row + turn * [9, 9] for row in SPOKEN]
        request = Request(prompts, "abcdef", Sampling(1, 0.0, 4), seed=0, eos_token_id=NEVER)
        assert_same(engine.generate(request), generate(policy, request))
