"""Adapters: what PEFT itself reads back is what was trained, and the reference is the policy as it started."""

import copy
import json
import shutil

import peft
import pytest
import torch
from transformers import LlamaForCausalLM

from rlhf.errors import ConfigError, MissingError
from rlhf.models import adapters
from rlhf.models.load import freeze, load_policy, load_reward_model, reward_model_from_policy, save
from rlhf.models.score import score, token_values
from rlhf.models.shared import Learnt
from rlhf.schema import ModelConfig

FULL = ModelConfig()
LORA = ModelConfig(lora={"rank": 4, "alpha": 8})
IDS = torch.tensor([[5, 6, 7, 8, 9, 1]])
# A layer of the tests' Llama, by hand: attention 32x32 q and o, 16x32 k and v; MLP 48x32 gate and up, 32x48 down.
# Rank 4 adds 4 * (rows + columns): 256 + 192 + 192 + 256 + 3 * 320 = 1,856; twice, for two layers.
ADAPTER_SIZE = 2 * 1856


@pytest.fixture
def base(policy, tokenizer, tmp_path):
    """The checkpoint of a base model."""
    save(policy, tokenizer, tmp_path / "base" / "checkpoint")
    return tmp_path / "base" / "checkpoint"


def stir(model):
    """A training run that nobody waits for."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.trained(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def sft(base, tokenizer, tmp_path):
    """The checkpoint of a policy trained with LoRA, and that policy."""
    trained = stir(load_policy(base, LORA))
    save(trained, tokenizer, tmp_path / "sft" / "checkpoint")
    return tmp_path / "sft" / "checkpoint", trained


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_new_adapter_changes_nothing_and_alone_is_trained(base, policy):
    model = load_policy(base, LORA).eval()
    assert torch.equal(logits(model), logits(policy))
    assert sum(p.numel() for p in adapters.trained(model)) == ADAPTER_SIZE
    adapter = [p for name, p in model.named_parameters() if "lora" in name]
    assert all(map(torch.equal, Learnt(model).state_dict().values(), adapter))


def test_attention_alone_can_be_adapted(base):
    model = load_policy(base, ModelConfig(lora={"rank": 4, "target": "attention"}))
    assert sum(p.numel() for p in adapters.trained(model)) == 2 * (256 + 192 + 192 + 256)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own
def test_only_the_adapter_is_saved_and_peft_reads_it(sft, policy):
    checkpoint, trained = sft
    assert not (checkpoint / "model.safetensors").exists()
    plain = LlamaForCausalLM(policy.config)
    plain.load_state_dict(policy.state_dict())
    read = peft.PeftModel.from_pretrained(plain, str(checkpoint))
    assert torch.allclose(logits(read.eval()), logits(trained), atol=1e-6)
    assert not torch.allclose(logits(trained), logits(policy), atol=1e-3)


def test_it_comes_back_bit_for_bit_and_goes_on_learning(sft):
    checkpoint, trained = sft
    found = load_policy(checkpoint, LORA).eval()
    assert torch.equal(logits(found), logits(trained))
    assert sum(p.numel() for p in adapters.trained(found)) == ADAPTER_SIZE


def test_without_lora_it_is_merged_into_the_weights(sft):
    checkpoint, trained = sft
    merged = load_policy(checkpoint, FULL).eval()
    assert type(merged) is LlamaForCausalLM
    assert all(p.requires_grad for p in merged.parameters())
    assert torch.allclose(logits(merged), logits(trained), atol=1e-4)  # of logits around 5


def test_the_run_can_be_moved(sft, tmp_path):
    checkpoint, trained = sft
    assert json.loads((checkpoint / "source.json").read_text())["path"] == "../../base/checkpoint"
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "sft"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    found = load_policy(tmp_path / "elsewhere" / "sft" / "checkpoint", LORA).eval()
    assert torch.equal(logits(found), logits(trained))


def test_weights_that_were_made_again_are_refused(policy, tokenizer, tmp_path):
    from rlhf.checkpoint import open_artefact

    def base_with(model):
        with open_artefact(tmp_path / "base", {}) as out:
            save(model, tokenizer, out / "checkpoint")

    base_with(policy)
    save(load_policy(tmp_path / "base" / "checkpoint", LORA), tokenizer, tmp_path / "sft" / "checkpoint")
    load_policy(tmp_path / "sft" / "checkpoint", LORA)
    base_with(stir(policy))
    with pytest.raises(MissingError, match="made again since"):
        load_policy(tmp_path / "sft" / "checkpoint", LORA)


def test_a_reward_model_starts_from_the_policys_adapter_with_a_head_at_zero(sft):
    checkpoint, trained = sft
    reward = reward_model_from_policy(checkpoint, LORA).eval()
    ours, theirs = dict(reward.named_parameters()), dict(trained.named_parameters())
    shared = [name for name in ours if "lora" in name]
    assert len(shared) == 2 * 7 * 2
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
    mask = torch.ones_like(IDS)
    assert not token_values(reward, IDS, mask).any()
    assert sum(p.numel() for p in adapters.trained(reward)) == ADAPTER_SIZE + 32


def test_a_reward_model_comes_back_with_its_head(sft, tokenizer, tmp_path, policy):
    reward = stir(reward_model_from_policy(sft[0], LORA))
    save(reward, tokenizer, tmp_path / "reward" / "checkpoint" / "safety")
    found = freeze(load_reward_model(tmp_path / "reward" / "checkpoint" / "safety", LORA))
    rows = [[5, 6, 7, 1], [8, 9, 1]]
    before = score(reward, rows, pad_token_id=2)
    assert before.abs().min() > 1e-4
    assert torch.equal(score(found, rows, pad_token_id=2), before)


def test_a_policys_adapter_is_no_reward_model(sft):
    with pytest.raises(MissingError, match="not a reward model"):
        load_reward_model(sft[0], LORA)


def test_the_reference_is_the_policy_as_it_started(sft, base, policy):
    for checkpoint, start in ((sft[0], logits(sft[1])), (base, logits(policy))):
        learning = load_policy(checkpoint, LORA).eval()
        reference = adapters.StartOf(learning)
        stir(learning)
        moved = logits(learning)
        with torch.no_grad():
            hidden = reference.base_model(input_ids=IDS).last_hidden_state
            found = reference.get_output_embeddings()(hidden)
        assert torch.equal(found, start)
        assert torch.equal(logits(learning), moved)
        assert not torch.allclose(moved, start, atol=1e-3)
        # Asking the reference leaves the policy as trainable as it was, and nothing else.
        assert sum(p.numel() for p in adapters.trained(learning)) == ADAPTER_SIZE


def test_adapters_stay_float32_over_rounded_weights(base, tokenizer, tmp_path):
    config = ModelConfig(dtype="bfloat16", lora={"rank": 4})
    reward = reward_model_from_policy(base, config)
    assert {p.dtype for p in adapters.trained(reward)} == {torch.float32}
    assert reward.model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.isfinite(score(stir(reward), [[5, 6, 1]], pad_token_id=2)).all()


def test_an_adapter_of_another_rank_is_refused(sft):
    with pytest.raises(ConfigError, match=r"model\.lora\.rank is 8, but the adapter to start from has 4"):
        load_policy(sft[0], ModelConfig(lora={"rank": 8, "alpha": 8}))


def test_quantised_weights_need_adapters():
    with pytest.raises(ValueError, match=r"set model\.lora\.rank"):
        ModelConfig(quantisation="nf4")


def test_four_bits_train_and_come_back(llama_config, tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra `quantisation` is not installed")
    config = ModelConfig(quantisation="nf4", lora={"rank": 4})
    wide = copy.deepcopy(llama_config)
    wide.hidden_size, wide.head_dim = 64, 16  # a block of bitsandbytes has 64 weights of one row
    wide.intermediate_size = 128
    torch.manual_seed(0)
    base = tmp_path / "base" / "checkpoint"
    save(LlamaForCausalLM(wide), tokenizer, base)
    model = load_policy(base, config).train()
    weight = model.model.layers[0].self_attn.q_proj.base_layer.weight
    assert weight.dtype == torch.uint8
    assert weight.numel() == 64 * 64 // 2  # two weights a byte
    model(input_ids=IDS, labels=IDS).loss.backward()
    gradients = [p.grad for p in adapters.trained(model)]
    assert any(g is not None and bool(g.any()) for g in gradients)
    stir(model)
    save(model, tokenizer, tmp_path / "sft" / "checkpoint")
    # In training mode, since on some CPUs bitsandbytes answers in bfloat16 otherwise.
    found = load_policy(tmp_path / "sft" / "checkpoint", config)
    assert torch.equal(logits(found.train()), logits(model.train()))
    reward = stir(reward_model_from_policy(base, config))
    assert torch.isfinite(score(reward, [[5, 6, 1]], pad_token_id=2)).all()
