"""Jobs made on the spot: a real Job with its settings and folders, and two small reward models that disagree."""

import copy
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from rlhf.job import job_of as make_job
from rlhf.planning.steps import Step
from rlhf.provenance.meter import Journal
from rlhf.resume.preemption import Stop
from rlhf.schema import Recipe
from rlhf.tracking.track import Tracker


@pytest.fixture
def screen():
    """What a job says."""
    return io.StringIO()


@pytest.fixture
def job_of(tmp_path, screen):
    """job_of("ppo", reads={"policy": [folder]}, max_kl=3.0): a job of that stage with those settings of its own."""
    trackers, jobs = [], []

    def make(stage, *, name=None, round=0, reads=None, model=None, too_long="error", **settings):
        section = {"data": [{"name": "microworld"}], **settings}
        # Of `stages` only sft, so that a job may keep the default length of answers, which this context does not hold.
        recipe = Recipe.model_validate(
            {
                "stages": ["sft"],
                "model": {"max_length": 128, **(model or {})},
                "data": {"too_long": too_long},
                stage: section,
            }
        )
        out = tmp_path / f"out-{len(trackers)}"
        out.mkdir()
        trackers.append(Tracker(out, run="test", step=name or stage, console=Console(file=screen, width=200)))
        folders = {token: tuple(paths) for token, paths in (reads or {}).items()}
        step = Step(name or stage, stage, round, f"stages.{stage}")
        journal = Journal(tmp_path / "events.jsonl")
        job = make_job(step, recipe, tmp_path, out, trackers[-1], "key", journal, Stop())
        jobs.append(replace(job, seed=7, reads=folders))
        return jobs[-1]

    yield make
    for job in jobs:
        job.shards.close()
    for tracker in trackers:
        tracker.close()


@pytest.fixture
def rewards(reward_model, tokenizer):
    """A helpfulness model and a safety model that is not its shadow."""
    import torch

    from rlhf.models.load import freeze
    from rlhf.models.reward_models import RewardModels

    safety = copy.deepcopy(reward_model)
    with torch.no_grad():
        safety.score.weight.copy_(safety.score.weight.roll(1))
    return RewardModels(freeze(reward_model), freeze(safety), tokenizer.pad_token_id, tokenizer.eos_token_id)


@pytest.fixture
def saved(tmp_path, policy, rewards, tokenizer):
    """Folders of artefacts as earlier stages leave them: `saved.policy("sft")`, `saved.reward("reward-1")`."""
    from rlhf.checkpoint import write_manifest
    from rlhf.models.load import save

    def policy_artefact(name, model=policy):
        save(model, tokenizer, tmp_path / name / "checkpoint")
        write_manifest(tmp_path / name, {"digest": f"digest of {name}"})
        return tmp_path / name

    def reward_artefact(name):
        for domain in ("helpfulness", "safety"):
            save(getattr(rewards, domain), tokenizer, tmp_path / name / "checkpoint" / domain)
        measured = {domain: {domain: {"accuracy": {"all": 0.9}}} for domain in ("helpfulness", "safety")}
        (tmp_path / name / "results.json").write_text(json.dumps({"reward_models": measured}))
        return tmp_path / name

    return SimpleNamespace(policy=policy_artefact, reward=reward_artefact)
