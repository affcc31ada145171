"""A tokenizer and models with random weights, made on the spot: small enough for every test, alive enough to differ."""

import copy
import shutil

import lives
import pytest

TEXTS = ["how do i open the door ? take the key and open the door in the house . good luck !"] * 3
# Weights twenty times as large as usual: so that a random model has opinions: some tokens likely, most not.
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def tokenizer():
    from rlhf.data.tokenizer import train_tokenizer

    return train_tokenizer(TEXTS, vocab_size=300, max_length=128)


@pytest.fixture(scope="session")
def llama_config(tokenizer):
    from transformers import LlamaConfig

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaConfig(vocab_size=len(tokenizer), **LLAMA, **ids)


@pytest.fixture
def policy(llama_config):
    """A Llama of two layers, the same in every test; it ends its answers now and then."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(copy.deepcopy(llama_config)).eval()  # a test may give its own another context
    with torch.no_grad():
        model.lm_head.weight[llama_config.eos_token_id] *= 2
    return model


@pytest.fixture
def reward_model(llama_config):
    """The same body under a scalar head."""
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    config = copy.deepcopy(llama_config)
    config.num_labels = 1
    return LlamaForSequenceClassification(config).eval()


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium without a window."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install --group dev")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def saves_of():
    """saves_of(track): saves that are never due."""
    from rlhf.resume.preemption import Stop
    from rlhf.resume.saves import Saves

    return lambda track: Saves(track.folder, key="key", track=track, every=600, stop=Stop(), note=lambda *_, **__: None)


@pytest.fixture(scope="module")
def zygote():
    """What lives are forked from: one for a module, whose tests may leave children behind where they fail."""
    made = lives.Zygote()
    yield made
    made.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The small recipe, made by one process and never saved: its run folder, to link from."""
    maker = lives.Zygote()
    yield lives.reference(maker, tmp_path_factory.mktemp("undisturbed"))
    maker.close()
