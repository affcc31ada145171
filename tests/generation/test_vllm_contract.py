"""Both engines on the same weights: vLLM's log-probabilities are those of the transformers engine's model.

Runs where vllm is installed, on a GPU or in its CPU build; skipped elsewhere.
"""

import pytest
import torch

pytest.importorskip("vllm")

from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.vllm import Colocated
from rlhf.schema import ModelConfig

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EOS = 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two checkpoints of one shape, as two rounds leave them, with a tokenizer beside them."""
    from rlhf.data.tokenizer import train_tokenizer

    texts = ["how do i open the door ? take the key and open the door in the house . good luck !"] * 3
    tokenizer = train_tokenizer(texts, vocab_size=300, max_length=128)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=320, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=False,
            bos_token_id=0, eos_token_id=EOS, pad_token_id=2,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp(f"round-{seed}")
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made.append(folder)
    return made


@torch.no_grad()
def test_logprobs_are_the_models_own_and_weights_change_with_the_checkpoint(folders):
    prompts = [[5, 9, 17], [20, 8, 40, 41, 12, 9], [60]]
    sampling = Sampling(4, 1.3, 12, top_p=1.0)
    samples = []
    for folder in folders:
        engine = Colocated.open(folder, ModelConfig(max_length=128), memory_share=0.2)
        groups = engine.generate(Request(prompts, ["a", "b", "c"], sampling, seed=0, eos_token_id=EOS))
        model = LlamaForCausalLM.from_pretrained(folder).eval()
        for prompt, group in zip(prompts, groups, strict=True):
            assert len(group) == 4
            for completion in group:
                ids = torch.tensor([[*prompt, *completion.token_ids]])
                logprobs = (model(ids).logits[0, len(prompt) - 1 : -1] / 1.3).log_softmax(-1)
                wanted = logprobs.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
                assert completion.logprobs == pytest.approx(wanted.tolist(), abs=1e-3)
                assert (completion.token_ids[-1] == EOS) == (completion.finish_reason == "stop")
        samples.append([c.token_ids for group in groups for c in group])
        fewer = Sampling(2, 1.3, 12)
        again = engine.generate(Request(prompts, ["a", "b", "c"], fewer, seed=0, eos_token_id=EOS))
        assert [c.token_ids for group in again for c in group[:1]] == [group[0].token_ids for group in groups]
    assert samples[0] != samples[1]
