"""Trackio's store, read back: every point once at its step, after a kill, too; nothing leaves the machine."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys

import pytest
from rich.console import Console

from rlhf.tracking.track import Tracker

# Read by another process, as a dashboard would: where its store is, Trackio asks when it is imported.
READER = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps([SQLiteStorage.get_runs("tiny"), SQLiteStorage.get_logs("tiny", "ppo")]))
"""


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    """Trackio, looking into this test's folder, with every connection refused."""
    folder = tmp_path / "tiny" / "trackio"
    monkeypatch.setenv("TRACKIO_DIR", str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    found = pytest.importorskip("trackio")

    def refused(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refused)
    yield found
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)


def test_the_store_has_every_metric_histogram_and_sample_once(trackio, logged_twice, capfd) -> None:
    logged_twice(trackio=True)
    said = capfd.readouterr()
    assert "rackio" not in said.out + said.err

    reader = subprocess.run([sys.executable, "-c", READER], capture_output=True, text=True, check=True)
    runs, rows = json.loads(reader.stdout)
    assert runs == ["ppo"]
    assert [(row["step"], row["objective/kl"]) for row in rows] == [(10 * n, n / 4) for n in range(6)]
    assert all(sum(row["reward/combined_histogram"]["values"]) == 4 for row in rows)
    assert rows[0]["reward/combined_histogram"]["bins"][0::30] == [0.0, 3.0]
    assert [json.loads(row["samples"]["_value"])["iteration"] for row in rows] == list(range(6))


@pytest.mark.parametrize(
    ("variable", "said"),
    [("TRACKIO_SPACE_ID", "TRACKIO_SPACE_ID is set"), (None, "not installed: pip install 'rlhf[trackio]'")],
)
def test_it_is_left_out_with_the_reason(tmp_path, monkeypatch, variable, said) -> None:
    monkeypatch.setenv("TRACKIO_DIR", "")
    if variable:
        monkeypatch.setenv(variable, "me/space")
    else:
        monkeypatch.setitem(sys.modules, "trackio", None)
    out, screen = tmp_path / "tiny" / "sft", io.StringIO()
    out.mkdir(parents=True)
    with Tracker(out, run="tiny", step="sft", trackio=True, console=Console(file=screen, width=200)) as track:
        track.log({"sft/loss": 1.0}, step=1)
    assert f"trackio is left out of sft ({said}" in screen.getvalue()
