"""What a stage may learn from: a reward model below the bar is refused by name, warned of, or let through."""

import json

import pytest

from rlhf.errors import RlhfError
from rlhf.models.gate import check_gate
from rlhf.schema import Gate


def artefact(folder, **accuracy):
    """A reward artefact whose models have these accuracies on their own domains."""

    def own(value):
        return {"accuracy": {"all": value}, "pairs": {"all": 400}, "interval": {"all": [value - 0.05, value + 0.05]}}

    models = {name: {name: own(value), "calibration": []} for name, value in accuracy.items()}
    (folder / "results.json").write_text(json.dumps({"reward_models": models}))
    return folder


def test_models_above_the_bar_pass_without_a_word(tmp_path):
    check_gate(artefact(tmp_path, helpfulness=0.55, safety=0.9), Gate(), stage="ppo", say=pytest.fail)


def test_one_below_it_is_refused_with_the_figure_and_the_way_past(tmp_path):
    with pytest.raises(RlhfError) as caught:
        check_gate(artefact(tmp_path, helpfulness=0.9, safety=0.515), Gate(), stage="ppo", say=print)
    assert caught.value.exit_code == 1
    assert "the safety model" in caught.value.what
    assert "51.5% of 400 held-out pairs (95% interval 46.5% to 56.5%), below ppo.min_accuracy=0.55" in caught.value.what
    assert any("ppo.reward_gate=ignore" in hint for hint in caught.value.hints)


def test_what_was_never_measured_is_refused(tmp_path):
    with pytest.raises(RlhfError, match="never measured"):
        check_gate(tmp_path, Gate(), stage="rejection", say=print)
    with pytest.raises(RlhfError, match=r"the safety model .* was never measured"):
        check_gate(artefact(tmp_path, helpfulness=0.9), Gate(), stage="rejection", say=print)


def test_a_warning_goes_on_and_says_so_for_each_model(tmp_path):
    said = []
    check_gate(artefact(tmp_path, helpfulness=0.4, safety=0.5), Gate(reward_gate="warn"), stage="ppo", say=said.append)
    assert [line.startswith("warning: the ") for line in said] == [True, True]


def test_ignored_it_reads_nothing(tmp_path):
    check_gate(tmp_path / "absent", Gate(reward_gate="ignore"), stage="ppo", say=pytest.fail)
