"""A recipe from a YAML file and `key=value` overrides: found, merged, checked, and every value's origin kept.

OmegaConf reads and merges, pydantic (rlhf/schema) checks. Every refusal names the setting, the value, and where the
value was given. Torch-free.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from rlhf.errors import ConfigError, MissingError, UnsafeError, did_you_mean
from rlhf.provenance.origins import (
    Given,
    field_of,
    is_section,
    is_text,
    keys_of_entry,
    known_settings,
    scalars,
    settings,
    show,
)
from rlhf.reporting.text import redact
from rlhf.schema import Recipe
from rlhf.schema.setting import SPELT
from rlhf.security.vetting import vet_yaml

DEFAULT = "tiny"


@dataclass(frozen=True)
class Loaded:
    """A checked recipe, and where each of its settings came from."""

    recipe: Recipe
    origins: dict[str, str]
    """Dotted setting -> `paper 3.2.3`, `ours: reason`, `tiny.yaml` or `command line`."""
    path: Path
    """The YAML file."""
    runs_dir: Path
    """The folder that holds all runs."""
    arguments: tuple[str, ...]
    """What to type after `rlhf COMMAND` to get this very recipe again."""

    @property
    def run_dir(self) -> Path:
        """The folder of this run."""
        return self.runs_dir / self.recipe.run


def load(config: str | None, overrides: Sequence[str] = ()) -> Loaded:
    """The recipe in `config` (a name in configs/ or a file; default `tiny`) with `key=value` overrides on top.

    `run` defaults to the file's stem. `runs_dir` is no setting of the recipe but may stand among the overrides; it
    defaults to $RLHF_RUNS, then `runs` in the working directory.

    Raises ConfigError for an unknown setting, a value of the wrong type or out of range, an empty value, or YAML that
    does not parse; MissingError for a file that is not there; UnsafeError for YAML that would do more than hold values,
    and for a value that looks like a secret, since settings are written down with every artefact.
    """
    path = find(config or DEFAULT)
    typed = dict(split(override) for override in overrides)
    runs_dir = Path(typed.pop("runs_dir", "") or os.environ.get("RLHF_RUNS") or "runs").expanduser()
    root, data = read_yaml(path)
    given = Given(path, root, typed)
    refuse_blanks(data, given)
    data.setdefault("run", path.stem)
    try:
        recipe = Recipe.model_validate(merge(data, typed))
    except ValidationError as error:
        raise explain(error, given) from None
    for name, value, _ in settings(recipe):
        if any(isinstance(number, float) and not math.isfinite(number) for number in scalars(value)):
            raise ConfigError(f"{name}: must be a finite number (got {show(value)})", where=given.place(name))
        if any(isinstance(text, str) and redact(text, name) != text for text in scalars(value)):
            hints = ["give it by the environment: HF_TOKEN=...", "or log in: hf auth login, wandb login"]
            raise UnsafeError(f"{name} holds what looks like a secret", where=given.place(name), hints=hints)
    arguments = ([f"config={config}"] if config else []) + list(overrides)
    return Loaded(recipe, given.origins(recipe), path, runs_dir, tuple(arguments))


# --- finding ---


def config_folders() -> list[Path]:
    """Where a configuration is looked up by name: the checkout's configs/, or the copy inside the package."""
    places = (Path(__file__).resolve().parents[1] / "configs", Path(str(resources.files("rlhf"))) / "configs")
    return [folder for folder in places if folder.is_dir()]


def known_configs() -> dict[str, Path]:
    """Name -> file of every configuration that can be given by name."""
    return {file.stem: file for folder in reversed(config_folders()) for file in sorted(folder.glob("*.yaml"))}


def find(config: str) -> Path:
    """The file of a configuration given by name (`tiny`) or as a file (`my/recipe.yaml`)."""
    known = known_configs()
    if config in known:
        return known[config]
    path = Path(config).expanduser()
    if path.is_file():
        return path
    if path.name == config and path.suffix in (".yaml", ".yml") and path.stem in known:
        return known[path.stem]
    hints = [did_you_mean(path.stem, known), f"known by name: {', '.join(sorted(known))}" if known else None]
    what = f"{config} is a folder, not a configuration file" if path.is_dir() else f"no configuration {config}"
    raise ConfigError(what, hints=[hint for hint in [*hints, "or give a file: config=FOLDER/FILE.yaml"] if hint])


# --- reading and merging ---


def read_yaml(path: Path) -> tuple[yaml.Node | None, dict[str, Any]]:
    """The file's node tree, which knows line numbers, and its content; interpolations are left as they are."""
    try:
        text = path.read_text(encoding="utf-8")
        root = vet_yaml(text, path)
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", where=f"byte {error.start}") from None
    except OSError as error:
        raise MissingError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(
            f"not YAML: {problem}", where=f"in {path}{f' line {mark.line + 1}' if mark else ''}"
        ) from None
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error), where=f"in {path}") from None
    if not isinstance(content, dict) or (root is not None and not isinstance(root, yaml.MappingNode)):
        found = "a list" if isinstance(content, list) else "a single value"
        raise ConfigError(f"a recipe must be a mapping of `setting: value` lines (got {found})", where=f"in {path}")
    return root, {str(key): value for key, value in content.items()}


def refuse_blanks(data: dict[str, Any], given: Given) -> None:
    """Drop sections that hold nothing but comments; refuse a setting with nothing after its colon."""
    for section, value in list(data.items()):
        if value is None and is_section(section):
            del data[section]
            continue
        for name in [section, *(f"{section}.{key}" for key in (value if isinstance(value, dict) else ()))]:
            node = given.node(name)
            if isinstance(node, yaml.ScalarNode) and node.value == "" and node.style is None:
                hint = f"for none, write {name.rpartition('.')[2]}: null"
                raise ConfigError(f"{name} has no value", where=given.place(name), hints=[hint])


def split(override: str) -> tuple[str, str]:
    """`ppo.kl_coef=0.005` as its two halves."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"expected KEY=VALUE, got {override}", where="given on the command line")
    if not value.strip():
        raise ConfigError(
            f"{key} has no value", where="given on the command line", hints=[f"for none, write {key}=null"]
        )
    return key.strip(), value


def merge(data: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """The file's content with the command line's values over it, interpolations resolved."""
    config = OmegaConf.create(data)
    for key, raw in given.items():
        if is_section(key):
            hint = f"set one of them: {key}.KEY=VALUE"
            raise ConfigError(
                f"{key} is a group of settings (got {raw})", where="given on the command line", hints=[hint]
            )
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={raw}"]), resolve=False)["value"]  # type: ignore[index,call-overload]
            field, inside = field_of(key)
            if field is not None and is_text(field) and isinstance(value, bool | int | float):
                value = raw.strip()  # run=2024 is a name, not a number
            if inside and OmegaConf.select(config, key.removesuffix(inside)) is None and field is not None:
                # One entry of a table is changed; its other entries keep their default.
                OmegaConf.update(config, key.removesuffix(inside), field.get_default(), force_add=True)
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or first_line(error)
            raise ConfigError(f"{key}: not a value: {raw} ({problem})", where="given on the command line") from None
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError, IndexError) as error:
            raise unknown(key, "given on the command line", first_line(error)) from None
    try:
        merged = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error), where="while filling in ${...}") from None
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


# --- saying what is wrong ---


def explain(error: ValidationError, given: Given) -> ConfigError:
    """The first thing wrong as an error of ours; a misspelt setting goes first, since it may explain the others."""
    problem = min(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    name, kind = ".".join(map(str, problem["loc"])), problem["type"]
    where, got = given.place(name), show(problem["input"])
    if kind == "extra_forbidden":
        return unknown(name, where)
    if kind == "missing":
        return ConfigError(f"{name} has no default and must be given", where=where)
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":  # a validator of ours, which shows the values itself
        # Between sections it names both settings; of two places, the command line is the likelier cause.
        named = [place for word in message.split() if "." in word and (place := given.place(word))]
        where = where or max(named, key=lambda place: place.startswith("given"), default=None)
        return ConfigError(f"{name}: {message}" if name else message, where=where)
    if kind == "too_short":
        least = problem["ctx"]["min_length"]
        entries = "one entry" if least == 1 else f"{least} entries"
        return ConfigError(f"{name}: must have at least {entries} (got {got})", where=where)
    hints = []
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "must be a group of settings"
        hints = [f"set one of them: {name}.KEY=VALUE" if is_section(name) else f"write {{name: {got}}}"]
    if kind == "tuple_type":
        message = "must be a list"
        if name.endswith(".data") and isinstance(problem["input"], str):
            hints = [f"write {name}=[{source_of(got)}]"]
    if kind == "string_pattern_mismatch":
        message = SPELT.get(problem["ctx"]["pattern"], message)
    if kind == "literal_error":
        hints = [hint for hint in [did_you_mean(str(problem["input"]), message.split("'")[1::2])] if hint]
    message = message.replace("Input should be", "must be").split(", unable to parse")[0]
    return ConfigError(f"{name}: {message[:1].lower()}{message[1:]} (got {got})", where=where, hints=hints)


def unknown(name: str, where: str | None, detail: str | None = None) -> ConfigError:
    """The error for a setting that the schema does not have."""
    section = name.split(".")[0]
    known = known_settings()
    shown = f"rlhf show stage={section}" if is_section(section) else "rlhf show"
    hints = [did_you_mean(name, [*known, "runs_dir"]), f"all of them: {shown}"]
    field, inside = field_of(name)
    if detail and field is not None:
        return ConfigError(f"cannot set {name}: {detail[:1].lower()}{detail[1:]}", where=where, hints=[hints[1] or ""])
    if keys := keys_of_entry(field) if field else []:
        hints = [did_you_mean(inside.rpartition(".")[2], keys), f"an entry has {', '.join(keys)}"]
    return ConfigError(f"unknown setting {name}", where=where, hints=[hint for hint in hints if hint])


def source_of(text: str) -> str:
    """An entry of a `data` list for what was given in its place: a file or folder, or the name of a set."""
    path = Path(text).expanduser()
    if path.suffix or path.exists():
        return f"{{name: {Path(text.removesuffix('.gz')).stem}, path: {text}}}"
    return f"{{name: {text}}}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type's name if it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
