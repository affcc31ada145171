"""The W&B dashboard: every chart of it is of a metric that exists. Saving it needs an account, and is not tried."""

import pytest

from rlhf.tracking.metrics import meaning_of


# The library's own: pydantic 1 spellings.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_panel_shows_a_metric_that_is_logged():
    pytest.importorskip("wandb_workspaces", reason="needs wandb-workspaces")
    from rlhf.tracking.workspace import workspace

    made = workspace("me", "rlhf")
    assert [section.name for section in made.sections] == ["Fine-tuning", "Reward models", "PPO", "Policies"]
    panels = [panel for section in made.sections for panel in section.panels]
    assert len(panels) > 10
    assert {panel.x for panel in panels} == {"step"}
    assert [name for panel in panels for name in panel.y if meaning_of(name) is None] == []
