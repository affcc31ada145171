"""The real W&B, offline: its record is read back, row by row, after a kill, too."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lives
import pytest
from rich.console import Console

from rlhf.tracking.lineage import Lineage, Origin
from rlhf.tracking.metrics import METRICS
from rlhf.tracking.track import Tracker

pytest.importorskip("wandb")
pytestmark = pytest.mark.timeout(300)

DATA = Origin("data", "our pairs", "/data/pairs.jsonl", "1" * 64)
SFT = Origin("sft", "tiny-sft", "/runs/tiny/sft", "2" * 64)
PPO = Origin("ppo", "tiny-ppo", "/runs/tiny/ppo", "3" * 64)
NAMES = [metric.name.replace("*", "sft") for metric in METRICS if metric.name != "*_histogram"]
ROWS = 6


def live(folder: Path, rows: int) -> Tracker:
    """One life of a step: `rows` rows with every metric of the dictionary, and two prompts beside every second."""
    out = folder / "tiny" / ".ppo.partial"
    out.mkdir(parents=True, exist_ok=True)
    console = Console(file=io.StringIO())
    track = Tracker(
        out, run="tiny", step="ppo", wandb_mode="offline", lineage=Lineage([DATA, SFT], PPO), console=console
    )
    for n in range(rows):
        for k in range(2 if n % 2 == 0 else 0):
            track.sample({"prompt": f"prompt {k}", "text": f"answer {n}", "score": n + k / 2})
        track.log({**dict.fromkeys(NAMES, n / 8), "reward/combined_histogram": [0.0, 1.0, 3.0]}, step=10 * n)
    return track


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which a step was killed after four of six rows, and then done."""
    import wandb

    folder = tmp_path_factory.mktemp("wandb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = f"import os, test_wandb_record as t; t.live(t.Path({str(folder)!r}), 4); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", killed], cwd=Path(__file__).parent, env=environment, check=False)
    assert done.returncode == -9
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder))
        with live(folder, ROWS):
            pass
        wandb.teardown()
    return folder


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Any]:
    """Everything the offline files say, whichever life wrote them."""
    paths = sorted((folder / "tiny").glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    return [record for path in paths for record in read(path)]


def read(path: Path) -> list[Any]:
    """The records of an offline file."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for entry in entries(path):
        record = Record()
        record.ParseFromString(entry)
        found.append(record)
    return found


def entries(path: Path) -> Iterator[bytes]:
    """The records of an offline file: LevelDB's log format (blocks of 32 KiB, 7 bytes of header) after 7 bytes."""
    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 < len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def history(records: list[Any]) -> list[dict[str, Any]]:
    rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items} for items in rows]


def test_every_metric_of_the_dictionary_is_there_once_at_its_step(records: list[Any]) -> None:
    rows = history(records)
    assert [row["step"] for row in rows] == [10 * n for n in range(ROWS)]
    seconds = {"time", "time/tokens_per_second", "mem/peak_mb"}  # measured, not given
    for n, row in enumerate(rows):
        assert [name for name in NAMES if name not in row] == []
        assert {row[name] for name in NAMES if name not in seconds} == {n / 8}
    # The server keeps one row for a number: none may come twice, and none may fall behind.
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})


def test_every_metric_has_the_step_for_its_axis(records: list[Any]) -> None:
    defined = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    axes = {metric.glob_name: metric.step_metric for metric in defined if metric.glob_name}
    assert all(any(fnmatchcase(name, glob) and axis == "step" for glob, axis in axes.items()) for name in NAMES)
    assert {metric.name for metric in defined if metric.options.hidden} >= {"step"}


def test_histograms_have_their_counts_and_edges(records: list[Any]) -> None:
    for row in history(records):
        # 0, 1 and 3 in 30 bins of 0.1: the first, the eleventh, the last.
        counts = row["reward/combined_histogram.values"]
        assert {i: n for i, n in enumerate(counts) if n} == {0: 1, 10: 1, 29: 1}
        bins = row["reward/combined_histogram.bins"]
        assert (bins[0], bins[-1]) == pytest.approx((0, 3))


def test_the_sample_tables_have_every_row_once(folder: Path, records: list[Any]) -> None:
    paths = [row["samples.path"] for row in history(records) if "samples.path" in row]
    tables = [
        json.loads(file.read_text())
        for path in paths
        for file in (folder / "tiny").glob(f"wandb/offline-run-*/files/{path}")
    ]
    assert {tuple(table["columns"]) for table in tables} == {("step", "prompt", "text", "score")}
    assert [row for table in tables for row in table["data"]] == [
        [10 * n, f"prompt {k}", f"answer {n}", n + k / 2] for n in range(0, ROWS, 2) for k in range(2)
    ]


def test_one_run_says_what_it_read_and_what_it_made_by_reference(records: list[Any]) -> None:
    runs = {record.run.run_id for record in records if record.WhichOneof("record_type") == "run"}
    assert len(runs) == 1
    found = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    lineage = [artifact for artifact in found if artifact.type in ("data", "sft", "ppo")]
    assert [(a.type, a.name, a.use_after_commit) for a in lineage] == [
        ("data", "our-pairs", True),
        ("sft", "tiny-sft", True),
        ("ppo", "tiny-ppo", False),
    ]
    for artifact, origin in zip(lineage, (DATA, SFT, PPO), strict=True):
        (entry,) = artifact.manifest.contents
        assert entry.ref == f"rlhf:{origin.place}?version={origin.version}"
        assert not entry.local_path  # nothing of it is uploaded


@pytest.mark.slow
def test_a_stage_killed_and_resumed_leaves_one_record_of_its_files(tmp_path: Path) -> None:
    """The oracle is metrics.jsonl, whose own exactness over kills tests/test_lives.py holds."""
    small = [word for word in lives.SMALL if word != "wandb=disabled"]
    command = [sys.executable, "-m", "rlhf", "run", *small, "wandb=offline", "save_every=0s", "stage=base"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "RLHF_RUNS"))}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(lives.ROOT), "OMP_NUM_THREADS": "1"}
    metrics = tmp_path / "runs" / "tiny" / ".base.partial" / "metrics.jsonl"
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as killed:
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "base goes on from save" in done.stdout
    run = tmp_path / "runs" / "tiny"
    (record,) = run.glob("wandb/offline-run-*/*.wandb")
    logged = [json.loads(line) for line in (run / "base" / "metrics.jsonl").read_text().splitlines()]
    sent = history(read(record))
    assert [{name: row[name] for name in logged[n]} for n, row in enumerate(sent)] == logged
    assert [row["_step"] for row in sent] == list(range(1, len(logged) + 1))
