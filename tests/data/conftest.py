"""Tokenizers made on the spot beside ours: one that works like Llama 2's own, and one with a template of its own."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["how do i open the door ? take the key and open the door in the house . good luck !"] * 3

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def sentencepiece_like():
    """Like Llama 2's: a blank is put before every text and opens every word; tags are ordinary text; no template."""
    model = Tokenizer(models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    model.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"]
    alphabet = [chr(code) for code in range(33, 127)] + ["\n", "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=220, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([f"[INST] {text} [/INST] {text} " for text in TEXTS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def chatml():
    """A tokenizer that brings its own template, whose turns end with <|im_end|> and a line break."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>", "<|pad|>")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>", chat_template=CHATML)
