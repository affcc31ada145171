"""The dictionary of metrics has every name that the code logs, and no name that it does not."""

import re
from pathlib import Path

import pytest

from rlhf.cli import main
from rlhf.reporting.figures import PPO_CHARTS
from rlhf.tracking.health import RULES
from rlhf.tracking.metrics import METRICS, meaning_of

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {"health", "reward", "heldout", "objective", "policy", "val", "value", "loss", "gen", "pool", "time", "mem"}
LIBRARY = ("training/trainers.py", "rollout.py", "tracking/health.py", "tracking/track.py", "models/combiner.py")
LOGGED = [*(ROOT / "stages").glob("*.py"), *(ROOT / "rlhf" / name for name in LIBRARY)]


def written() -> set[str]:
    """Names that stand in the code as text: `"group/name"`."""
    found = {name for path in LOGGED for name in re.findall(r"\"([a-z_]+/[a-z_]+)\"", path.read_text())}
    return {name for name in found if name.partition("/")[0] in GROUPS}


def test_every_name_that_is_logged_is_explained():
    assert len(written()) >= 15
    # The trainer puts its own name before the parts of a reward model's loss.
    assert [n for n in written() if meaning_of(n) is None and meaning_of(f"helpfulness/{n}") is None] == []


def test_every_name_that_is_explained_is_logged():
    own = {metric.name for metric in METRICS if "*" not in metric.name} - {"time"}  # which every row has
    assert own - written() == set()


def test_what_the_report_and_the_doctor_look_at_is_explained():
    shown = {name for _, _, names, _ in PPO_CHARTS for name in names} | {
        f"sft{rule.metric}" if rule.metric.startswith("/") else rule.metric for rule in RULES
    }
    assert [name for name in shown if meaning_of(name) is None] == []


@pytest.mark.parametrize(
    ("name", "entry"),
    [("safety/loss/ranking", "*/loss/ranking"), ("heldout/gold_quality", "heldout/*"), ("sft/loss", "*/loss")],
)
def test_the_nearest_entry_explains_a_name(name, entry):
    found = meaning_of(name)
    assert found is not None
    assert found.name == entry
    assert meaning_of("nonsense") is None


def test_the_command_prints_one_or_all(capsys):
    assert main(["metrics", "gen/eos_rate"]) == 0
    assert "answers that end by themselves (share)" in capsys.readouterr().out
    assert main(["metrics"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(METRICS) + 1
    assert main(["metrics", "gen/eos_rat"]) == 2
    assert "did you mean gen/eos_rate?" in capsys.readouterr().err
