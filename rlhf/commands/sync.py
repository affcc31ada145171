"""`rlhf sync`: send to W&B what a run wrote while offline. Nothing is sent before."""

from __future__ import annotations

import os
import subprocess
import sys

from rlhf.checkpoint import shown
from rlhf.commands.request import Request
from rlhf.errors import MissingError, RlhfError


def main(request: Request) -> int:
    """rlhf sync."""
    exit_code = send(request)
    if entity := request.options.get("dashboard"):
        from rlhf.tracking.workspace import workspace

        made = workspace(entity, os.environ.get("WANDB_PROJECT", "rlhf")).save()
        print(f"dashboard: {made.url}")
    return exit_code


def send(request: Request) -> int:
    """Send every offline run that was not sent yet."""
    from rlhf.tracking.wandb_run import logged_in

    run_dir = request.load().run_dir
    waiting = [path for path in sorted((run_dir / "wandb").glob("offline-run-*")) if not list(path.glob("*.synced"))]
    if not waiting:
        print(f"nothing waits in {shown(run_dir / 'wandb')}")
        return 0
    if not logged_in():
        raise MissingError("not logged in to W&B", hints=["wandb login", "or set WANDB_API_KEY"])
    for path in waiting:
        done = subprocess.run([sys.executable, "-m", "wandb", "sync", str(path)], check=False)
        if done.returncode:
            raise RlhfError(f"{shown(path)} was not sent", hints=["what is sent already stays; give the command again"])
    print(f"sent {len(waiting)} of {len(waiting)}")
    return 0
