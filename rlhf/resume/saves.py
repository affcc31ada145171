"""What a killed stage goes on from: `resume/`, its state at some steps, each written whole and verified when read.

A save is a folder: `state.json`, `tensors.safetensors`, the lines logged so far, and a manifest with the SHA-256 of
each. It is written under a hidden name, made durable, renamed, read back, and only then are older ones pruned; two
stay. Saves are by time. Several processes do not save: started again, they begin the step anew. Torch-free, but for the
tensors of who has some.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from rlhf.checkpoint import read_manifest, seal, shown, sync, unsound
from rlhf.disk import written
from rlhf.errors import MissingError
from rlhf.processes import team
from rlhf.provenance.fingerprint import file_digest
from rlhf.resume.preemption import Stop
from rlhf.resume.shards import afresh, keeping
from rlhf.resume.streams import NAMES

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf.resume.state import Stateful
    from rlhf.tracking.track import Tracker

KEPT = 2
SHARE = 0.02
"""Of the time at most this share goes into saving: after a save that took c seconds, the next waits for c / SHARE."""

Note = Callable[..., None]


@dataclass(frozen=True)
class Save:
    """One save, read: where its part was, and what it holds."""

    folder: Path
    number: int
    part: str
    finished: tuple[str, ...]
    state: Any

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        from safetensors.torch import load_file

        return load_file(self.folder / "tensors.safetensors")


class Saves:
    """The saves of one step.

    Args:
        out: the folder the stage works in; saves live in its `resume/`.
        key: fingerprint of the step; a save of any other is refused.
        track: whose lines belong to the state.
        every: seconds between saves, 0 for one after every step whatever it costs.
        stop: a run that was asked to stop saves at once, then leaves.
        strict: a save that is damaged stops the run instead of being passed over.
        note: told of what the run's journal should have.
    """

    def __init__(
        self, out: Path, *, key: str, track: Tracker, every: float, stop: Stop, strict: bool = False, note: Note
    ) -> None:
        self.out, self.folder, self.key, self.track, self.every = out, out / "resume", key, track, every
        self.stop, self.strict, self.note = stop, strict, note
        self._since, self._cost = monotonic(), 0.0
        self._finished: list[str] = []
        self._digests: dict[tuple[str, int, int], str] = {}
        self._loaded: Save | None = None
        self._looked = False

    # --- writing ---

    def due(self) -> bool:
        """Whether the step that was just made should be saved."""
        if team.size() > 1:  # what all processes hold would have to be saved together
            return False
        wait = max(self.every, self._cost / SHARE) if self.every else 0.0
        return self.stop.asked or monotonic() - self._since >= wait

    def write(self, part: str, state: Any, tensors: Mapping[str, Tensor]) -> None:
        """Save the state of a part of the stage, durably; PreemptedError then, if the run was asked to stop."""
        began = monotonic()
        number = max([0, *(found for found, _ in self._folders())]) + 1
        final, draft = self.folder / f"save-{number:06d}", self.folder / f".save-{number:06d}.partial"
        place = {"part": part, "finished": self._finished, "track": self.track.state(), "state": state}

        def fill() -> None:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            self.track.streams.store(draft)
            (draft / "state.json").write_text(json.dumps(place), encoding="utf-8")
            if tensors:
                from safetensors.torch import save_file

                save_file(dict(tensors), draft / "tensors.safetensors")
            seal(draft, {"fingerprint": self.key, "number": number, "outputs": self._outputs()})

        written(fill, draft)
        draft.rename(final)
        sync(self.folder)
        problem = self._problem(final, number)
        if problem is None:
            for _, old in self._folders()[KEPT:]:
                shutil.rmtree(old)
        else:
            self._complain(final, problem, "the ones before it are kept")
        self._since, self._cost = monotonic(), monotonic() - began
        self.note("save", number=number, part=part, seconds=round(self._cost, 3))
        self.stop.leave(self.track.step)

    def finish(self, part: str) -> None:
        """This part of the stage is over; a save of a later part vouches for the files it left."""
        self._finished.append(part)

    def range(
        self, n: int, *, part: str = "loop", skipped: Callable[[int], None] = lambda n: None, **things: Stateful
    ) -> Iterator[int]:
        """`range(n)` that goes on where a killed run was; `things` are saved after an iteration and put back before."""
        from rlhf.resume.state import pack, random_state, set_random_state, unpack

        start, save = 0, self.begin(part)
        if save is not None:
            held = unpack(save.state, save.tensors())
            start = held["next"]
            for name, thing in things.items():
                thing.load_state_dict(held["things"][name])
            set_random_state(held["random"])
            skipped(start)
        with self.stop.patience(), keeping(afresh):
            for i in range(start, n):
                yield i
                if self.due():
                    states = {name: thing.state_dict() for name, thing in things.items()}
                    self.write(part, *pack({"next": i + 1, "things": states, "random": random_state()}))
        self.finish(part)

    # --- reading ---

    def passed(self, part: str) -> bool:
        """Whether a killed run had finished this part, and what it left is still there."""
        save = self._newest()
        return save is not None and part in save.finished

    def begin(self, part: str) -> Save | None:
        """The save to go on from, the lines logged by then put back; None to begin the part from its beginning."""
        save = self._newest()
        if save is None or save.part != part:
            return None
        self._finished = list(save.finished)
        self.track.restore(save.folder, json.loads((save.folder / "state.json").read_text(encoding="utf-8"))["track"])
        self.track.say(f"{self.track.step} goes on from save {save.number}")
        self.note("resume", number=save.number, part=part)
        self._loaded = None
        return save

    def _newest(self) -> Save | None:
        """The newest save that verifies. Found once: what this life writes, it does not go back to."""
        if not self._looked and team.size() == 1:
            self._looked = True
            for left in self.folder.glob(".save-*.partial"):
                shutil.rmtree(left)
            for number, folder in self._folders():
                problem = self._problem(folder, number)
                if problem is None:
                    place = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                    self._loaded = Save(folder, number, place["part"], tuple(place["finished"]), place["state"])
                    break
                self._complain(folder, problem, "going back to the one before it, or to the beginning")
                if self.strict:
                    raise MissingError(
                        f"{shown(folder)} is damaged: {problem}",
                        where="--strict",
                        hints=["without --strict the save before it is taken", f"or delete {shown(self.folder)}"],
                    )
                shutil.rmtree(folder)
        return self._loaded

    def _problem(self, folder: Path, number: int) -> str | None:
        """What is wrong with a save, every byte compared, or None."""
        try:
            manifest = read_manifest(folder)
        except MissingError as error:
            return error.what
        if manifest.get("fingerprint") != self.key:
            return "it was made from other settings, inputs or code"
        if manifest.get("number") != number:
            return f"it is save {manifest.get('number')} under another name"
        if problem := unsound(folder, manifest):
            return problem
        for name, digest in manifest["outputs"].items():
            if not (self.out / name).is_file() or file_digest(self.out / name) != digest:
                return f"{name}, which was finished before it, is not as it was"
        return None

    def _complain(self, folder: Path, problem: str, then: str) -> None:
        self.track.say(f"warning: {folder.name} of {self.track.step} is damaged: {problem}; {then}")
        self.note("damaged save", save=folder.name, reason=problem)

    def _folders(self) -> list[tuple[int, Path]]:
        """Committed saves, newest first."""
        found = [(int(path.name[5:]), path) for path in self.folder.glob("save-[0-9]*") if path.name[5:].isdigit()]
        return sorted(found, reverse=True)

    def _outputs(self) -> dict[str, str]:
        """What finished parts have left in the stage's folder, made durable, by SHA-256; each file is read once."""
        if not self._finished:
            return {}
        found = {}
        for path in sorted(self.out.rglob("*")):
            name = path.relative_to(self.out).as_posix()
            if path.is_dir() and not name.startswith("resume"):
                sync(path)
            if path.is_dir() or name.startswith("resume/") or name in NAMES:
                continue
            facts = path.stat()
            known = (name, facts.st_size, facts.st_mtime_ns)
            if known not in self._digests:
                sync(path)
                self._digests[known] = file_digest(path)
            found[name] = self._digests[known]
        return found
