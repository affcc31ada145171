"""A step that is logged by two lives, the second from its beginning: what copies of it are read back for."""

import io

import pytest
from rich.console import Console

from rlhf.tracking.track import Tracker

SPREAD = [0.0, 1.0, 1.0, 3.0]


@pytest.fixture
def logged_twice(tmp_path):
    """Three iterations, then six from the beginning, with the copies that are asked for; the run's folder."""

    def log(**copies):
        out = tmp_path / "tiny" / ".ppo.partial"
        out.mkdir(parents=True)
        for lasts in (3, 6):  # the second life begins anew, and so does its copy
            track = Tracker(out, run="tiny", step="ppo", console=Console(file=io.StringIO()), **copies)
            for n in range(lasts):
                track.sample({"iteration": n, "prompt": "p", "text": "<b>hostile</b>"})
                track.log({"objective/kl": n / 4, "reward/combined_histogram": SPREAD}, step=10 * n)
            track.close()
        return out.parent

    return log
