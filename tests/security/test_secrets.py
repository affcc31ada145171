"""Secrets of every kind, put wherever a run could pick them up: none is in any byte of what the run leaves or says."""

import gzip
import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from rlhf.cli import main
from rlhf.planning.steps import Stage
from rlhf.reporting.text import redact

# Made up, in the shape of the real ones. Where each is put is said in `world`.
CANARIES = {
    "HF_TOKEN": "hf_" + "CanaryHubTokenAbcDefGhiJklMnoPqrSt",
    "WANDB_API_KEY": "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee01",
    "OPENAI_API_KEY": "sk-proj-Canary4AbCdEfGhIjKlMnOpQr",
    "AWS_SECRET_ACCESS_KEY": "wJalrCanary/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "GITHUB_TOKEN": "ghp_CanaryCanaryCanaryCanaryCanary123456",
    "DB_PASSWORD": "correct-horse-canary-staple",
    "MY_SECRET": "an-ordinary-looking-canary-word",
    "printed": "hf_PrintedCanaryPrintedCanaryPrinted12",
    "raised": "github_pat_RaisedCanary0123456789abcdef",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOnRydWV9.c2lnbmVkQ2FuYXJ5",
    "url": "https://canary:SwordfishCanary@host.invalid/x",
    "netrc": "netrc-canary-0123456789-password",
    "argument": "hf_ArgumentCanaryArgumentCanaryArgum34",
    "setting": "hf_SettingCanarySettingCanarySettin567",
}
ENVIRONMENT = (
    "HF_TOKEN",
    "WANDB_API_KEY",
    "OPENAI_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN",
    "DB_PASSWORD",
    "MY_SECRET",
)

TALKS = """
import os
def run(job):
    job.track.say("logging in with {printed} and {jwt}, from {url}")
    job.track.say("as " + os.environ["MY_SECRET"] + " " + os.environ["DB_PASSWORD"])
    job.track.log({{"loss": 1.0}}, step=0)
    job.write_results({{"samples": []}})
    (job.out / "text").write_text("a")
"""
FAILS = """
import os
def run(job):
    job.track.log({{"loss": 1.0}}, step=0)
    raise ValueError("refused: {raised} at {url}, key " + os.environ["AWS_SECRET_ACCESS_KEY"])
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A run of two stages that talk too much, on a machine full of secrets, with W&B offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RLHF_RUNS", raising=False)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, CANARIES[name])
    monkeypatch.setenv("HTTPS_PROXY", CANARIES["url"])
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {CANARIES['netrc']}\n")
    monkeypatch.setattr(sys, "argv", ["rlhf", "run", f"--token={CANARIES['argument']}"])  # W&B reads it
    package = f"secret_{tmp_path.name}"
    (tmp_path / package).mkdir()
    for name, source in (("__init__", ""), ("base", TALKS), ("sft", FAILS)):
        (tmp_path / package / f"{name}.py").write_text(source.format(**CANARIES))
    monkeypatch.syspath_prepend(str(tmp_path))
    table = tuple(
        Stage(name, name, reads, module=f"{package}.{name}") for name, reads in (("base", ()), ("sft", ("base",)))
    )
    monkeypatch.setattr("stages.PIPELINE", table)
    return tmp_path


def leaks(data: bytes) -> list[str]:
    """The canaries in these bytes, also where they were packed; a password is looked for without its URL."""
    texts = [data]
    for unpack in (gzip.decompress, zlib.decompress):
        try:
            texts.append(unpack(data))
        except (OSError, zlib.error, EOFError):
            continue
    words = {**CANARIES, "url": "SwordfishCanary"}
    return [name for name, word in words.items() if any(word.encode() in text for text in texts)]


@pytest.mark.timeout(120)
def test_no_byte_of_a_run_folder_holds_a_secret(world, capsys):
    wandb = pytest.importorskip("wandb")
    code = main(["run", "stages=[base, sft]", "wandb=offline"])
    wandb.teardown()
    said = capsys.readouterr()
    assert code == 1, said.err
    files = [path for path in (world / "runs").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"events.jsonl", "config.yaml", "manifest.json", "rlhf.lock", "error-sft.txt", "report.json"} - names <= {
        "report.json"
    }
    assert any(path.suffix == ".wandb" for path in files)
    found = {str(path.relative_to(world)): leaks(path.read_bytes()) for path in files}
    assert {name: what for name, what in found.items() if what} == {}
    assert leaks((said.out + said.err).encode()) == []
    assert "[redacted]" in said.out
    assert "[redacted]" in (world / "runs" / "tiny" / "error-sft.txt").read_text()
    assert main(["report", "stages=[base, sft]"]) == 0
    for name in ("report.json", "report.html"):
        assert leaks((world / "runs" / "tiny" / name).read_bytes()) == []


@pytest.mark.parametrize("where", ["command line", "file", "environment"])
def test_a_setting_that_holds_a_secret_is_refused_and_not_repeated(world, capsys, where):
    arguments = {
        "command line": ["run", f"model.path={CANARIES['url']}"],
        "environment": ["run", "model.revision=${oc.env:HF_TOKEN}"],
        "file": ["run", "config=mine.yaml"],
    }[where]
    (world / "mine.yaml").write_text(f"sft:\n  data:\n    - {{name: mine, path: {CANARIES['setting']}}}\n")
    assert main(arguments) == 77
    said = capsys.readouterr()
    assert "holds what looks like a secret" in said.err
    assert leaks((said.out + said.err).encode()) == []
    assert not (world / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", f"hub.token={CANARIES['argument']}"],
        ["run", f"ppo.kl_coef={CANARIES['argument']}"],
        ["run", f"--token={CANARIES['argument']}"],
        [CANARIES["argument"]],
        ["run", f"config={CANARIES['argument']}"],
        ["run", f"stage={CANARIES['argument']}"],
    ],
)
def test_no_message_repeats_a_secret(world, capsys, arguments):
    assert main(arguments) == 2
    assert leaks(capsys.readouterr().err.encode()) == []


def test_what_is_no_secret_stays(monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSH_KEY", "/home/someone/.ssh/id_ed25519")
    snapshot = "hub/models--a--b/snapshots/0123456789abcdef0123456789abcdef01234567"
    plain = {
        "pad_token": "<pad>",
        "max_new_tokens": 28,
        "path": snapshot,
        "name": "sk-learn-preference-data",
        "eos_token": "</s>",
    }
    assert redact(plain) == plain
    assert redact("/home/someone/.ssh/id_ed25519") == "/home/someone/.ssh/id_ed25519"


# --- what a model says ---

ATTACK = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe\r\x08[link=file:///etc]x[/link]<script>alert(1)</script>"


def test_text_of_others_cannot_steer_the_terminal(world, capsys):
    from rich.console import Console

    from rlhf.commands.text import table
    from rlhf.tracking.track import Tracker

    table([["a", ATTACK], ["b", "c"]])
    assert main([f"r\x1b[2Jun{ATTACK}"]) == 2
    screen = io.StringIO()
    Tracker(world, run="tiny", step="sft", console=Console(file=screen, width=200)).say(ATTACK)
    said = capsys.readouterr()
    for text in (said.out, said.err, screen.getvalue()):
        assert not set(text) & {"\x1b", "\x07", "\x9b", "\x08", "\r", "\u202e"}
        assert "[link=file:///etc]x[/link]" in text  # shown as it is, not as a link


# --- what we write ---


@pytest.mark.slow
def test_a_finished_run_holds_no_pickle(tmp_path):
    """Every file of a small run that trains, adapts and scores, by its name and by its first bytes."""
    small = ["model.hidden_size=32", "model.intermediate_size=48", "model.layers=1", "base.words=5000", "base.steps=4"]
    small += ["base.extension_steps=0", "sft.data=[{name: microworld, limit: 40}]", "sft.epochs=1", "rounds=1"]
    small += ["preferences.helpfulness_prompts=24", "preferences.safety_prompts=24", "preferences.test_prompts=12"]
    small += [
        "reward.epochs=1",
        "stages=[base, sft, preferences, reward, evaluate]",
        "evaluate.data=[]",
        "wandb=offline",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlhf", "run", "threads=1", *small]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) >= 4
    for path in files:
        assert path.suffix not in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz"), path
        start = path.read_bytes()[:4]
        assert start[:2] != b"PK", path
        assert not (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")), path
