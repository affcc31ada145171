"""A base model to start from: a given checkpoint, or a small Llama trained from scratch (2.2)."""

import random

import torch

from rlhf.data import feed
from rlhf.data.chat import LLAMA2_TEMPLATE, ensure_pad
from rlhf.data.collate import PackedRow
from rlhf.data.tokenizer import train_tokenizer
from rlhf.errors import ConfigError, DataError
from rlhf.models.load import from_scratch, load_given_tokenizer, save, save_source
from rlhf.pipeline import Job
from rlhf.training.trainers import Schedule, fit_lm

TOKENIZER_TEXTS = 1500  # the merges of the micro-world are found in these; ten times more finds the same


def run(job: Job) -> None:
    """Leave `checkpoint/`: weights and tokenizer, or the tokenizer and the name of given weights."""
    model = job.recipe.model
    if model.path is None:
        pretrain(job)
        return
    tokenizer = load_given_tokenizer(model.path, revision=model.revision)
    if ensure_pad(tokenizer):
        raise ConfigError(
            f"the tokenizer of {model.path} has no token to pad with, and its model no row for a new one",
            where="model.path",
            hints=["add a pad token and resize the embeddings, save both, and point model.path there"],
        )
    if not tokenizer.chat_template:  # it is trained in Llama 2's format, and others should find that beside it
        tokenizer.chat_template = LLAMA2_TEMPLATE
    save_source(tokenizer, job.out / "checkpoint", path=model.path, revision=model.revision)


def pretrain(job: Job) -> None:
    """Train tokenizer and model on running text; short rows first, then some long ones for long dialogues."""
    config, model_config = job.config, job.recipe.model
    texts = feed.texts(config.data, words=config.words, seed=job.seed, stage="base", say=job.track.say)
    tokenizer = train_tokenizer(texts[:TOKENIZER_TEXTS], vocab_size=model_config.vocab_size)
    tokenizer.model_max_length = model_config.max_length
    torch.manual_seed(job.seed)
    model = from_scratch(model_config, tokenizer)
    stream = token_stream(tokenizer, texts, seed=job.seed)
    job.track.say(f"{model.num_parameters():,} parameters, {len(stream):,} tokens of text")

    parts = [("pretrain", config.row_length, config.batch_size, config.steps, config.warmup_steps, 1.0)]
    if config.extension_steps:
        extension = ("extend", config.extension_length, config.extension_batch_size, config.extension_steps)
        parts.append((*extension, 0, config.final_lr_ratio * 2))
    done = 0
    for what, length, batch_size, steps, warmup, peak in parts:
        rows = rows_of(stream, length=length, count=batch_size * steps, seed=job.seed)
        schedule = Schedule(
            learning_rate=config.learning_rate * peak,
            final_lr_ratio=config.final_lr_ratio / peak,
            batch_size=batch_size,
            warmup_steps=warmup,
            steps=steps,
        )
        fit_lm(
            *(model, tokenizer, rows, schedule, config),
            seed=job.seed, track=job.track, saves=job.saves, what=what, first_step=done,
        )  # fmt: skip
        done += steps
    save(model, tokenizer, job.out / "checkpoint")


def token_stream(tokenizer, texts: list[str], *, seed: int) -> list[int]:
    """All texts, shuffled, one after the other, each begun by BOS and ended by EOS."""
    order = list(texts)
    random.Random(seed).shuffle(order)
    # verbose=False: it would warn that a book is longer than the context, which rows_of cuts it to.
    encoded = tokenizer(order, add_special_tokens=False, verbose=False)["input_ids"]
    return [token for ids in encoded for token in (tokenizer.bos_token_id, *ids, tokenizer.eos_token_id)]


def rows_of(stream: list[int], *, length: int, count: int, seed: int) -> list[PackedRow]:
    """`count` windows of the stream at random places, every token bearing loss, as pretraining does."""
    if len(stream) <= length:
        raise DataError(
            f"the text has {len(stream)} tokens, fewer than a row of {length} and the one after it",
            where="base.data",
            hints=["give more text", "or shorter rows: base.row_length, base.extension_length"],
        )
    rng = random.Random(seed)
    starts = [rng.randrange(len(stream) - length) for _ in range(count)]
    return [
        PackedRow(stream[i : i + length], stream[i : i + length], list(range(length)), (f"token {i} on",))
        for i in starts
    ]
