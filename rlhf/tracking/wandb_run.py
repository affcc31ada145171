"""Weights & Biases: one run for every step, with its metrics, samples, and what it was made from.

This is the one door to `wandb`.
"""

from __future__ import annotations

import hashlib
import json
import netrc
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from rlhf.planning.steps import stage_of
from rlhf.reporting.text import redact
from rlhf.tracking.histogram import edges
from rlhf.tracking.lineage import Lineage, Origin
from rlhf.tracking.mirror import first_line

WandbMode = Literal["auto", "online", "offline", "disabled"]

START_SECONDS = 2.5  # with the import and the way back to offline, a dead server costs less than 5 s
FINISH_SECONDS = 30.0
SAMPLES_SENT = "samples/sent"


class WandbRun:
    """A run of its own in Weights & Biases: of one step with one fingerprint, in whichever life."""

    name = "wandb"
    # A server that did not answer one step of this process will not be waited for again by the next.
    _unreachable = False

    def __init__(
        self,
        mode: WandbMode,
        run_folder: Path,
        run: str,
        step: str,
        *,
        config: Mapping[str, Any],
        fingerprint: str,
        lineage: Lineage | None,
        say: Callable[[str], None],
    ) -> None:
        self._mode = mode_of(mode)
        self._folder, self._run, self._step = run_folder, run, step
        self._config, self._lineage, self._say = config, lineage, say
        self._id = hashlib.sha256(f"{run}/{step}/{fingerprint}".encode()).hexdigest()[:16]
        self._handle: Any = None
        self._table: Any = None
        self._samples = 0

    def open(self) -> tuple[int, int]:
        """Begin it, or go on with it: what the server has is not sent again; what is offline is written anew."""
        handle = self._handle = self._start()
        for hidden in ("step", SAMPLES_SENT):
            handle.define_metric(hidden, hidden=True)
        handle.define_metric("*", step_metric="step", summary="min,max,last")
        for origin in self._lineage.reads if self._lineage else ():
            # What `use_artifact` does with an artefact that is new to W&B, which it refuses to do offline.
            handle._log_artifact(_by_reference(origin), use_after_commit=True, is_user_created=True)
        self._samples = int(handle.summary.get(SAMPLES_SENT, 0)) if handle.resumed else 0
        return (handle.step - 1 if handle.resumed else 0), self._samples

    def log(self, row: Mapping[str, Any], *, number: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Send a row under its number: W&B itself would count from 0 again in every life."""
        import wandb

        sent = {
            name: wandb.Histogram(np_histogram=(value["counts"], edges(value))) if isinstance(value, Mapping) else value
            for name, value in row.items()
        }
        if samples:
            self._samples += len(samples)
            sent |= {"samples": self._filled(row["step"], samples), SAMPLES_SENT: self._samples}
        self._handle.log(sent, step=number, commit=True)

    def _filled(self, step: int, samples: Sequence[Mapping[str, Any]]) -> Any:
        """The table with these rows added; its columns are the fields of the first sample."""
        import wandb

        if self._table is None:
            self._table = wandb.Table(columns=["step", *samples[0]], log_mode="INCREMENTAL")
        for sample in samples:
            self._table.add_data(step, *(_cell(sample.get(name)) for name in self._table.columns[1:]))
        return self._table

    def close(self, *, finished: bool) -> None:
        if finished and self._lineage:
            self._handle.log_artifact(_by_reference(self._lineage.makes))
        self._handle.finish()

    def _start(self) -> Any:
        if self._mode == "online" and not WandbRun._unreachable:
            try:
                handle = self._init("online", self._id)
            except Exception as error:
                WandbRun._unreachable = True
                self._say(f"wandb cannot be reached ({first_line(error)}): offline, `rlhf sync` sends it later")
            else:
                self._say(f"wandb: {handle.url}")
                return handle
            # The service keeps the id of the attempt that failed until the process ends.
            return self._init("offline", f"{self._id}-offline")
        return self._init("offline", self._id)

    def _init(self, mode: Literal["online", "offline"], run_id: str) -> Any:
        import wandb  # half a second, paid by those who log

        if mode == "offline":
            for former in (self._folder / "wandb").glob(f"offline-run-*-{run_id}"):
                if not list(former.glob("*.synced")):
                    shutil.rmtree(former)
        settings = wandb.Settings(
            init_timeout=START_SECONDS,
            login_timeout=START_SECONDS,
            finish_timeout=FINISH_SECONDS,
            console="off",
            silent=True,
            quiet=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        wandb.setup(settings)
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "rlhf"),
            group=self._run,
            job_type=stage_of(self._step),
            name=f"{self._run}/{self._step}",
            id=run_id,
            resume="allow",
            reinit="create_new",
            mode=mode,
            dir=self._folder,
            config=redact(self._config),
            settings=settings,
        )


def mode_of(mode: WandbMode) -> str:
    """`auto` is what WANDB_MODE says, else online when logged in, and offline otherwise."""
    if mode == "auto":
        return os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    return mode


def logged_in() -> bool:
    """True if W&B has a key: in WANDB_API_KEY, or under its host in a netrc file. Asks no network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if host in netrc.netrc(path).hosts:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _by_reference(origin: Origin) -> Any:
    """An artefact that says where it lies and in which version; no byte of it is sent."""
    import wandb

    name = re.sub(r"[^\w.-]", "-", origin.name)
    artefact = wandb.Artifact(name, type=origin.kind, metadata={"place": origin.place, "version": origin.version})
    artefact.add_reference(f"rlhf:{quote(origin.place)}?version={origin.version}", name=name)
    return artefact


def _cell(value: Any) -> Any:
    """A column of a table holds one type: numbers stay numbers, all else is text."""
    return value if isinstance(value, int | float | str | None) else json.dumps(value, ensure_ascii=False)
