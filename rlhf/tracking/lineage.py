"""What a step was made from and what it makes, each by name and version: the graph from data to policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.checkpoint import read_manifest
from rlhf.planning.steps import stage_of
from rlhf.provenance.fingerprint import digest
from rlhf.schema import MICROWORLD


@dataclass(frozen=True)
class Origin:
    """An artefact or a set of data: two with the same name and version are one."""

    kind: str
    """The stage that makes it, or `data`."""
    name: str
    place: str
    """Where it lies: a folder, a file, or the name of a set."""
    version: str


@dataclass(frozen=True)
class Lineage:
    """Of one step."""

    reads: Sequence[Origin]
    makes: Origin


def lineage(run_dir: Path, step: str, inputs: Sequence[str], made_from: Mapping[str, Any], version: str) -> Lineage:
    """The lineage of a step whose fingerprint is `version`, from what its result depends on."""
    folder, config = run_dir.resolve(), made_from["config"]
    sections = [section for section in config.values() if isinstance(section, Mapping)]
    data = [_data(source, config, made_from["data"]) for section in sections for source in section.get("data", ())]
    earlier = [_artefact(folder, name, read_manifest(folder / name)["fingerprint"]) for name in inputs]
    return Lineage([*dict.fromkeys(data), *earlier], _artefact(folder, step, version))


def _artefact(folder: Path, name: str, version: str) -> Origin:
    return Origin(stage_of(name), f"{folder.name}-{name}", str(folder / name), version)


def _data(source: Mapping[str, Any], config: Mapping[str, Any], files: Mapping[str, Any]) -> Origin:
    """A set is its files where it has any, its commit on the hub, or what the micro-world was told to be."""
    name, path = source["name"], source.get("path")
    facts: dict[str, Any] = {"name": name, "split": source["split"], "revision": source.get("revision")}
    if name == MICROWORLD and not path:
        facts |= {"world": config["microworld"], "seed": config["seed"]}
    facts["files"] = sorted(found["sha256"] for file, found in files.items() if not path or file.startswith(path))
    return Origin("data", name, path or name, digest(facts))
