"""Two processes over gloo prepare what they train on: the rows of one process, each text encoded once over both."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from rlhf.data import chat
from rlhf.data.tokenizer import train_tokenizer
from rlhf.data.types import Dialogue, Turn
from rlhf.errors import DataError
from rlhf.processes import team
from rlhf.schema import Recipe
from rlhf.training import finetune
from stages import reward

team.call("hello")
tokenizer = train_tokenizer(["how do i open the door ? take the key and open it . no !"] * 3, vocab_size=300)
data = [{"name": kind, "kind": kind, "path": f"{kind}.jsonl"} for kind in ("helpfulness", "safety")]
section = {"data": data, "margin_ablation": ["large"], "unrated_margin": 0.0, "helpfulness_share": 1.0}
given = {"stages": ["sft"], "model": {"max_length": 64}, "data": {"test_share": 0.2, "too_long": sys.argv[1]}}
recipe = Recipe.model_validate({**given, "reward": section})
encoded, seen, real = 0, {}, chat._exchange

def counted(*given):
    global encoded
    encoded += 1
    return real(*given)

def job_of(stage):
    out = Path(f"runs/{stage}.{team.rank()}-of-{team.size()}")
    out.mkdir(parents=True, exist_ok=True)
    said = seen.setdefault("said", [])
    return SimpleNamespace(
        config=getattr(recipe, stage), recipe=recipe, name=stage, stage=stage, out=out, seed=7, saves=None,
        one=lambda token: out, every=lambda token: (), track=SimpleNamespace(say=said.append),
        write_results=lambda values: None,
    )

def fit(job, name, domain, pairs, tokenizer):
    seen[name] = [repr(pair) for pair in pairs]
    return reward.Batching("two rows", 0, 0.0, 0.0)

def report(job, trained_on, test):
    seen["test"] = {name: [row.id for row in rows] for name, rows in test.items()}
    seen["trained on"] = {name: [row.id for row in rows] for name, rows in trained_on.items()}
    return {"helpfulness": {}, "safety": {}}

def fit_lm(policy, tokenizer, packed, *more, **options):
    seen["packed"] = [asdict(row) for row in packed]

chat._exchange, reward.fit, reward.report, finetune.fit_lm = counted, fit, report, fit_lm
reward.load_tokenizer = lambda path: tokenizer
rows = [
    Dialogue(f"d{i}", (Turn("user", f"how {i} ?"), Turn("assistant", "take the key " * (i % 7))), "mine")
    for i in range(1, 60) if i % 7
]
try:
    reward.run(job_of("reward"))
    finetune.fine_tune(None, tokenizer, rows, job_of("sft"))
except DataError as error:
    seen["error"] = [error.what, error.where]
found = {"said": seen.pop("said"), "rows": seen, "encoded": encoded}
Path(f"found-{team.rank()}").write_text(json.dumps(found))
"""


def run(folder, size, too_long="truncate_left"):
    """What each of the processes saw."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    machine = folder / "machine"
    machine.mkdir(exist_ok=True)
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "ACCELERATE_USE_CPU": "true",
    }
    environment = {**os.environ, **place, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(machine)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, too_long],
            cwd=folder,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]
    try:
        assert [process.wait(timeout=200) for process in running] == [0] * size
    finally:
        for process in running:
            process.kill()
    return [json.loads((folder / f"found-{rank}").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs of both kinds; some are longer than the context."""
    folder = tmp_path_factory.mktemp("pairs")
    for kind in ("helpfulness", "safety"):
        rows = [
            {"prompt": f"how {i} {kind} ? " * (1 + 5 * (i % 11 == 0)), "chosen": f"take key {i} .", "rejected": "no !"}
            for i in range(60)
        ]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.distributed
def test_two_processes_encode_once_what_one_encodes(folder):
    (alone,), (first, second) = run(folder, 1), run(folder, 2)
    assert first["rows"] == second["rows"] == alone["rows"]
    assert {len(alone["rows"][name]) > 40 for name in ("helpfulness", "safety", "helpfulness-large")} == {True}
    assert len(alone["rows"]["packed"]) > 5
    assert (first["encoded"], second["encoded"]) == (alone["encoded"], 0)
    assert first["said"] == alone["said"]  # nothing that a reader is told of rows is lost
    assert any(line.startswith("too long: ") for line in first["said"])
    assert not list((folder / "machine").glob("rlhf-*"))


@pytest.mark.distributed
def test_a_pair_that_is_too_long_is_named_by_both(folder):
    (alone,), both = run(folder, 1, "error"), run(folder, 2, "error")
    what, where = alone["rows"]["error"]
    assert what.endswith("tokens, the context holds 64")
    assert where.startswith("pair helpfulness:")
    assert [found["rows"]["error"] for found in both] == [[what, where]] * 2
