"""The formulas' tests notice every wrong version in tests/mutants.py."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_mutant_survives():
    # A process of its own: mutants take the place of loaded modules.
    script = Path(__file__).with_name("mutants.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
