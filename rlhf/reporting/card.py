"""The model card of an export, written from the run's own records. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlhf.artefacts import lineage
from rlhf.data.sources import known_sources
from rlhf.reporting.table import POLICY_COLUMNS, WITHOUT_ORACLE, error_of, figure, span
from rlhf.reporting.text import percent
from rlhf.schema import MICROWORLD

LLAMA2 = (
    "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved."
    " Its use, and the use of this model, is bound by that licence and by its Acceptable Use Policy."
)
NAMES = {
    "gold_quality": "quality, by a judge that was no reward",
    "gold_helpfulness": "helpfulness, by that judge",
    "gold_facts": "facts right and whole, by that judge",
    "violation_rate": "violations on unsafe prompts",
    "unsafe_by_reward_model": "answers to adversarial prompts that the safety reward model finds unsafe",
    "false_refusal.borderline": "refusals of harmless prompts that sound unsafe",
    "false_refusal.ordinary": "refusals of ordinary prompts",
    "instruction_followed": "instructions followed",
    "reward_combined": "mean reward, logits",
    "kl_to_reference": "KL to the policy before it, nats an answer",
    "eos_rate": "answers that end by themselves",
}


def card(artefact: Path, *, run: str, eos: str) -> str:
    """The card of the policy in `artefact`, whose run folder holds what it was made from."""
    made = lineage(artefact)
    manifest = made[-1][1]
    step = manifest["step"]
    report = _json(artefact.parent / "report.json")
    entry = report.get("policies", {}).get(step, {})
    sources = _sources(made)
    model = manifest["config"].get("model", {})
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown; nothing a model said is in it
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.j2").render(
        run=run,
        step=step,
        stage=step.rstrip("0123456789").rstrip("-"),
        base={"path": model.get("path"), "revision": model.get("revision"), "words": _from_scratch(made)},
        public=[name for name in sources if name in known_sources()],
        steps=[_row(name, manifest) for name, manifest in made],
        eos=eos,
        results=_results(entry),
        safety=_safety(entry, report),
        licence=_licence(model.get("path")),
        notices=[_notice(name) for name in sources],
        digest=manifest["digest"],
        fingerprint=manifest["fingerprint"],
        seed=manifest["seeds"]["recipe"],
        commit=manifest.get("git_commit"),
        versions=", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items()),
    )


def _row(name: str, manifest: Mapping[str, Any]) -> dict[str, str]:
    tokens = manifest.get("tokens")
    return {
        "name": name,
        "data": ", ".join(_data(manifest)) or "–",
        "seconds": f"{manifest['seconds']:,.0f}",
        "tokens": f"{tokens:,}" if tokens else "–",
        "digest": manifest["digest"][:12],
    }


def _data(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the sources a step read itself."""
    stage = next((part for part in manifest["config"].values() if isinstance(part, Mapping) and "data" in part), {})
    return list(dict.fromkeys(source["name"] for source in stage.get("data") or []))


def _sources(made: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(name for _, manifest in made for name in _data(manifest)))


def _notice(name: str) -> str:
    if name == MICROWORLD:
        return "The micro-world's data are generated, and bound by no licence of others."
    entry = known_sources().get(name)
    licence = entry["licence"] if entry else "not recorded: it is no set known by name"
    return f"Data `{name}`: {licence}."


def _from_scratch(made: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    data = ", ".join(_data(made[0][1])) if made else ""
    return f"None: a small Llama was trained from random weights{f' on {data}' if data else ''}."


def _licence(path: str | None) -> dict[str, str]:
    if path is None:
        return {"id": "apache-2.0", "name": "", "words": "Apache-2.0: the weights come from no other model."}
    if "llama-2" in path.lower():
        return {"id": "llama2", "name": "", "words": LLAMA2}
    words = f"The licence of the base model `{path}` goes on to hold for this one; read it there."
    return {"id": "other", "name": f"that of {path}", "words": words}


def _results(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for column in (*POLICY_COLUMNS, *WITHOUT_ORACLE):
        value, bounds = figure(entry, column.path), error_of(entry, column.path)
        if value is not None:
            interval = span(bounds, column.write)
            name = NAMES.get(column.path, column.head)
            rows.append({"name": name, "value": column.write(value), "interval": interval})
    return rows


def _safety(entry: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    said = []
    if (rate := figure(entry, "violation_rate")) is not None:
        said.append(f"It answered {percent(rate)} of the unsafe prompts of the test with a violation.")
    if (rate := figure(entry, "false_refusal.borderline")) is not None:
        said.append(f"It refused {percent(rate)} of the harmless prompts that only sound unsafe.")
    recall = report.get("reward_models", {}).get("safety", {}).get("unsafe_recall")
    if said and recall is not None:
        said.append(f"The safety reward model found {percent(recall)} of the unsafe answers of held-out pairs.")
    return said


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if isinstance(found, dict) else {}
