"""`rlhf sync` sends every offline run once, and nothing without a login."""

import subprocess

import pytest

from rlhf.cli import main


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_RUNS", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    folder = tmp_path / "runs" / "tiny" / "wandb"
    for name in ("offline-run-1-a", "offline-run-2-b"):
        (folder / name).mkdir(parents=True)
    (folder / "offline-run-1-a" / "run-a.wandb.synced").touch()
    return folder


def test_without_a_login_nothing_is_sent(waiting, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("sent"))
    assert main(["sync"]) == 69
    assert "wandb login" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "exit_code"), [(0, 0), (1, 1)])
def test_what_waits_is_sent_once(waiting, monkeypatch, capsys, code, exit_code):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    sent = []
    answer = subprocess.CompletedProcess([], code)
    monkeypatch.setattr(subprocess, "run", lambda words, **_: (sent.append(words[-1]), answer)[1])
    assert main(["sync"]) == exit_code
    assert sent == [str(waiting.relative_to(waiting.parents[2]) / "offline-run-2-b")]
    capsys.readouterr()
    (waiting / "offline-run-2-b" / "x.synced").touch()
    assert main(["sync"]) == 0
    assert "nothing waits" in capsys.readouterr().out
