"""Before processes start, what they read from the hub is there."""

import datasets
import huggingface_hub
import pytest

from rlhf.cli import main
from rlhf.processes import launch

RECIPE = """
stages: [base, sft, evaluate]
model: {path: someone/model, revision: v1}
base: {data: [{name: roneneldan/TinyStories}]}
sft: {data: [{name: HuggingFaceH4/no_robots}]}
evaluate: {data: [{name: HuggingFaceH4/no_robots}, {name: mine, path: mine.jsonl}, {name: microworld}]}
"""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What was asked of whom, in turn; nobody is really asked."""
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "mine.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(launch, "start", lambda name, arguments: asked.append("start") or 0)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda path, **more: asked.append((path, more)))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *given, **more: asked.append((name, more)) or [])
    return asked


def test_sets_and_model_are_fetched_once_and_then_processes_start(asked):
    assert main(["run", "config=mine.yaml", "launch=cpu"]) == 0
    (demonstrations, how), (model, which), last = asked
    assert (demonstrations, how["streaming"]) == (
        "HuggingFaceH4/no_robots",
        False,
    )  # base has none
    assert (model, which["revision"], last) == ("someone/model", "v1", "start")
    assert not [pattern for pattern in which["allow_patterns"] if pattern.endswith((".bin", ".pt", ".py", "*"))]


def test_only_for_steps_that_will_run(asked):
    assert main(["run", "config=mine.yaml", "launch=cpu", "stage=base"]) == 0
    assert [entry[0] for entry in asked[:-1]] == ["someone/model"]


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("no such split")])
def test_what_cannot_be_had_is_left_to_who_reads_it(asked, monkeypatch, error):
    def fails(*given, **more):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fails)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    assert main(["run", "config=mine.yaml", "launch=cpu"]) == 0
    assert asked == ["start"]
