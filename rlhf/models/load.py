"""Tokenizers, policies, reward models and critics: made, loaded and saved here.

An artefact keeps its model in `checkpoint/`. A base that was given (a hub id or a folder) is not copied: its
checkpoint holds the tokenizer and `source.json`, which names the weights. So does the checkpoint of an adapter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from rlhf.checkpoint import MANIFEST, read_manifest
from rlhf.data.chat import check_template, template_digest
from rlhf.disk import written
from rlhf.errors import ConfigError, MissingError, UnsafeError
from rlhf.models import adapters
from rlhf.processes import engine, team, zero
from rlhf.schema import ModelConfig
from rlhf.security.vetting import vet_model, vet_template

SOURCE = "source.json"
TEMPLATE = "template.json"  # the digest of the chat template the weights belong to
NO_CODE = {"trust_remote_code": False}  # said aloud: unsaid, transformers asks at the terminal
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
    tokenizer = AutoTokenizer.from_pretrained(str(_existing(checkpoint)), local_files_only=True, **NO_CODE)
    check_template(tokenizer, json.loads((checkpoint / TEMPLATE).read_text())["sha256"])
    return tokenizer


def load_given_tokenizer(path: str, *, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder that a recipe names."""
    with _given(path):
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision or "main", **NO_CODE)
    if isinstance(tokenizer.chat_template, str):
        vet_template(tokenizer.chat_template, f"the tokenizer of {path}")
    return tokenizer


def load_policy(checkpoint: Path, config: ModelConfig) -> PreTrainedModel:
    """A causal language model, whole on every process: ready to generate."""
    model = _read(AutoModelForCausalLM, checkpoint, config)
    return _prepared(_adapted(model, checkpoint, config), config)


def policy_to_train(checkpoint: Path, config: ModelConfig) -> PreTrainedModel:
    """A causal language model for the Trainer's hands: under fsdp and zero3 a part of it on every process."""
    context_of(checkpoint)  # refuses what would read the documents of a packed row as one
    with zero.reading():
        model = _read(AutoModelForCausalLM, checkpoint, config, **engine.cut())
    return _prepared(_adapted(model, checkpoint, config), config)


def reward_model_from_policy(checkpoint: Path, config: ModelConfig) -> PreTrainedModel:
    """The chat model with its next-token head replaced by a scalar head (3.2.2).

    The head starts at zero (ours: the paper is silent), so that training starts from "no opinion" and no random
    direction has to be unlearned.
    """
    with _quiet(), zero.reading():  # it would warn that the head is new, which is the point
        model = _read(AutoModelForSequenceClassification, checkpoint, config, num_labels=1, **engine.cut())
    with zero.whole(model.score.weight):
        torch.nn.init.zeros_(model.score.weight)
    return _prepared(_adapted(model, checkpoint, config, head="score"), config)


def load_reward_model(checkpoint: Path, config: ModelConfig) -> PreTrainedModel:
    """A trained reward model; refuses a checkpoint whose score head would be made up."""
    with _quiet():  # what is missing is said below, or comes with the adapter
        model, info = _read(
            AutoModelForSequenceClassification, checkpoint, config, num_labels=1, output_loading_info=True
        )
    missing = set(info["missing_keys"])
    if adapters.is_adapter(checkpoint):
        missing -= {f"{name}.weight" for name in adapters.heads_of(checkpoint)}
    if missing:
        raise MissingError(
            f"{checkpoint} is not a reward model: it has no {sorted(missing)[0]}",
            hints=["make it again: rlhf run stage=reward --rerun"],
        )
    return _prepared(_adapted(model, checkpoint, config, head="score"), config)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, checkpoint: Path) -> None:
    """Weights, or the adapter alone, as safetensors, with the tokenizer and its chat template beside them.

    Of several processes the first writes; the others, whose folders nobody keeps, link to what it wrote.
    """
    state = _gathered(model)

    def write() -> None:
        model.save_pretrained(str(checkpoint), state_dict=state)
        _save_tokenizer(tokenizer, checkpoint)
        if adapters.is_adapter(checkpoint):
            _name_weights(model.source, checkpoint)

    if team.rank() == 0:
        checkpoint.mkdir(parents=True, exist_ok=True)
        weights = dict(model.named_parameters())
        adapter = [weight for name, weight in weights.items() if f".{adapters.LEARNT}." in name]  # goes alone
        kept = adapter or weights.values()
        written(write, checkpoint, needs=sum(parameter.numel() * parameter.element_size() for parameter in kept))
    first = team.call(str(checkpoint.absolute()))
    if team.rank():
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.symlink_to(str(first))


def _gathered(model: PreTrainedModel) -> dict[str, Any] | None:
    """All weights of a model that is cut in parts, on the first process; None: the model has them itself."""
    if not model.is_distributed_loading_by_transformers:
        return zero.gathered(model)
    model.config.distributed_config = None  # else every save would gather by itself, also one that is tried again
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _name_weights(source: dict[str, str | None], checkpoint: Path) -> None:
    """Say which weights the adapter stands on: a folder relative to the checkpoint, so that a run can be moved."""
    folder = Path(str(source["path"]))
    named = dict(source)
    if folder.is_dir():
        named["path"] = os.path.relpath(folder, checkpoint)
        if (folder.parent / MANIFEST).exists():
            named["digest"] = str(read_manifest(folder.parent)["digest"])
    (checkpoint / SOURCE).write_text(json.dumps(named))


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
    """The model of a checkpoint's weights: its own, or those it names. `model.source` says which they are."""
    path, revision = weights_of(checkpoint)
    if config.quantisation == "nf4":
        four_bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=getattr(torch, config.dtype),
            llm_int8_skip_modules=["lm_head", "score"],
            **four_bits,
        )
    options |= {"dtype": getattr(torch, config.dtype), "use_safetensors": True, **NO_CODE}
    with _given(path):
        read = kind.from_pretrained(path, revision=revision or "main", **options)
    model = read[0] if isinstance(read, tuple) else read
    model.source = {"path": path, "revision": revision}
    return read


def weights_of(checkpoint: Path) -> tuple[str, str | None]:
    """Folder or hub id of a checkpoint's weights, and their revision; refuses an adapter whose weights have changed."""
    named = _existing(checkpoint) / SOURCE
    if not named.exists():
        return str(checkpoint.absolute()), None
    source = json.loads(named.read_text())
    if adapters.is_adapter(checkpoint) and "digest" in source:
        folder = (checkpoint / source["path"]).resolve()
        if str(read_manifest(folder.parent)["digest"]) != source["digest"]:
            raise MissingError(
                f"{checkpoint} is an adapter, and the weights it was trained on, {folder}, were made again since",
                hints=["make the adapter again, too: rlhf run"],
            )
        return str(folder), None
    path, beside = source["path"], (checkpoint / source["path"]).resolve()
    return str(beside if adapters.is_adapter(checkpoint) and beside.is_dir() else path), source["revision"]


def context_of(checkpoint: Path) -> int:
    """Tokens that the model of a checkpoint was made for, without its weights being read."""
    return positions(config_of(checkpoint))


def config_of(checkpoint: Path) -> Any:
    """The configuration of a checkpoint's model, that of transformers."""
    path, revision = weights_of(checkpoint)
    with _given(path):
        return AutoConfig.from_pretrained(path, revision=revision or "main", **NO_CODE)


def positions(config: Any) -> int:
    """Tokens that a model of this configuration was made for.

    Raises:
        ConfigError: if it has no positions (BLOOM, MPT): they tell the documents of a packed row apart (3.1).
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
    if limit < 1:
        raise ConfigError(
            f"model {config.name_or_path!r} has no positions, by which dialogues packed into a row are told apart",
            where="model.path",
            hints=["take a model that has max_position_embeddings: Llama, Mistral, Qwen; not BLOOM or MPT"],
        )
    return int(limit)


def _adapted(model: Any, checkpoint: Path, config: ModelConfig, *, head: str | None = None) -> Any:
    """With LoRA, an adapter to train: the checkpoint's, or a new one. Without, the checkpoint's is merged in."""
    if config.lora.rank is None:
        return adapters.merge(model, checkpoint) if adapters.is_adapter(checkpoint) else model
    adapters.add(model, config.lora, head=head)
    if adapters.is_adapter(checkpoint):
        adapters.read(model, checkpoint)
    return model


@contextmanager
def _given(path: str) -> Iterator[None]:
    """Whatever the hub or the disk says of a given model that cannot be read: it is missing, or it is not safe."""
    vet_model(path)
    try:
        yield
    except ValueError as error:
        if "backend tokenizer" in str(error):  # what transformers says where there are no files to read
            raise MissingError(
                f"{path} holds no tokenizer that can be read",
                where="model.path",
                hints=["save it beside the weights: tokenizer.save_pretrained(FOLDER)"],
            ) from None
        if "trust_remote_code" not in str(error):
            raise
        raise UnsafeError(
            f"model {path!r} brings code of its own, which is not run",
            where="model.path",
            hints=["take a model whose architecture transformers knows"],
        ) from None
    except OSError as error:
        raise MissingError(
            f"model {path!r} cannot be read: {str(error).splitlines()[0]}",
            where="model.path",
            hints=["log in to the hub if the model is gated: hf auth login", "or point model.path at a local folder"],
        ) from None


def checkpoint_of(folder: Path) -> Path:
    """The weights of an artefact, or the folder itself where it is a checkpoint."""
    return folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder


def _existing(checkpoint: Path) -> Path:
    if not checkpoint.is_dir():
        raise MissingError(f"{checkpoint} does not exist", hints=["see what is there: rlhf status"])
    return checkpoint


def _prepared(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if config.quantisation != "none" or model.is_distributed_loading_by_transformers:
        return model  # placed where it was quantised, or cut
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device)
