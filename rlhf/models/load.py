"""Tokenizers, policies, reward models and critics: made, loaded and saved here.

An artefact keeps its model in `checkpoint/`. A base that was given (a hub id or a folder) is not copied: its
checkpoint holds the tokenizer and `source.json`, which names the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from rlhf.data.chat import check_template, template_digest
from rlhf.errors import MissingError
from rlhf.schema import ModelConfig

SOURCE = "source.json"
TEMPLATE = "template.json"  # the digest of the chat template the weights belong to
hf_logging.disable_progress_bar()  # of loading weights, which the stage's own bars would be torn by


def from_scratch(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama with random weights: RoPE, RMSNorm, SwiGLU, grouped-query attention (2.2).

    Weights start at a variance of 1/width and embeddings at 1 (ours). The library's 0.02 is meant for widths of
    thousands: at 128 nothing but the frequency of words is learned in the first 500 steps.
    """
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.max_length,
            tie_word_embeddings=False,
            initializer_range=config.hidden_size**-0.5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.get_input_embeddings().reset_parameters()
    return model.to(getattr(torch, config.dtype))


def load_tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that travels with a checkpoint; its chat template must be the one the model was trained with."""
    tokenizer = AutoTokenizer.from_pretrained(str(_existing(checkpoint)), local_files_only=True)
    check_template(tokenizer, json.loads((checkpoint / TEMPLATE).read_text())["sha256"])
    return tokenizer


def load_given_tokenizer(path: str, *, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder that a recipe names."""
    with _given(path):
        return AutoTokenizer.from_pretrained(path, revision=revision or "main")


def load_policy(checkpoint: Path, config: ModelConfig) -> PreTrainedModel:
    """A causal language model, ready to train or to generate."""
    return _prepared(_read(AutoModelForCausalLM, checkpoint, config), config)


def reward_model_from_policy(checkpoint: Path, config: ModelConfig) -> PreTrainedModel:
    """The chat model with its next-token head replaced by a scalar head (3.2.2).

    The head starts at zero (ours: the paper is silent), so that training starts from "no opinion" and no random
    direction has to be unlearned.
    """
    with _quiet():  # it would warn that the head is new, which is the point
        model = _read(AutoModelForSequenceClassification, checkpoint, config, num_labels=1)
    torch.nn.init.zeros_(model.score.weight)
    return _prepared(model, config)


def load_reward_model(checkpoint: Path, config: ModelConfig) -> PreTrainedModel:
    """A trained reward model; refuses a checkpoint whose score head would be made up."""
    model, info = _read(AutoModelForSequenceClassification, checkpoint, config, num_labels=1, output_loading_info=True)
    if info["missing_keys"]:
        raise MissingError(
            f"{checkpoint} is not a reward model: it has no {sorted(info['missing_keys'])[0]}",
            hints=["make it again: rlhf run stage=reward --rerun"],
        )
    return _prepared(model, config)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, checkpoint: Path) -> None:
    """Weights as safetensors, with the tokenizer and its chat template beside them."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(checkpoint))
    _save_tokenizer(tokenizer, checkpoint)


def save_source(tokenizer: PreTrainedTokenizerBase, checkpoint: Path, *, path: str, revision: str | None) -> None:
    """Name given weights instead of copying them."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(tokenizer, checkpoint)
    (checkpoint / SOURCE).write_text(json.dumps({"path": path, "revision": revision}))


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Sampling and training must see one distribution, or PPO's ratio is not 1 before the first step."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, checkpoint: Path) -> None:
    tokenizer.save_pretrained(str(checkpoint))
    (checkpoint / TEMPLATE).write_text(json.dumps({"sha256": template_digest(tokenizer)}))


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Reference and reward models never learn, and never drop out."""
    return model.eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of transformers."""
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def _read(kind: Any, checkpoint: Path, config: ModelConfig, **options: Any) -> Any:
    """The model a checkpoint holds, or the given one that it names."""
    source = _existing(checkpoint) / SOURCE
    dtype = getattr(torch, config.dtype)
    if not source.exists():
        return kind.from_pretrained(str(checkpoint), dtype=dtype, local_files_only=True, **options)
    given = json.loads(source.read_text())
    with _given(given["path"]):
        return kind.from_pretrained(given["path"], dtype=dtype, revision=given["revision"] or "main", **options)


@contextmanager
def _given(path: str) -> Iterator[None]:
    """Whatever the hub or the disk says of a given model that cannot be read: it is missing."""
    try:
        yield
    except OSError as error:
        raise MissingError(
            f"model {path!r} cannot be read: {str(error).splitlines()[0]}",
            where="model.path",
            hints=["log in to the hub if the model is gated: hf auth login", "or point model.path at a local folder"],
        ) from None


def _existing(checkpoint: Path) -> Path:
    if not checkpoint.is_dir():
        raise MissingError(f"{checkpoint} does not exist", hints=["see what is there: rlhf status"])
    return checkpoint


def _prepared(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device)
