"""A policy as a folder that others load unchanged: `AutoModelForCausalLM`, vLLM, Text Generation Inference.

Weights go through unrounded; what is rewritten is what servers older than our transformers stumble over: names of
tokenizer classes and settings, and template tags that only transformers knows.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.artefacts import step_of
from rlhf.checkpoint import now, read_manifest, shown
from rlhf.data.chat import LLAMA2_TEMPLATE, is_llama2
from rlhf.errors import ConfigError
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.schema import ModelConfig
from rlhf.schema.model import LoraConfig

NOTE = "export.json"  # says that the folder is an export, and of what
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def export(artefact: Path, to: Path, config: ModelConfig, *, card: str, sampling: Mapping[str, Any]) -> None:
    """Write the policy of an artefact to `to`, whole or not at all; an earlier export there is replaced.

    Args:
        card: the model card.
        sampling: `temperature` and `max_new_tokens` to suggest to whoever serves it.

    Raises:
        ConfigError: `to` is a folder that no export made.
    """
    if to.exists() and not (to / NOTE).exists():
        raise ConfigError(f"{shown(to)} exists and is no export", hints=["give another folder: to=FOLDER"])
    draft = to.parent / f".{to.name}.partial-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        _write(artefact / "checkpoint", draft, config, sampling)
        (draft / "README.md").write_text(card, encoding="utf-8")
        manifest = read_manifest(artefact)
        note = {"step": step_of(artefact), "digest": manifest["digest"], "fingerprint": manifest["fingerprint"]}
        (draft / NOTE).write_text(json.dumps({**note, "exported_at": now()}, indent=1) + "\n")
        for file in draft.iterdir():
            file.chmod(0o644)  # a server may run as somebody else
        shutil.rmtree(to, ignore_errors=True)
        draft.rename(to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def merging(config: ModelConfig) -> ModelConfig:
    """Settings without adapters to train: a checkpoint's own are merged into its weights."""
    return config.model_copy(update={"quantisation": "none", "lora": LoraConfig()})


def _write(checkpoint: Path, folder: Path, config: ModelConfig, sampling: Mapping[str, Any]) -> None:
    from transformers import GenerationConfig

    policy, tokenizer = load_policy(checkpoint, merging(config)), load_tokenizer(checkpoint)
    policy.config.use_cache = True
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    warm = sampling["temperature"] > 0
    policy.generation_config = GenerationConfig(
        **ids,
        do_sample=warm,
        max_new_tokens=sampling["max_new_tokens"],
        **({"temperature": sampling["temperature"], "top_k": 0, "top_p": 1.0} if warm else {}),
    )
    for name, value in ids.items():
        setattr(policy.config, name, value)
    policy.save_pretrained(str(folder))
    template = LLAMA2_TEMPLATE if is_llama2(tokenizer) else tokenizer.chat_template
    tokenizer.chat_template = _GENERATION.sub("", template)
    tokenizer.save_pretrained(str(folder))
    _edit(folder / "tokenizer_config.json", lambda settings: _for_older_tokenizers(settings, tokenizer.chat_template))
    _edit(folder / "config.json", _for_older_models)


def _for_older_tokenizers(settings: dict[str, Any], template: str) -> dict[str, Any]:
    """Names that transformers 4 knows too; the template is kept here as well, where older servers look for it."""
    for here in ("is_local", "local_files_only"):
        settings.pop(here, None)
    settings["chat_template"] = template
    settings["model_input_names"] = ["input_ids", "attention_mask"]  # 4 would add token types, which a Llama refuses
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def _for_older_models(settings: dict[str, Any]) -> dict[str, Any]:
    """`dtype` and `rope_parameters` under the names of transformers 4 as well."""
    rope = settings.get("rope_parameters") or {}
    if "dtype" in settings:
        settings["torch_dtype"] = settings["dtype"]
    if "rope_theta" in rope:
        settings["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        settings["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return settings


def _edit(path: Path, change: Any) -> None:
    settings = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
