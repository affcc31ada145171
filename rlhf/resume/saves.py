"""What a killed stage goes on from: `resume/`, its state at some steps, each written whole and verified when read.

A save is a folder: `state.json` and `state.safetensors`, the lines logged so far, and a manifest with the SHA-256 of
each. It is written under a hidden name, made durable, renamed, read back, and only then are older ones pruned; two
stay. Saves are by time.

Several processes save together. What is alike on all of them the first one writes, with the lines and the manifest;
what each holds alone (its random numbers, its part of a model that is cut) it writes itself, as `own-RANK`. Torch-free,
but for the tensors of who has some.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from rlhf.checkpoint import read_manifest, seal, shown, sync, unsound
from rlhf.disk import written
from rlhf.errors import MissingError
from rlhf.processes import engine, team
from rlhf.provenance.fingerprint import file_digest
from rlhf.resume.preemption import Stop
from rlhf.resume.shards import afresh, keeping
from rlhf.resume.streams import NAMES

if TYPE_CHECKING:
    from rlhf.resume.state import Stateful
    from rlhf.tracking.track import Tracker

KEPT = 2
SHARE = 0.02
"""Of the time at most this share goes into saving: after a save that took c seconds, the next waits for c / SHARE."""

Note = Callable[..., None]


@dataclass(frozen=True)
class Save:
    """One save: its place, what part of the stage it was made in, which parts were finished, by how many, and how."""

    folder: Path
    number: int
    part: str
    finished: tuple[str, ...]
    tokens: tuple[int, ...]
    """What each process had counted."""
    seconds: float
    engine: str
    """What spread the model over them."""

    @classmethod
    def read(cls, folder: Path, number: int) -> Save:
        """A save that was verified."""
        place = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        finished, tokens = tuple(place["finished"]), tuple(place["tokens"])
        return cls(folder, number, place["part"], finished, tokens, place["seconds"], place["engine"])

    @property
    def alike(self) -> bool:
        """Whether as many processes go on as made it, and their engine cuts a model as theirs did."""
        return (len(self.tokens), self.engine) == (team.size(), engine.named())

    def state(self) -> Any:
        """What was alike on all processes."""
        return self._held("state")

    def own(self) -> Any:
        """What this process held alone; None where others made the save than go on from it."""
        return self._held(f"own-{team.rank()}") if self.alike else None

    def refused(self, step: str, *, held: str) -> MissingError:
        """Of the models each process held so much, and those that would go on do not."""
        return MissingError(
            f"save {self.number} was made by {len(self.tokens)} processes that each held {held}",
            where=step,
            hints=[
                f"go on with as many, under {self.engine}",
                f"or begin the step anew: delete {shown(self.folder.parent)}",
            ],
        )

    def _held(self, name: str) -> Any:
        from safetensors.torch import load_file

        from rlhf.resume.state import unpack

        value = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))["held"]
        tensors = self.folder / f"{name}.safetensors"
        return unpack(value, load_file(tensors) if tensors.exists() else {})


class Saves:
    """The saves of one step.

    Args:
        out: the folder the stage works in; saves live in its `resume/`.
        key: fingerprint of the step; a save of any other is refused.
        track: whose lines belong to the state.
        every: seconds between saves, 0 for one after every step whatever it costs.
        stop: a run that was asked to stop saves at once, then leaves.
        home: the folder the leading process works in, if this is another one; `out` without it.
        strict: a save that is damaged stops the run instead of being passed over.
        note: told of what the run's journal should have.
    """

    def __init__(
        self,
        out: Path,
        *,
        key: str,
        track: Tracker,
        every: float,
        stop: Stop,
        strict: bool = False,
        note: Note,
        home: Path | None = None,
    ) -> None:
        self.out, self.home, self.key, self.track, self.every = out, home or out, key, track, every
        self.folder = self.home / "resume"
        self.stop, self.strict, self.note = stop, strict, note
        self.iteration: int | None = None
        """Of the loop that `range` is in, from 1."""
        self._since, self._cost = monotonic(), 0.0
        self._finished: list[str] = []
        self._digests: dict[tuple[str, int, int], str] = {}
        self._loaded: Save | None = None
        self._looked = False

    # --- writing ---

    def due(self) -> bool:
        """Whether the step that was just made should be saved; asked by all processes, answered alike."""
        wait = max(self.every, self._cost / SHARE) if self.every else 0.0
        asked, late = team.any_of(self.stop.asked, monotonic() - self._since >= wait)
        self.stop.asked = asked
        return asked or late

    def write(self, part: str, state: Any, own: Any = None) -> None:
        """Save a part of the stage, durably; PreemptedError then, if the run was asked to stop.

        All processes call it together; `state` is the same on all of them, `own` is what this one holds alone.
        """
        began = monotonic()
        number = int(team.call(str(self._next())) or 0)
        final, draft = self.folder / f"save-{number:06d}", self.folder / f".save-{number:06d}.partial"
        place = {"part": part, "finished": self._finished, "tokens": team.gathered([self.track.tokens])}
        place["engine"] = engine.named()
        leads = team.rank() == 0

        def begin() -> None:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            self.track.streams.store(draft)
            _store(draft, "state", state, **place, seconds=self.track.seconds())

        def end() -> None:
            seal(draft, {"fingerprint": self.key, "number": number, "outputs": self._outputs()})

        if leads:
            written(begin, draft)
        team.meet()
        written(lambda: _store(draft, f"own-{team.rank()}", own), draft)
        team.meet()
        if leads:
            written(end, draft)
            draft.rename(final)
            sync(self.folder)
            self._prune(final, number)
        team.meet()  # nobody leaves before the save is whole: a launcher that sees one leave ends the others
        self._since, self._cost = monotonic(), monotonic() - began
        self.note("save", number=number, part=part, seconds=round(self._cost, 3))
        self.stop.leave(self.track.step)

    def _prune(self, final: Path, number: int) -> None:
        """Read back what was written; only if it is whole the ones before it go, all but one."""
        problem = self._problem(final, number)
        if problem is None:
            for _, old in self._folders()[KEPT:]:
                shutil.rmtree(old)
        else:
            self._complain(final, problem, "the ones before it are kept")

    def _next(self) -> int:
        return max([0, *(found for found, _ in self._folders())]) + 1

    def finish(self, part: str) -> None:
        """This part of the stage is over; a save of a later part vouches for the files it left."""
        self._finished.append(part)

    def range(
        self,
        n: int,
        *,
        part: str = "loop",
        skipped: Callable[[int], None] = lambda n: None,
        cut: bool = False,
        **things: Stateful,
    ) -> Iterator[int]:
        """`range(n)` that goes on where a killed run was; `things` are saved after an iteration and put back before.

        Where they are `cut` each process holds its parts of them and saves those; else they are the same on all.
        """
        from rlhf.resume.state import random_state, set_random_state

        start, save = 0, self.begin(part)
        if save is not None:
            held, own = save.state(), save.own() or {}
            states = (own if cut else held).get("things")
            if states is None:
                raise save.refused(self.track.step, held="a part" if "things" not in held else "all of it")
            start = held["next"]
            for name, thing in things.items():
                thing.load_state_dict(states[name])
            if own:
                set_random_state(own["random"])
            skipped(start)
        with self.stop.patience(), keeping(afresh):
            for i in range(start, n):
                self.iteration = i + 1
                yield i
                if self.due():
                    state: dict[str, Any] = {"next": i + 1}
                    own = {"random": random_state()}
                    (own if cut else state)["things"] = {name: thing.state_dict() for name, thing in things.items()}
                    self.write(part, state, own)
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
        # Where other processes go on than those that counted, the first takes it all over.
        tokens = save.tokens[team.rank()] if save.alike else sum(save.tokens) * (team.rank() == 0)
        self.track.restore(save.folder, tokens=tokens, seconds=save.seconds)
        by = "" if save.alike else f", made by {len(save.tokens)} processes: its last bits may differ"
        self.track.say(f"{self.track.step} goes on from save {save.number}{by}")
        self.note("resume", number=save.number, part=part)
        self._loaded = None
        return save

    def _newest(self) -> Save | None:
        """The newest save that verifies, found once: what this life writes, it does not go back to."""
        if not self._looked:
            self._looked = True
            number = int(team.call(str(self._sound() if team.rank() == 0 else 0)) or 0)
            if number:
                self._loaded = Save.read(self.folder / f"save-{number:06d}", number)
                self._link(read_manifest(self._loaded.folder)["outputs"])
        return self._loaded

    def _sound(self) -> int:
        """The number of the newest save without damage, 0 if there is none; what is damaged is cleared."""
        for left in self.folder.glob(".save-*.partial"):
            shutil.rmtree(left)
        for number, folder in self._folders():
            problem = self._problem(folder, number)
            if problem is None:
                return number
            self._complain(folder, problem, "going back to the one before it, or to the beginning")
            if self.strict:
                raise MissingError(
                    f"{shown(folder)} is damaged: {problem}",
                    where="--strict",
                    hints=["without --strict the save before it is taken", f"or delete {shown(self.folder)}"],
                )
            shutil.rmtree(folder)
        return 0

    def _link(self, finished: Iterable[str]) -> None:
        """The models that finished parts have left in the leader's folder, also in that of a process with another."""
        for name in finished if self.home != self.out else ():
            if name.startswith("checkpoint/"):
                (self.out / name).parent.mkdir(parents=True, exist_ok=True)
                (self.out / name).symlink_to((self.home / name).absolute())

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


def _store(draft: Path, name: str, held: Any, **place: Any) -> None:
    """A process's two files of a save, durable: the one that seals it may be on another machine."""
    from safetensors.torch import save_file

    from rlhf.resume.state import pack

    value, tensors = pack(held)
    (draft / f"{name}.json").write_text(json.dumps({**place, "held": value}), encoding="utf-8")
    sync(draft / f"{name}.json")
    if tensors:
        save_file(tensors, draft / f"{name}.safetensors")
        sync(draft / f"{name}.safetensors")
