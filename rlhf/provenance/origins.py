"""The schema walked by dotted names, and where each setting's value came from. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlhf.schema import Recipe

COMMAND_LINE = "command line"


def known_settings(model: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting by its dotted name, in the schema's order."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found |= known_settings(section, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def settings(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    """Dotted name, value and field of every setting of a recipe, in the schema's order."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, field


def is_section(name: str) -> bool:
    """Whether `name` is a group of settings: `ppo`, `model`."""
    return any(setting.startswith(f"{name}.") for setting in known_settings())


def field_of(key: str) -> tuple[FieldInfo | None, str]:
    """The field that `key` sets, and the rest of the key if it points at one entry inside that field."""
    known = known_settings()
    for name, field in known.items():
        if key == name:
            return field, ""
        if key.startswith((f"{name}.", f"{name}[")):
            return field, key[len(name) :]
    return None, ""


def keys_of_entry(field: FieldInfo) -> list[str]:
    """The keys of an entry, where the setting is a list of groups: `name`, `path` and so on in `sft.data`."""
    kinds = [kind for kind in get_args(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [key for kind in kinds for key in kind.model_fields]


def is_text(field: FieldInfo) -> bool:
    """Whether the setting holds text, or text or nothing."""
    kinds = set(get_args(field.annotation)) or {field.annotation}
    return kinds <= {str, type(None)} and str in kinds


def scalars(value: Any) -> Iterator[Any]:
    """Every single value inside lists, tables and groups."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from scalars(inner)
    else:
        yield value


def show(value: Any) -> str:
    """A value as it would be typed on the command line: 0.005, true, null, [a, b], {name: a}."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {show(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(show(inner) for inner in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


@dataclass(frozen=True)
class Given:
    """What the reader gave: a YAML file, whose nodes know their lines, and `key=value` overrides."""

    path: Path
    root: yaml.Node | None
    typed: Mapping[str, str]

    def origins(self, recipe: Recipe) -> dict[str, str]:
        """The origin of every setting: the command line, the file's name, or the source of the schema's default."""
        found = {}
        for name, _, field in settings(recipe):
            extra = field.json_schema_extra
            source = str(extra.get("source", "")) if isinstance(extra, dict) else ""
            in_file = self.node(name) is not None
            found[name] = COMMAND_LINE if self.is_typed(name) else self.path.name if in_file else source
        return found

    def is_typed(self, name: str) -> bool:
        """Whether the command line sets `name`, a part of it, or the section around it."""
        return any(
            key == name or key.startswith((f"{name}.", f"{name}[")) or name.startswith((f"{key}.", f"{key}["))
            for key in self.typed
        )

    def place(self, name: str) -> str | None:
        """`given on the command line`, or `in configs/tiny.yaml line 7`, or None for a default."""
        if self.is_typed(name):
            return "given on the command line"
        parts = name.split(".")
        for depth in range(len(parts), 0, -1):
            if (node := self.node(".".join(parts[:depth]), key=True)) is not None:
                return f"in {self.path} line {node.start_mark.line + 1}"
        return None

    def node(self, name: str, *, key: bool = False) -> yaml.Node | None:
        """The YAML node of a dotted name (or of its key); None if the file does not mention it."""
        node = label = self.root
        for part in name.split("."):
            if isinstance(node, yaml.MappingNode):
                pair = next(((k, v) for k, v in node.value if getattr(k, "value", None) == part), None)
                if pair is None:
                    return None
                label, node = pair
            elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
                label = node = node.value[int(part)]
            else:
                return None
        return label if key else node
