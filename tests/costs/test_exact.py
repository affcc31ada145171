"""What is called exact is what torch counts on the meta device, for the paper's three sizes."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf.config import load
from rlhf.costs.memory import trained
from rlhf.costs.shapes import shape_of
from rlhf.models import adapters
from rlhf.schema.model import LoraConfig

# Typed from the config.json of the released models, not from rlhf.costs.
SIZES = {
    "llama2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama2-13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "llama2-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
PUBLISHED = {"llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-70b": 68_976_648_192}


def on_meta(name, kind, **more):
    """A model of the published shape that holds no numbers."""
    with torch.device("meta"):
        return kind(LlamaConfig(vocab_size=32000, tie_word_embeddings=False, pad_token_id=0, **SIZES[name], **more))


def moments(parameters):
    """Bytes of AdamW's two moments, from a step that computes nothing."""
    optimizer = torch.optim.AdamW(parameters, foreach=False)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    kept = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    return sum(x.numel() * x.element_size() for x in kept)


def weigh(tensors):
    return sum(x.numel() * x.element_size() for x in tensors)


@pytest.mark.parametrize("name", SIZES)
def test_parameters_of_policy_and_reward_model(name):
    shape = shape_of(load(name).recipe.model)
    assert shape.policy == PUBLISHED[name]
    assert shape.policy == on_meta(name, LlamaForCausalLM).num_parameters()
    assert shape.scored == on_meta(name, LlamaForSequenceClassification, num_labels=1).num_parameters()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SIZES)
def test_weights_gradients_and_moments_of_full_training(name, dtype):
    model = load(name).recipe.model.model_copy(update={"dtype": dtype})
    found = trained(shape_of(model), model, scored=False)
    parameters = list(on_meta(name, LlamaForCausalLM).to(getattr(torch, dtype)).parameters())
    assert (found.weights, found.optimizer) == (weigh(parameters), moments(parameters))
    assert found.gradients == weigh(p.grad for p in parameters)


@pytest.mark.parametrize("target", ["all-linear", "attention"])
@pytest.mark.parametrize("name", SIZES)
def test_weights_gradients_and_moments_of_a_reward_model_under_lora(name, target):
    lora = LoraConfig(rank=16, target=target)
    config = load(name).recipe.model.model_copy(update={"dtype": "bfloat16", "lora": lora})
    model = on_meta(name, LlamaForSequenceClassification, num_labels=1).to(torch.bfloat16)
    adapters.add(model, lora, head="score")
    learns = adapters.trained(model)
    # PEFT keeps the head it replaced beside the trained one: two bytes a weight of a single row.
    spare = weigh(p for n, p in model.named_parameters() if "score.original_module" in n)
    found = trained(shape_of(config), config, scored=True)
    assert found.weights == weigh(model.parameters())
    assert spare == 2 * config_width(name)
    assert (found.gradients, found.optimizer) == (weigh(learns), moments(learns))


def config_width(name):
    return SIZES[name]["hidden_size"]


@pytest.mark.parametrize("name", SIZES)
def test_bytes_of_the_cache(name):
    model, cache = on_meta(name, LlamaForCausalLM).to(torch.bfloat16), DynamicCache()
    tokens = torch.zeros((3, 7), dtype=torch.long, device="meta")
    positions = torch.arange(7, device="meta")[None]
    model(input_ids=tokens, position_ids=positions, past_key_values=cache, logits_to_keep=1)
    held = weigh(x for layer in cache.layers for x in (layer.keys, layer.values))
    assert shape_of(load(name).recipe.model).cache(3, 7, bytes_each=2) == held


def test_a_small_model_from_settings_and_one_from_a_folder(tmp_path, policy):
    model = load("tiny").recipe.model
    policy.save_pretrained(tmp_path)
    found = shape_of(model.model_copy(update={"path": str(tmp_path)}))
    assert found.policy == policy.num_parameters()
    assert shape_of(model).kv_heads == model.kv_heads
