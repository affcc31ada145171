"""A dashboard for W&B as code: the charts of the report, in its order. The one door to wandb_workspaces."""

from __future__ import annotations

from typing import Any

from rlhf.data.types import DOMAINS, RATINGS
from rlhf.errors import MissingError
from rlhf.reporting.figures import PPO_CHARTS

LOSSES = ("pretrain/loss", "extend/loss", "sft/loss", "rejection/loss", "gatt/loss")
TESTED = tuple(f"{model}/heldout/{rating}" for model in DOMAINS for rating in RATINGS)
REWARD = (
    ("Loss", ("helpfulness/loss", "safety/loss")),
    ("Accuracy on held-out pairs", TESTED),
    ("Score gap", ("helpfulness/score_gap", "safety/score_gap")),
)

POLICIES = (
    ("Gold quality", ("eval/gold_quality",)),
    ("Violations on unsafe prompts", ("eval/violation_rate",)),
    ("Reward", ("eval/reward_helpfulness", "eval/reward_safety", "eval/reward_combined")),
)


def workspace(entity: str, project: str) -> Any:
    """The dashboard, not yet saved: fine-tuning, reward models, PPO, and what every policy came to.

    Raises:
        MissingError: if wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise MissingError(
            "the dashboard needs wandb-workspaces, which is not installed", hints=["pip install 'rlhf[dashboard]'"]
        ) from None
    charts = {
        "Fine-tuning": [("Loss", LOSSES)],
        "Reward models": REWARD,
        "PPO": [(title, names) for title, _, names, _ in PPO_CHARTS],
        "Policies": POLICIES,
    }
    sections = [
        workspaces.Section(
            name=name,
            panels=[panels.LinePlot(title=title, x="step", y=list(names)) for title, names in part],
            is_open=True,
        )
        for name, part in charts.items()
    ]
    return workspaces.Workspace(entity=entity, project=project, name="rlhf", sections=sections)
