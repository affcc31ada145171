"""Training some layers only: the others keep every bit, and a name that is no layer's is refused in time."""

import pytest
import torch

from rlhf.errors import ConfigError
from rlhf.models.load import load_policy, save
from rlhf.models.target_modules import require_modules, train_only
from rlhf.schema import ModelConfig

LORA = ModelConfig(lora={"rank": 4, "alpha": 8})
IDS = torch.tensor([[5, 6, 7, 8, 9, 1]])


def learned(model, names):
    """The weights that one step of SGD changes."""
    before = {name: weight.clone() for name, weight in train_only(model, names).named_parameters()}
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    torch.optim.SGD((weight for weight in model.parameters() if weight.grad is not None), lr=1.0).step()
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


def test_the_layers_that_are_named_learn_and_no_other(policy):
    queries_and_keys = {f"model.layers.{i}.self_attn.{kind}_proj.weight" for i in (0, 1) for kind in "qk"}
    assert learned(policy, ("q_proj", "k_proj")) == queries_and_keys


def test_a_name_may_be_that_of_what_holds_the_layers(policy):
    assert len(learned(policy, ("self_attn",))) == 2 * 4


def test_without_names_all_learn(policy):
    assert learned(policy, ()) == {name for name, _ in policy.named_parameters()}


def test_of_adapters_those_beside_the_layers_learn(policy, tokenizer, tmp_path):
    save(policy, tokenizer, tmp_path / "base" / "checkpoint")
    model = load_policy(tmp_path / "base" / "checkpoint", LORA)
    assert {name.split(".")[4] for name in learned(model, ("q_proj",))} == {"q_proj"}
    assert {name.split(".")[5] for name, weight in model.named_parameters() if weight.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def test_a_name_that_is_no_layers_is_refused_with_those_that_are(policy):
    require_modules(policy, ("q_proj", "mlp"), setting="gatt.target_modules")
    with pytest.raises(ConfigError, match="no layer that learns is called c_attn, proj") as caught:
        require_modules(policy, ("q_proj", "c_attn", "proj"), setting="gatt.target_modules")
    assert "gatt.target_modules" in str(caught.value)
    assert "k_proj" in str(caught.value)


def test_a_layer_without_an_adapter_does_not_learn(policy, tokenizer, tmp_path):
    save(policy, tokenizer, tmp_path / "base" / "checkpoint")
    narrow = ModelConfig(lora={"rank": 4, "alpha": 8, "target": "attention"})
    model = load_policy(tmp_path / "base" / "checkpoint", narrow)
    with pytest.raises(ConfigError, match="no layer that learns is called up_proj"):
        require_modules(model, ("up_proj",), setting="gatt.target_modules")
