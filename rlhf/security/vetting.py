"""What comes from others is looked at before it is read: models, chat templates, YAML, names of files. Torch-free.

Trusted are the reader's own machine and what is typed there. A model, a recipe, a run folder or a row of data may have
been made by anyone, and reading it must not run code, leave its folder, or eat all memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from rlhf.errors import MissingError, UnsafeError
from rlhf.security import template_probe

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
LARGEST_HEADER = 16 * 2**20
"""Bytes of a safetensors header, about 100 a tensor: no model has 160,000."""
LARGEST_JSON = 16 * 2**20
LARGEST_YAML = 2**20
MOST_NODES = 100_000
PROBE_SECONDS = 20.0


# --- models ---


def vet_model(path: str) -> None:
    """Refuse a local model that would have to be unpickled, or whose files are not what their names say.

    A hub id is left to the hub's own reader, which is told to read safetensors only and to run no code.
    """
    given = Path(path).expanduser()
    if given.suffix.lower() in PICKLES and not given.is_dir():
        raise _pickled(given)
    if given.is_file():
        raise MissingError(
            f"{path} is a file, and a model is a folder", where="model.path", hints=["name the folder that holds it"]
        )
    if not given.is_dir():
        return
    for file in sorted(given.glob("*.json")):
        if file.name != "tokenizer.json":
            _vet_json(file)
    weights = sorted(given.glob("*.safetensors"))
    for file in weights:
        vet_safetensors(file)
    pickles = [file for file in sorted(given.iterdir()) if file.suffix.lower() in PICKLES]
    if pickles and not weights:
        raise _pickled(pickles[0])


def vet_templates(path: str) -> None:
    """Refuse the chat templates of a local model that want out."""
    folder = Path(path).expanduser()
    for file in [*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja")]:
        vet_template(file.read_text(encoding="utf-8", errors="replace"), str(file))
    settings = folder / "tokenizer_config.json"
    templates = _parsed(settings.read_bytes(), settings).get("chat_template") if settings.is_file() else None
    for entry in templates if isinstance(templates, list) else [{"template": templates}]:
        if isinstance(entry, dict) and isinstance(entry.get("template"), str):
            vet_template(entry["template"], str(settings))


def vet_safetensors(file: Path) -> None:
    """Refuse a file that is no safetensors file, or whose header is out of all proportion."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise _pickled(file)
        length = int.from_bytes(start, "little")
        if length > min(LARGEST_HEADER, size - 8):
            raise UnsafeError(
                f"{file} announces a header of {length:,} bytes",
                where=f"the file has {size:,}, and a header at most {LARGEST_HEADER:,}",
                hints=["fetch the model again from a source you trust"],
            )
        header = _parsed(opened.read(length), file)
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    try:
        fits = all(0 <= entry["data_offsets"][0] <= entry["data_offsets"][1] <= size - 8 - length for entry in tensors)
    except (KeyError, IndexError, TypeError):
        fits = False
    if not fits:
        raise UnsafeError(f"{file} describes tensors that it does not hold", hints=["fetch the model again"])


def vet_template(template: str, where: str) -> None:
    """Refuse a chat template that reaches for Python's insides, or takes seconds or gigabytes for three short turns."""
    probe = [sys.executable, "-I", template_probe.__file__]
    try:
        code = subprocess.run(
            probe, input=template.encode(), capture_output=True, timeout=PROBE_SECONDS, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        code = template_probe.TOO_MUCH
    if code == 0:
        return
    reason = (
        "reaches for what a template has no business with"
        if code == template_probe.ESCAPES
        else f"needs more than {template_probe.SECONDS} seconds or {template_probe.MEMORY // 2**20} MiB for three turns"
    )
    raise UnsafeError(f"the chat template {reason}", where=where, hints=["take the model's tokenizer from its makers"])


def _vet_json(file: Path) -> None:
    if file.stat().st_size > LARGEST_JSON:
        raise UnsafeError(f"{file} has {file.stat().st_size:,} bytes of JSON", hints=["fetch the model again"])
    content = _parsed(file.read_bytes(), file)
    if file.name.endswith(".index.json"):
        shards = content.get("weight_map", {})
        require_inside(map(str, shards.values() if isinstance(shards, dict) else ()), str(file))


def _parsed(text: bytes, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else "is not JSON"
        raise UnsafeError(f"{file} {reason}", hints=["fetch the model again from a source you trust"]) from None
    return content if isinstance(content, dict) else {}


def _pickled(file: Path) -> UnsafeError:
    return UnsafeError(
        f"{file} is not read: a pickle, which can run any code",
        where="model.path",
        hints=["take the model in safetensors form", "or convert it where nothing can be lost, and name that folder"],
    )


# --- names ---


def require_inside(names: Iterable[str], where: str) -> None:
    """UnsafeError for a name that would lead out of the folder it belongs to."""
    for name in names:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
            raise UnsafeError(f"{name!r} leads out of its folder", where=where, hints=["do not use what names it"])


# --- YAML ---


def vet_yaml(text: str, path: Path) -> yaml.Node | None:
    """The node tree of a YAML text, once it is known to hold plain values only, and not too many of them.

    Raises UnsafeError for a tag that makes an object, for aliases that unfold beyond MOST_NODES, and for a file of more
    than a megabyte; yaml.YAMLError for what is no YAML.
    """
    if len(text) > LARGEST_YAML:
        raise UnsafeError(f"{path} has {len(text):,} characters, and a recipe at most {LARGEST_YAML:,}")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _unfolded(root, {}, path)
    except RecursionError:
        raise UnsafeError(f"{path} is nested too deeply") from None
    return root


def _unfolded(node: yaml.Node, known: dict[int, int | None], path: Path) -> int:
    """How many nodes there are below this one, an alias counted as what it stands for."""
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise UnsafeError(f"an alias that contains itself, in {path} line {node.start_mark.line + 1}")
        return count
    if node.tag not in _PLAIN:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise UnsafeError(
            f"the tag {tag} would make an object",
            where=f"in {path} line {node.start_mark.line + 1}",
            hints=["leave it out"],
        )
    known[id(node)] = None
    children = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
    total = 1
    for child in children if isinstance(node, yaml.CollectionNode) else ():
        total += _unfolded(child, known, path)
        if total > MOST_NODES:
            raise UnsafeError(
                f"aliases that unfold into more than {MOST_NODES:,} values",
                where=f"in {path} line {node.start_mark.line + 1}",
            )
    known[id(node)] = total
    return total


_PLAIN = {
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge")
}
