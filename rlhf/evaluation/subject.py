"""What is evaluated: the policies of a run or checkpoints from anywhere, and the reward models that score them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.errors import ConfigError
from rlhf.generation.transformers import InProcess
from rlhf.models.load import TEMPLATE, checkpoint_of, freeze, load_given_tokenizer, load_policy, load_tokenizer
from rlhf.models.reward_models import RewardModels
from rlhf.models.shared import shared
from rlhf.pipeline import Job


@dataclass(frozen=True)
class Evaluation:
    """What every measurement needs."""

    job: Job
    policies: dict[str, Path]
    """Name -> the folder with the weights, oldest first."""
    judged_by: Path | None
    """Where the reward models are."""
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, job: Job) -> Evaluation:
        """The policies that `evaluate.policies` names, or all of the run; the newest reward models, or those given."""
        made = {path.name: path for path in job.every("policies")}
        wanted = job.config.policies
        policies = {at.name: found(at.name, at.path, made) for at in wanted} if wanted else made
        if not policies:
            raise ConfigError(
                "there is no policy to evaluate",
                hints=["name some: evaluate.policies=[{name: mine, path: FOLDER}]", "or add stages to `stages`"],
            )
        given = job.config.rewards.path
        newest = [Path(given)] if given else list(job.every("reward"))[-1:]
        folders = {name: checkpoint_of(path) for name, path in policies.items()}
        tokenizer = one_tokenizer(folders)
        return cls(job, folders, newest[0] if newest else None, tokenizer)

    @cached_property
    def rewards(self) -> RewardModels:
        """The reward models, read when they are first asked: what is wrong with prompts is said before."""
        assert self.judged_by is not None
        return RewardModels.load(self.judged_by, self.job.recipe.model, reads=self.tokenizer)

    def model(self, name: str) -> PreTrainedModel:
        """The policy, frozen; processes may share it."""
        return shared(freeze(load_policy(self.policies[name], self.job.recipe.model)))

    def engine(self, policy: PreTrainedModel) -> InProcess:
        """What samples from it."""
        return InProcess(policy, self.job.recipe.generation.rows_per_batch)


def found(name: str, path: str | None, made: dict[str, Path]) -> Path:
    """Where a named policy is: at its path, or among the artefacts of the run."""
    if path:
        return Path(path)
    if name not in made:
        raise ConfigError(
            f"evaluate.policies names {name}, which this run does not make",
            hints=[f"policies of this run: {', '.join(made) or 'none'}", "or give it a `path`"],
        )
    return made[name]


def one_tokenizer(folders: dict[str, Path]) -> PreTrainedTokenizerBase:
    """The tokenizer of all policies; ConfigError where they differ, as answers are compared and scored by their ids."""
    first = None
    for name, folder in folders.items():
        known = (folder / TEMPLATE).exists()
        tokenizer = load_tokenizer(folder) if known else load_given_tokenizer(str(folder), revision=None)
        if first is not None and tokenizer.get_vocab() != first.get_vocab():
            raise ConfigError(
                f"{name} has another tokenizer than {next(iter(folders))}",
                where="evaluate.policies",
                hints=["evaluate policies of different tokenizers one by one"],
            )
        first = first or tokenizer
    assert first is not None
    return first
