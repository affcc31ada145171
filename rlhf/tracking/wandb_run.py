"""Weights & Biases: one run for every step of ours, a copy of its metrics, left out at the first fault.

This is the one door to `wandb`.
"""

from __future__ import annotations

import hashlib
import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from rlhf.reporting.text import redact

WandbMode = Literal["auto", "online", "offline", "disabled"]

START_SECONDS = 2.5  # with the import and the way back to offline, a dead server costs less than 5 s
FINISH_SECONDS = 30.0


class WandbRun:
    """A copy of the metrics in Weights & Biases, begun with the first metric and given up at the first fault."""

    # A server that did not answer one step of this process will not be waited for again by the next.
    _unreachable = False

    def __init__(
        self,
        mode: WandbMode,
        run_folder: Path,
        run: str,
        step: str,
        *,
        job_type: str,
        config: Mapping[str, Any],
        fingerprint: str,
        say: Callable[[str], None],
    ) -> None:
        self._mode: str = mode if mode != "auto" else os.environ.get("WANDB_MODE", "")
        self._folder, self._run, self._step, self._job_type = run_folder, run, step, job_type
        self._config, self._say = config, say
        self._id = hashlib.sha256(f"{run}/{step}/{fingerprint}".encode()).hexdigest()[:16]
        self._handle: Any = None

    def log(self, row: Mapping[str, float], *, number: int) -> None:
        """Send a row; `number` is its place among all rows of the step, in whichever life they were logged.

        W&B counts rows by itself, from 0 in every offline file, and drops what comes again under a number it has seen:
        a killed and resumed step would lose its second life when it is sent.
        """
        if self._mode == "disabled":
            return
        try:
            if self._handle is None:
                self._handle = self._start()
            self._handle.log(dict(row), step=number, commit=True)
        except Exception as error:  # whatever it raises, a tracker must not stop a training run
            self._give_up(error)

    def close(self) -> None:
        """Finish, if it was begun."""
        if self._handle is None:
            return
        try:
            self._handle.finish()
        except Exception as error:
            self._give_up(error)
        self._handle = None

    def _give_up(self, error: Exception) -> None:
        self._mode, self._handle = "disabled", None
        self._say(f"wandb is left out of {self._step} ({_first_line(error)}); metrics.jsonl has everything")

    def _start(self) -> Any:
        mode = self._mode or ("online" if logged_in() else "offline")
        if mode == "online" and not WandbRun._unreachable:
            try:
                handle = self._init("online", self._id)
            except Exception as error:
                WandbRun._unreachable = True
                self._say(f"wandb cannot be reached ({_first_line(error)}): offline, `wandb sync` sends it later")
            else:
                self._say(f"wandb: {handle.url}")
                return handle
            # The service keeps the id of the attempt that failed until the process ends.
            return self._init("offline", f"{self._id}-offline")
        return self._init("offline", self._id)

    def _init(self, mode: Literal["online", "offline"], run_id: str) -> Any:
        import wandb  # half a second, paid by those who log

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
        handle = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "rlhf"),
            group=self._run,
            job_type=self._job_type,
            name=f"{self._run}/{self._step}",
            id=run_id,
            resume="allow",
            reinit="create_new",
            mode=mode,
            dir=self._folder,
            config=redact(self._config),
            settings=settings,
        )
        handle.define_metric("*", step_metric="step")
        return handle


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


def _first_line(error: Exception) -> str:
    return str(redact(str(error).strip().split("\n")[0])) or type(error).__name__
