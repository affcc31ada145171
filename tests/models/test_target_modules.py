"""Training some layers only: the others keep every bit, and a name that is no layer's is refused in time."""

import pytest
import torch

from rlhf.errors import ConfigError
from rlhf.models.load import load_policy, save
from rlhf.models.target_modules import require_modules, train_only
from rlhf.schema import ModelConfig

FULL, LORA = ModelConfig(), ModelConfig(lora={"rank": 4, "alpha": 8})
NARROW = ModelConfig(lora={"rank": 4, "alpha": 8, "target": "attention"})
IDS = torch.tensor([[5, 6, 7, 8, 9, 1]])


@pytest.fixture
def base(policy, tokenizer, tmp_path):
    """The checkpoint of a model of two layers."""
    save(policy, tokenizer, tmp_path / "base" / "checkpoint")
    return tmp_path / "base" / "checkpoint"


def learned(model, names):
    """The weights that one step of SGD changes."""
    before = {name: weight.clone() for name, weight in train_only(model, names).named_parameters()}
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    torch.optim.SGD((weight for weight in model.parameters() if weight.grad is not None), lr=1.0).step()
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize("names", [("q_proj", "k_proj"), ("self_attn.q_proj", "self_attn.k_proj")])
def test_the_layers_that_are_named_learn_and_no_other(policy, names):
    queries_and_keys = {f"model.layers.{i}.self_attn.{kind}_proj.weight" for i in (0, 1) for kind in "qk"}
    assert learned(policy, names) == queries_and_keys


def test_a_name_may_be_that_of_what_holds_the_layers(policy):
    assert len(learned(policy, ("self_attn",))) == 2 * 4


def test_without_names_all_learn(policy):
    assert learned(policy, ()) == {name for name, _ in policy.named_parameters()}


def test_of_adapters_those_beside_the_layers_learn_and_no_weight(base):
    model = load_policy(base, LORA)
    assert {name.split(".")[4] for name in learned(model, ("q_proj",))} == {"q_proj"}
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning == {
        f"model.layers.{i}.self_attn.q_proj.lora_{side}.default.weight" for i in (0, 1) for side in "AB"
    }


@pytest.mark.parametrize("name", ["c_attn", "weight", "proj", "attn"])
def test_a_name_that_is_no_layers_is_refused_with_those_that_are(base, name):
    require_modules(base, FULL, ("q_proj", "mlp", "lm_head"), setting="gatt.target_modules")
    with pytest.raises(ConfigError, match=f"no layer that learns is called {name}\n") as caught:
        require_modules(base, FULL, ("q_proj", name), setting="gatt.target_modules")
    assert caught.value.where == "gatt.target_modules"
    assert "k_proj, lm_head, norm, o_proj" in str(caught.value)


def test_a_layer_without_an_adapter_does_not_learn(base):
    require_modules(base, LORA, ("up_proj",), setting="gatt.target_modules")
    for config, name in ((NARROW, "up_proj"), (LORA, "lm_head"), (LORA, "norm")):
        with pytest.raises(ConfigError, match=f"no layer that learns is called {name}"):
            require_modules(base, config, (name,), setting="gatt.target_modules")


def test_no_weights_are_read_to_know_the_layers(base):
    (base / "model.safetensors").unlink()
    require_modules(base, FULL, ("q_proj",), setting="gatt.target_modules")
