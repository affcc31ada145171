"""What an attacker may hand over, and a canary file that no attack may make."""

import pickle
import subprocess
import sys

import pytest


class Canary:
    """A file that code of an attacker would create."""

    def __init__(self, folder):
        self.path = folder / "canary"
        self.command = f"touch '{self.path}'"
        self.python = f"open({str(self.path)!r}, 'w').close()\n"

    def __reduce__(self):
        import os

        return os.system, (self.command,)

    def pickled(self) -> bytes:
        """A pickle that makes the file when it is read."""
        return pickle.dumps(self, protocol=2)

    @property
    def sang(self) -> bool:
        return self.path.exists()


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The canary of this test: each payload can make it, and at the end it must not be there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bird = Canary(tmp_path)
    probe = Canary(tmp_path / "probe")  # the payload works where it is read carelessly
    probe.path.parent.mkdir()
    subprocess.run(
        [sys.executable, "-c", "import sys, pickle; pickle.load(sys.stdin.buffer)"], input=probe.pickled(), check=True
    )
    assert probe.sang
    yield bird
    assert not bird.sang, "code of the attacker ran"
