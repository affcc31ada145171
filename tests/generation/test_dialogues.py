"""Dialogues turn by turn: what was read is not read again, and nothing else is different."""

from itertools import pairwise

import pytest
import torch

from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.transformers import InProcess, generate
from tests.generation.test_transformers import ARCHITECTURES, NEVER, assert_same, other, prompts_of

SPOKEN = prompts_of(3, 7, 7, 1, 12, 5)
SAID = prompts_of(4, 1, 11, 3, 2, 5)
FURTHER = [SAID[i:] + SAID[:i] for i in range(3)]  # what users say next; some one token, some eleven
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
# Keys and values of unlike width; attention chunk by chunk, and to the last few slots in every other layer.
UNLIKE = {
    "deepseek_v3": WIDTHS
    | {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8}
    | {"v_head_dim": 4, "first_k_dense_replace": 2},
    "llama4_text": WIDTHS
    | {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size_mlp": 48, "attention_chunk_size": 4}
    | {"interleave_moe_layer_step": 3, "num_local_experts": 2},
    "gpt_neo": {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "intermediate_size": 48, "window_size": 4}
    | {"attention_types": [[["global", "local"], 1]]},
}


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


@pytest.mark.parametrize("kind", [*ARCHITECTURES, *UNLIKE])
def test_other_architectures(kind):
    model = other(kind, **UNLIKE.get(kind, {}))
    found, history = hold(InProcess(model).remembering())
    for groups, request in zip(found, history, strict=True):
        assert_same(groups, generate(model, request))


def test_of_a_dialogue_that_goes_on_the_last_turn_is_read(policy):
    history = []
    first, *later = sizes(policy, lambda: history.extend(hold(InProcess(policy).remembering())[1]))
    assert first == (6, 12)
    for shape, (before, now) in zip(later, pairwise(history), strict=True):
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


def test_only_what_goes_on_is_read_after_a_kill(policy):
    """Two batches, one after the other, all known but the last turn of the second: the first is not read."""
    engine = InProcess(policy).remembering()
    engine.generate(asked(SPOKEN[4:], "ef", 0))
    for prompts, names in ((SPOKEN[:2], "ab"), ([[*SPOKEN[0], 5], [*SPOKEN[1], 6]], "ab"), (SPOKEN[2:4], "cd")):
        engine.skip(asked(prompts, names, 0))
    last = asked([[*SPOKEN[2], 5, 6], [*SPOKEN[3], 6]], "cd", 1)
    assert sizes(policy, lambda: engine.generate(last)) == [(2, 7), (2, 2)]
    engine.skip(asked(SPOKEN[:2], "ab", 0))
    assert sizes(policy, lambda: engine.generate(asked(SPOKEN[4:], "ef", 0))) == [
        (2, 12)
    ]  # nor what nothing goes on from


def test_what_was_held_before_a_dialogue_that_was_skipped_is_forgotten(policy):
    """As in a life without a kill, where those that began in between took its place."""
    engine = InProcess(policy).remembering()
    engine.generate(asked(SPOKEN[:2], "ab", 0))
    engine.skip(asked(SPOKEN[2:4], "cd", 0))
    again = asked([[*SPOKEN[0], 5, 6], [*SPOKEN[1], 6]], "ab", 1)
    assert sizes(policy, lambda: engine.generate(again)) == [(2, 8)]


def test_the_longest_beginning_serves(policy):
    engine = InProcess(policy).remembering()
    engine.generate(asked([SPOKEN[1][:2], SPOKEN[1]], "ab", 0))
    assert sizes(policy, lambda: engine.generate(asked([[*SPOKEN[1], 5, 6]], "b", 1))) == [(1, 2)]


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "llama4_text", "gpt_neo"])
def test_attention_that_does_not_reach_all_keeps_nothing(kind):
    assert InProcess(other(kind, **UNLIKE.get(kind, {}))).remembering().dialogues is None


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "qwen2", "deepseek_v3"])
def test_attention_that_does_is_spared_work(kind):
    assert InProcess(other(kind, **UNLIKE.get(kind, {}))).remembering().dialogues is not None


def test_the_gaps_between_turns_do_not_add_up(policy):
    """A cache is as wide as the longest dialogue before it, whatever was padded on the way there."""
    engine = InProcess(policy).remembering()
    _, history = hold(engine)
    last = history[-1]
    cache, seen = engine.dialogues.recall([[*p, 9] for p in last.prompts])
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
