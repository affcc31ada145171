"""A tokenizer trained on the spot: byte-level byte-pair encoding, so that any text can be written and read back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rlhf.data.chat import END_INST, END_SYS, INST, LLAMA2_TEMPLATE, SYS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
# Llama 2 spells its tags with ordinary pieces; a vocabulary of a few hundred spends one token on each instead. The
# blank before [/INST] belongs to the tag, so that what follows it starts like a word in running text.
CONTROL = (BOS, EOS, PAD, UNK, INST, f" {END_INST}", SYS, END_SYS)
BYTES = 256


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, max_length: int = 4096) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ids: 8 control tokens, 256 bytes, then merges found in ``texts``.

    decode(encode(x)) == x for every text x, since any text is bytes; ``<unk>`` is never used. It carries Llama 2's chat
    template, pads on the right, and is the same for the same texts. Fewer merges than asked come out when the texts
    hold no more.

    Raises:
        ValueError: if ``vocab_size`` can't hold the bytes.
    """
    # The import of transformers takes a second; nobody who only wants the names above should wait for it.
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < BYTES + len(CONTROL):
        raise ValueError(f"vocab_size must be at least {BYTES + len(CONTROL)} (got {vocab_size})")
    special = [AddedToken(text, normalized=False, special=True) for text in CONTROL]
    model = Tokenizer(models.BPE(unk_token=None))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        extra_special_tokens=list(CONTROL[4:]),
        padding_side="right",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=LLAMA2_TEMPLATE,
    )
