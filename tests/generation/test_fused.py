"""A step of decoding with joined weights against the model's own forward, and where it is not used."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from rlhf.generation.caches import RowCache
from rlhf.generation.fused import Fused
from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.transformers import InProcess, generate
from rlhf.models import adapters
from rlhf.schema.model import LoraConfig

SHAPE = {"vocab_size": 300, "max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "intermediate_size": 48, "initializer_range": 0.4, "tie_word_embeddings": False}
SHAPE |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
MODELS = {
    "llama": {},
    "llama, grouped queries, biases, wide heads": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama, tied, stretched positions": {"tie_word_embeddings": True, "rope_parameters": LLAMA3},
    "qwen2": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
}


def model_of(name, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split(",")[0], **(SHAPE | MODELS.get(name, {}) | more))
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # biases and norms, too, are no longer zero and one
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_the_models_forward(name, masked):
    model = model_of(name)
    assert InProcess(model).decoder == "fused"
    step, own, theirs = Fused(model), DynamicCache(), DynamicCache()
    ids = torch.randint(3, 300, (5, 9), generator=torch.Generator().manual_seed(1))
    hidden = torch.tensor([0, 3, 1, 0, 2]) if masked else torch.zeros(5, dtype=torch.long)
    mask = (torch.arange(9) >= hidden[:, None]).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for cache in (own, theirs):
        model(input_ids=ids[:, :5], attention_mask=mask[:, :5], position_ids=positions[:, :5], past_key_values=cache)
    own.layers = [RowCache(x.keys, x.values, seen=mask, copies=1, room=4) for x in own.layers]
    for t in range(5, 9):
        at, seen = positions[:, t], mask[:, : t + 1] if masked else None
        wanted = model(
            input_ids=ids[:, t : t + 1], attention_mask=seen, position_ids=at[:, None], past_key_values=theirs
        ).logits[:, -1]
        assert wanted.std() > 0.1
        torch.testing.assert_close(step(ids[:, t], at, seen, own), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_k_rows_that_share_a_prompt_are_k_rows(name):
    """Rows leave at many steps, and prompts with their last row."""
    model = model_of(name)
    prompts = [torch.arange(3 + i, 3 + i + n).tolist() for i, n in enumerate((3, 11, 1, 6, 6))]
    request = Request(prompts, list("abcde"), Sampling(4, 4.0, 24), 0, -1)
    said = Counter(
        token for group in generate(model, request) for completion in group for token in completion.token_ids
    )
    request = replace(request, eos_token_id=said.most_common(1)[0][0])
    shared = generate(model, request)
    model.lm_head.register_forward_hook(lambda *_: None)
    whole = generate(model, request)
    ends = {len(completion.token_ids) for group in whole for completion in group}
    assert len(ends) > 2
    for group, other in zip(shared, whole, strict=True):
        assert [c.token_ids for c in group] == [c.token_ids for c in other]
        for a, b in zip(group, other, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_it_reads_the_weights_as_they_are():
    """A policy learns between two requests."""
    model = model_of("llama")
    request = Request([[5, 6, 7]], ["a"], Sampling(1, 0.0, 8), 0, -1)
    before = generate(model, request)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    after = generate(model, request)
    model.lm_head.register_forward_hook(lambda *_: None)  # now by the model's own forward
    assert before[0][0].token_ids != after[0][0].token_ids == generate(model, request)[0][0].token_ids


def test_what_it_does_not_know_is_left_to_the_model():
    adapted = model_of("llama")
    adapters.add(adapted, LoraConfig(rank=2))
    hooked = model_of("llama")
    hooked.lm_head.register_forward_hook(lambda *_: None)
    others = {
        "an adapter": adapted,
        "a hook": hooked,
        "sliding attention": model_of("mistral", sliding_window=4),
        "half precision": model_of("llama").bfloat16(),
        "another activation": model_of("llama", hidden_act="gelu"),
        "another architecture": model_of("gpt_neox"),
        "norms of queries": model_of("qwen3", head_dim=8),
    }
    assert [name for name, model in others.items() if InProcess(model).decoder != "forward"] == []
