"""Two processes over gloo: the same samples as one, whoever is slow, has nothing, or fails."""

import multiprocessing
import queue
import socket

import pytest
import torch
from torch import distributed

from rlhf.errors import NonFiniteError, RlhfError
from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.transformers import generate
from rlhf.processes.ranks import dealt

PROMPTS = [[5, 9, 17], [20, 8, 40, 41, 12, 9], [60], [7, 7, 8, 9, 10, 11, 12], [33, 34]]
SAMPLING = Sampling(3, 1.0, 12)


def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.4, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def sampled(policy, prompts, eos=1):
    """Each prompt's completions; its key is its own text, so that it does not matter who draws them."""
    keys = [str(prompt) for prompt in prompts]
    return generate(policy, Request(prompts, keys, SAMPLING, seed=0, eos_token_id=eos))


def in_rank(rank, port, case, out):
    store = distributed.TCPStore("127.0.0.1", port, 2, rank == 0)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    policy = model()
    try:
        if case == "same":
            found = dealt(PROMPTS, lambda share: sampled(policy, share), cost=len)
        elif case == "uneven":  # one prompt for two processes; and one whose every answer ends at once
            with torch.no_grad():
                policy.lm_head.weight[1] = 0
            found = dealt(PROMPTS[:1], lambda share: sampled(policy, share), cost=len)
            found += dealt([], lambda share: sampled(policy, share), cost=len)
        else:

            def work(share):
                if rank == 1:
                    raise NonFiniteError("a score is nan") if case == "garbage" else ValueError("the disk is full")
                return sampled(policy, share)

            found = dealt(PROMPTS, work, cost=len)
        out.put((rank, [[(c.token_ids, c.finish_reason) for c in group] for group in found]))
    except (RlhfError, ValueError) as error:
        out.put((rank, f"{type(error).__name__}: {error}"))
    distributed.destroy_process_group()


def both(case):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [context.Process(target=in_rank, args=(rank, port, case, out), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    try:
        return dict(out.get(timeout=120) for _ in processes)
    except queue.Empty:
        raise AssertionError("a process hangs") from None
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def shown(groups):
    return [[(c.token_ids, c.finish_reason) for c in group] for group in groups]


@pytest.mark.parametrize("case", ["same", "uneven"])
def test_two_processes_sample_what_one_does(case):
    policy = model()
    if case == "uneven":
        with torch.no_grad():
            policy.lm_head.weight[1] = 0
    wanted = shown(sampled(policy, PROMPTS if case == "same" else PROMPTS[:1]))
    assert both(case) == {0: wanted, 1: wanted}


def test_a_process_that_fails_is_not_waited_for():
    found = both("fails")
    assert found[1] == "ValueError: the disk is full"
    assert found[0] == "RlhfError: process 1 of 2 failed while sampling: the disk is full"


def test_what_one_process_met_is_the_same_error_on_all():
    found = both("garbage")
    assert found[1].startswith("NonFiniteError: a score is nan")
    assert found[0].startswith("NonFiniteError: process 1 of 2 failed while sampling: a score is nan")


def test_one_process_does_everything_itself():
    assert dealt([3, 1, 2], lambda share: [x * 10 for x in share], cost=float) == [30, 10, 20]
