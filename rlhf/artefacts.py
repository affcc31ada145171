"""Which finished artefacts of a run a command means by a name. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.checkpoint import MANIFEST, read_manifest, shown, verify
from rlhf.errors import MissingError, did_you_mean
from rlhf.planning.steps import POLICIES, expand

if TYPE_CHECKING:
    from rlhf.config import Loaded


def policies(loaded: Loaded) -> dict[str, Path]:
    """Every finished policy of the run, oldest first, the base model included."""
    return finished(loaded, ("base", *POLICIES))


def chosen_policies(loaded: Loaded, wanted: str | None) -> dict[str, Path]:
    """The policies of `policy=sft,ppo` (names of this run, or folders of another), each compared with its checksums.

    Without a wish it is the newest. MissingError names what is there.
    """
    found = policies(loaded)
    names = [name.strip() for name in wanted.split(",") if name.strip()] if wanted else list(found)[-1:]
    if not names:
        raise MissingError(
            f"{shown(loaded.run_dir)} has no finished policy", hints=[f"make one: rlhf run run={loaded.recipe.run}"]
        )
    chosen = {}
    for name in names:
        folder = Path(name).expanduser() if "/" in name else found.get(name)
        if folder is None:
            there = f"finished in {shown(loaded.run_dir)}: {', '.join(found) or 'none'}"
            hints = [did_you_mean(name, found), there, "one of another run: policy=runs/RUN/STEP"]
            raise MissingError(f"no policy {name}", hints=[hint for hint in hints if hint])
        verify(folder)
        chosen[name.rstrip("/")] = folder
    return chosen


def newest_reward(loaded: Loaded) -> Path | None:
    """The newest reward models of the run, if it has any."""
    found = list(finished(loaded, ("reward",)).values())
    if found:
        verify(found[-1])
    return found[-1] if found else None


def step_of(folder: Path) -> str:
    """The name of the step that made an artefact, wherever the folder stands now."""
    return str(read_manifest(folder)["step"])


def lineage(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """The manifests of all an artefact was made from, in the order made, its own last; what is gone is absent."""
    found: dict[str, dict[str, Any]] = {}

    def walk(name: str) -> None:
        path = folder.parent / name if name != folder.name else folder
        if name in found or not (path / MANIFEST).exists():
            return
        manifest = read_manifest(path)
        for read in manifest.get("inputs", {}):
            walk(read)
        found[name] = manifest

    walk(folder.name)
    return sorted(found.items(), key=lambda item: (item[0] == folder.name, str(item[1]["finished_at"])))


def finished(loaded: Loaded, stages: tuple[str, ...] | None = None) -> dict[str, Path]:
    """The finished artefacts of the run, in order: all, or those of some stages."""
    steps = [step.name for step in expand(loaded.recipe) if stages is None or step.stage in stages]
    return {name: loaded.run_dir / name for name in steps if (loaded.run_dir / name / MANIFEST).exists()}
