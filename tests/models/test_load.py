"""What is saved comes back bit for bit, and what is not there is said to be missing."""

import copy
import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LlamaModel,
    MptConfig,
)

from rlhf.data.chat import LLAMA2_TEMPLATE
from rlhf.errors import ConfigError, DataError, MissingError
from rlhf.models.load import (
    context_of,
    freeze,
    from_scratch,
    load_given_tokenizer,
    load_policy,
    load_reward_model,
    load_tokenizer,
    policy_to_train,
    reward_model_from_policy,
    save,
    save_source,
    without_dropout,
)
from rlhf.models.reward_models import RewardModels
from rlhf.models.score import score
from rlhf.schema import ModelConfig

CONFIG = ModelConfig()
ROWS = [[5, 6, 7, 1], [8, 9, 1]]


def assert_equal(found, wanted):
    """The same weights, bit for bit."""
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(found[name].cpu(), weight), name


@pytest.fixture
def saved(policy, tokenizer, tmp_path):
    """The checkpoint of a policy."""
    save(policy, tokenizer, tmp_path / "policy")
    return tmp_path / "policy"


# ── round trips ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_policy_comes_back_bit_for_bit(policy, saved):
    assert_equal(load_policy(saved, CONFIG).state_dict(), policy.state_dict())
    assert not list(saved.rglob("*.bin"))  # nothing that would have to be unpickled
    assert not list(saved.rglob("*.pt"))


def test_a_reward_model_comes_back_bit_for_bit(reward_model, tokenizer, tmp_path):
    save(reward_model, tokenizer, tmp_path / "reward")
    found = load_reward_model(tmp_path / "reward", CONFIG)
    assert_equal(found.state_dict(), reward_model.state_dict())
    assert torch.equal(score(found, ROWS, pad_token_id=2), score(reward_model, ROWS, pad_token_id=2))


def test_a_tokenizer_comes_back_with_its_template(tokenizer, saved):
    found = load_tokenizer(saved)
    text = "[INST] open the door ! [/INST] é \x00 good luck</s>"
    assert found(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert found.chat_template == LLAMA2_TEMPLATE
    assert (found.pad_token_id, found.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert found.padding_side == "right"


@pytest.mark.parametrize("how", ["weights", "source"])
def test_a_tokenizer_that_writes_dialogues_otherwise_is_refused(how, policy, tokenizer, tmp_path):
    checkpoint = tmp_path / "policy"
    if how == "weights":
        save(policy, tokenizer, checkpoint)
    else:
        save_source(tokenizer, checkpoint, path="somewhere", revision=None)
    learned = json.loads((checkpoint / "template.json").read_text())["sha256"]
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    other.save_pretrained(str(checkpoint))
    with pytest.raises(DataError, match=rf"the chat template has digest \w+, the model was trained with {learned}"):
        load_tokenizer(checkpoint)
    tokenizer.save_pretrained(str(checkpoint))  # put back, it is the right one again
    assert load_tokenizer(checkpoint).chat_template == LLAMA2_TEMPLATE


def test_weights_are_loaded_in_the_dtype_asked_for(policy, saved):
    found = load_policy(saved, ModelConfig(dtype="bfloat16"))
    assert {weight.dtype for weight in found.parameters()} == {torch.bfloat16}
    assert_equal(found.state_dict(), {name: weight.bfloat16() for name, weight in policy.state_dict().items()})


def test_gradient_checkpointing_is_switched_on_where_asked(saved):
    plain = load_policy(saved, CONFIG)
    sparing = load_policy(saved, CONFIG.model_copy(update={"gradient_checkpointing": True}))
    assert not plain.is_activation_checkpointing
    assert sparing.is_activation_checkpointing
    for model in (plain, sparing):
        ids = torch.tensor(ROWS[:1])
        model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for one, other in zip(plain.parameters(), sparing.parameters(), strict=True):  # memory only, not the numbers
        assert torch.equal(one.grad, other.grad)


def test_both_reward_models_of_an_artefact(reward_model, tokenizer, tmp_path):
    other = type(reward_model)(reward_model.config)
    for name, model in (("helpfulness", reward_model), ("safety", other)):
        save(model, tokenizer, tmp_path / "checkpoint" / name)
    found = RewardModels.load(tmp_path, CONFIG, reads=tokenizer)
    assert_equal(found.helpfulness.state_dict(), reward_model.state_dict())
    assert_equal(found.safety.state_dict(), other.state_dict())
    assert (found.pad_token_id, found.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    for model in (found.helpfulness, found.safety):
        assert not model.training
        assert not any(weight.requires_grad for weight in model.parameters())


def test_reward_models_of_another_template_or_vocabulary_are_refused(reward_model, tokenizer, tmp_path):
    for name in ("helpfulness", "safety"):
        save(reward_model, tokenizer, tmp_path / "checkpoint" / name)
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(
        DataError, match=r"template has digest \w{12}, the reward model was trained with \w{12}"
    ) as refused:
        RewardModels.load(tmp_path, CONFIG, reads=other)
    assert refused.value.where.endswith("helpfulness")
    longer = copy.deepcopy(tokenizer)
    longer.add_tokens(["unheard-of"])
    with pytest.raises(DataError, match=f"token 'unheard-of' is {len(tokenizer)} to the policy, and unknown where"):
        RewardModels.load(tmp_path, CONFIG, reads=longer)


def test_a_frozen_model_neither_learns_nor_drops_out(policy):
    frozen = freeze(policy.train())
    assert not frozen.training
    assert not any(weight.requires_grad for weight in frozen.parameters())


def dropping(kind, config, **rates):
    """A model that drops out when it trains, to the certain knowledge of this test."""
    torch.manual_seed(0)
    model = kind(type(config)(**{**config.to_dict(), **rates})).train()
    assert not torch.equal(*twice(model))
    return model


def twice(model):
    """What the model says of the same row, two times."""
    with torch.no_grad():
        return [model(torch.tensor([[5, 6, 7, 9, 8]])).logits for _ in range(2)]


def test_a_model_without_dropout_says_the_same_twice_though_it_trains(llama_config):
    gpt2 = GPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    for model in (
        dropping(LlamaForCausalLM, llama_config, attention_dropout=0.5),
        dropping(GPT2LMHeadModel, gpt2, attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0),
        dropping(GPT2LMHeadModel, gpt2, attn_pdrop=0.0, resid_pdrop=0.5, embd_pdrop=0.5),
    ):
        found = without_dropout(model)
        assert found is model
        assert found.training
        assert torch.equal(*twice(found))


# ── made anew ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_from_scratch_has_the_size_worked_by_hand(tokenizer):
    config = ModelConfig(hidden_size=16, intermediate_size=40, layers=3, heads=4, kv_heads=2, max_length=64)
    model = from_scratch(config, tokenizer)
    # A layer: queries and output 16 x 16 each, keys and values 16 x 8 each, SwiGLU 3 x 16 x 40, two norms of 16.
    layer = 2 * 256 + 2 * 128 + 3 * 640 + 2 * 16
    assert model.num_parameters() == 3 * layer + 2 * 300 * 16 + 16  # embeddings in and out, untied, and the last norm
    assert model.dtype == torch.float32
    assert from_scratch(config.model_copy(update={"dtype": "bfloat16"}), tokenizer).dtype == torch.bfloat16
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_a_new_reward_model_has_no_opinion_and_the_policys_body(policy, saved):
    found = reward_model_from_policy(saved, CONFIG)
    assert score(found, ROWS, pad_token_id=2).tolist() == [0.0, 0.0]
    assert found.score.weight.shape == (1, 32)
    assert found.score.weight.requires_grad
    assert_equal(found.model.state_dict(), policy.model.state_dict())


def test_a_new_reward_model_can_learn_from_its_start_at_zero(saved):
    found = reward_model_from_policy(saved, CONFIG)
    found(input_ids=torch.tensor(ROWS[:1])).logits.sum().backward()
    assert found.score.weight.grad.abs().sum() > 0


# ── what is missing ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_policy_is_no_reward_model(saved):
    with pytest.raises(MissingError, match=r"policy is not a reward model: it has no score\.weight"):
        load_reward_model(saved, CONFIG)


@pytest.mark.parametrize("load", [load_policy, load_reward_model, reward_model_from_policy])
def test_a_checkpoint_that_does_not_exist(load, tmp_path):
    with pytest.raises(MissingError, match=r"nowhere does not exist"):
        load(tmp_path / "nowhere", CONFIG)


def test_a_tokenizer_that_does_not_exist(tmp_path):
    with pytest.raises(MissingError, match=r"nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(MissingError, match=r"cannot be read") as missing:
        load_given_tokenizer(str(tmp_path / "nowhere"), revision=None)
    assert missing.value.where == "model.path"


def test_weights_without_a_tokenizer_beside_them(policy, tmp_path):
    policy.save_pretrained(tmp_path / "bare")
    with pytest.raises(MissingError, match=r"bare holds no tokenizer that can be read") as missing:
        load_given_tokenizer(str(tmp_path / "bare"), revision=None)
    assert missing.value.where == "model.path"


def test_the_context_is_known_before_weights_are_read(saved, tokenizer, tmp_path):
    save_source(tokenizer, tmp_path / "base", path=str(saved), revision=None)
    (saved / "model.safetensors").unlink()
    assert context_of(saved) == context_of(tmp_path / "base") == 128


@pytest.mark.parametrize("kind", [BloomConfig, MptConfig])
def test_a_model_without_positions_is_refused_before_its_weights_are_read(kind, tmp_path):
    """It would not be told where a dialogue ends in a packed row."""
    kind().save_pretrained(tmp_path)
    for refused in (context_of, lambda folder: policy_to_train(folder, CONFIG)):
        with pytest.raises(ConfigError, match=rf"model '{tmp_path}' has no positions") as caught:
            refused(tmp_path)
        assert "max_position_embeddings" in caught.value.hints[0]


def test_the_context_of_a_model_of_texts_and_pictures_is_that_of_its_texts(tmp_path):
    Gemma3Config(text_config={"max_position_embeddings": 77}).save_pretrained(tmp_path)
    assert context_of(tmp_path) == 77


# ── weights that were given ──────────────────────────────────────────────────────────────────────────────────────────


def test_given_weights_are_followed_and_not_copied(policy, tokenizer, saved, tmp_path):
    base = tmp_path / "base"
    save_source(tokenizer, base, path=str(saved), revision=None)
    assert json.loads((base / "source.json").read_text()) == {"path": str(saved), "revision": None}
    assert not list(base.glob("*.safetensors"))
    assert_equal(load_policy(base, CONFIG).state_dict(), policy.state_dict())
    assert_equal(reward_model_from_policy(base, CONFIG).model.state_dict(), policy.model.state_dict())
    text = "open the door"
    assert load_tokenizer(base)(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert load_given_tokenizer(str(saved), revision=None)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_given_weights_that_are_gone_are_missing(tokenizer, tmp_path):
    save_source(tokenizer, tmp_path / "base", path=str(tmp_path / "gone"), revision=None)
    with pytest.raises(MissingError, match=r"gone' cannot be read") as missing:
        load_policy(tmp_path / "base", CONFIG)
    assert missing.value.where == "model.path"


def test_what_we_save_is_what_others_load(policy, saved):
    assert_equal(AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).state_dict(), policy.state_dict())
    assert_equal(LlamaModel.from_pretrained(saved, dtype=torch.float32).state_dict(), policy.model.state_dict())
