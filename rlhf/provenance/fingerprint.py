"""What a step's result depends on: settings, inputs, code and data files; and which of them changed since.

Settings that cannot change a result stay out: the run's name, the rounds and their refresh (they only add steps), W&B,
the thread count, and other stages' sections. So do modules that only keep the books. Torch-free: imports are found by
reading, not by importing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf.schema import Recipe

# These decide when a step runs and what is shown of it, never what it computes: editing them makes nothing stale.
BOOKKEEPING = {
    *("__init__", "__main__", "checkpoint", "cli", "config", "disk", "errors", "job", "pipeline", "report"),
    *("planning", "provenance", "reporting", "resume", "schema", "security", "tracking", "training.bundle"),
}
PACKAGE = Path(__file__).resolve().parents[1]


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- settings ---


def relevant(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The settings that `stage` can see: its own section, the sections that are no stage's, and the seed."""
    from rlhf.schema import STAGES

    everything = recipe.model_dump(mode="json")
    shared = {name: value for name, value in everything.items() if isinstance(value, dict) and name not in STAGES}
    return {"seed": recipe.seed, **shared, **({stage: everything[stage]} if stage in everything else {})}


def changed_settings(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """One phrase per difference: `ppo.kl_coef changed from 0.01 to 0.005`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*new, *(key for key in old if key not in new)]:
            dotted = f"{name}.{key}" if name else str(key)
            if key not in old:
                yield f"{dotted} is new"
            elif key not in new:
                yield f"{dotted} is gone"
            else:
                yield from changed_settings(old[key], new[key], dotted)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from changed_settings(before, after, f"{name}.{index}")
    elif old != new:
        yield f"{name} changed from {_short(old)} to {_short(new)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- code ---


def code_of(module: str) -> dict[str, str]:
    """Path -> SHA-256 of a stage's file and of every rlhf module it imports, directly or through others.

    Imports inside functions count too. A package's `__init__.py` counts where a name is imported from the package
    itself, not where it is only passed through. The stage's own path is shown as its module reads: stages/ppo.py.

    The answer is kept for the life of the process. A file that is edited during a long run may be in memory as it was
    before: what is recorded is older than what ran or equal to it, never newer, so the edit is noticed by the next run.
    """
    return dict(_snapshot(module))


@cache
def _snapshot(module: str) -> tuple[tuple[str, str], ...]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"the stage table names {module}, which is no module")
    start = Path(spec.origin)
    found = {f"{module.replace('.', '/')}.py": file_digest(start)}
    queue, seen = list(_imports(start, "")), {"rlhf"}
    while queue:
        name = queue.pop()
        path = _module_file(name)
        if name in seen or path is None or _keeps_books(name):
            continue
        seen.add(name)
        found[path.relative_to(PACKAGE.parent).as_posix()] = file_digest(path)
        queue += _imports(path, name if path.name == "__init__.py" else name.rpartition(".")[0])
    return tuple(sorted(found.items()))


def _keeps_books(module: str) -> bool:
    """`rlhf.resume.saves` does if "resume" or "resume.saves" is in the list."""
    parts = module.split(".")[1:]
    return any(".".join(parts[: length + 1]) in BOOKKEEPING for length in range(len(parts)))


def forget_code() -> None:
    """Look at the files again, as a new process would."""
    _snapshot.cache_clear()
    _imports.cache_clear()
    _module_file.cache_clear()


@cache
def _imports(path: Path, package: str) -> tuple[str, ...]:
    """The rlhf modules that a file's import statements name; `package` resolves relative ones."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            source = base if node.level else node.module or ""
            inside = [f"{source}.{alias.name}" for alias in node.names]
            names += [name if _module_file(name) else source for name in inside]
    return tuple(name for name in names if name.partition(".")[0] == "rlhf")


@cache
def _module_file(name: str) -> Path | None:
    """The file of `rlhf.a.b`, or None if the name is a function or class inside a module."""
    place = PACKAGE.parent.joinpath(*name.split(".")) if name else PACKAGE.parent
    candidates = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in candidates if name and file.is_file()), None)


# --- local data files ---


def local_paths(settings: Any, name: str = "", *, keys: tuple[str, ...] = ("path",)) -> Iterator[tuple[str, Path]]:
    """Every setting called `path` (data.0.path) whose value looks like or is a local path; the pools of `pool_from`."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            dotted = f"{name}.{key}" if name else str(key)
            if key in keys and isinstance(value, str) and (_looks_local(value) or Path(value).exists()):
                yield dotted, Path(value).expanduser()
            elif key == "pool_from" and value is not None:
                run = Path(value).expanduser()
                yield from ((dotted, pool) for pool in sorted(run.glob("rejection-*/pool.jsonl")) or [run])
            yield from local_paths(value, dotted, keys=keys)
    elif isinstance(settings, list):
        for index, value in enumerate(settings):
            yield from local_paths(value, f"{name}.{index}", keys=keys)


def _looks_local(value: str) -> bool:
    """Whether a value can only be a path: hub ids have at most one slash and none of these beginnings or endings."""
    endings = (".jsonl", ".json", ".gz", ".txt", ".csv", ".parquet", ".yaml")
    return value.startswith(("/", "./", "../", "~")) or value.endswith(endings) or value.count("/") > 1


def data_of(settings: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> {size, mtime_ns, sha256} of every local file the settings name; folders file by file.

    The list of public sets is one of them if a setting names such a set. A file whose size and time of change are as in
    `before` is not read again.
    """
    found: dict[str, Any] = {}
    for place in [*(path for _, path in local_paths(settings, keys=("path", "ratings"))), *_catalogue(settings)]:
        files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
        for file in files:
            if not file.is_file():
                continue
            facts, known = file.stat(), before.get(str(file), {})
            stamp = {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
            same = all(known.get(key) == value for key, value in stamp.items())
            found[str(file)] = stamp | {"sha256": known["sha256"] if same else file_digest(file)}
    return found


def _catalogue(settings: Mapping[str, Any]) -> list[Path]:
    """data/sources.yaml, if any section's `data` names a set that is listed there."""
    sections = [section for section in settings.values() if isinstance(section, Mapping)]
    named = {source["name"] for section in sections for source in section.get("data", ())}
    places = (PACKAGE / "data" / "sources.yaml", PACKAGE.parent / "data" / "sources.yaml")
    return [path for path in places if path.is_file()][:1] if named - {"microworld"} else []
