"""The shipped recipes: they load, say only what departs, and the Llama 2 ones are the paper's, number by number."""

import ast
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from rlhf.config import load
from rlhf.data.sources import known_sources
from rlhf.planning.steps import expand
from rlhf.provenance.origins import known_settings, settings
from rlhf.schema import STAGES, Source

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))

# Typed from the paper (arXiv 2307.09288 v2), not from the schema: sections 2.2, 3.1, 3.2.1, 3.2.2, 3.2.3, 3.3, A.3.5.
OPTIMIZER = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-5, "weight_decay": 0.1, "max_grad_norm": 1.0}
FINE_TUNE = {"epochs": 2, "learning_rate": 2e-5, "batch_size": 64}
REWARD = {
    "safety_share": 0.9,
    "epochs": 1,
    "learning_rate": 1e-5,
    "final_lr_ratio": 0.1,
    "warmup_ratio": 0.03,
    "warmup_min_steps": 5,
    "batch_size": 512,
}
PPO = {
    "iterations": 400,
    "batch_size": 512,
    "minibatch_size": 64,
    "learning_rate": 1e-6,
    "clip_range": 0.2,
    "kl_coef": 0.01,
}


def of(stages: str, table: dict[str, object]) -> dict[str, object]:
    """A table of settings for each of these stages, under dotted names."""
    return {f"{stage}.{key}": value for stage in stages.split() for key, value in table.items()}


PAPER = {
    "rounds": 5,
    "refresh": True,
    "model.max_length": 4096,
    "preferences.test_prompts": 1000,
    "rejection.pool": "all",
    "rejection.start": "base",
    "distill.asked": "adversarial",
    "distill.preprompt": "category",
    "distill.keep": "better",
    "gatt.short_share": 0.5,
    "gatt.train_on": "last_answer",
    "scaling.shares": (0.0, 0.01, 0.1, 0.25, 0.5, 1.0),
    "evaluate.turns": (2, 4, 6, 20),
    "evaluate.diversity_prompts": 10,
    "evaluate.diversity_samples": 25,
    **of("sft reward rejection distill gatt ppo scaling", OPTIMIZER),
    **of("sft rejection distill gatt scaling", FINE_TUNE),
    **of("reward", REWARD),
    **of("ppo", PPO),
    **of("reward rejection distill gatt ppo scaling evaluate", {"safety_threshold": 0.15}),
}
PRETRAINING = {**OPTIMIZER, "learning_rate": 3e-4, "warmup_steps": 2000, "final_lr_ratio": 0.1}  # 2.2, 7B and 13B
SIZE_70B = {"reward.learning_rate": 5e-6, "ppo.kl_coef": 0.005}
LLAMA2 = {
    "llama2-7b": PAPER | {"model.path": "meta-llama/Llama-2-7b-hf"},
    "llama2-13b": PAPER | {"model.path": "meta-llama/Llama-2-13b-hf"},
    "llama2-70b": PAPER | SIZE_70B | {"model.path": "meta-llama/Llama-2-70b-hf"},
}
# What a Llama 2 recipe may say beside that: which stages and data there are, what public data lack, and memory.
NOT_IN_THE_PAPER = re.compile(
    r"stages|model\.(dtype|gradient_checkpointing)|\w+\.(data|microbatch_size)|reward\.unrated_margin"
)


def values(name: str) -> dict[str, object]:
    return {setting: value for setting, value, _ in settings(load(name).recipe)}


def test_they_are_all_here():
    assert {"tiny", "hh", "llama2-7b", "llama2-13b", "llama2-70b"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_loads_and_every_stage_finds_what_it_reads(name):
    recipe = load(name).recipe
    steps = expand(recipe)
    assert {step.stage for step in steps} == set(recipe.stages)
    given = recipe.model.path is not None
    for stage in set(recipe.stages) & {"base", "sft", "preferences", "reward", "rejection", "distill", "gatt", "ppo"}:
        if stage != "reward" or "preferences" not in recipe.stages:
            assert getattr(recipe, stage).data or (stage == "base" and given), f"{stage} has nothing to read"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_line_departs_from_the_default(name):
    loaded = load(name)
    for setting, value, field in settings(loaded.recipe):
        if loaded.origins[setting] == f"{name}.yaml":
            assert value != field.get_default(), f"{setting} repeats its default, {value}"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_source_is_known_and_serves_its_role(name):
    roles = {"base": "texts", "sft": "dialogues", "reward": "preferences"}
    for setting, sources, _ in settings(load(name).recipe):
        stage, _, key = setting.partition(".")
        for source in sources if key == "data" else ():
            if source.name != "microworld":
                entry = known_sources()[source.name]
                assert roles.get(stage, "prompts") in entry["role"]
                assert source.split in entry["splits"]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "tiny"])
def test_pairs_of_sets_that_nobody_graded_are_given_a_margin(name):
    reward = load(name).recipe.reward
    assert {source.name for source in reward.data} == {"Anthropic/hh-rlhf"}  # which says which, not by how much
    assert reward.unrated_margin == 0  # else the stage refuses them, after all of sft


@pytest.mark.parametrize("name", LLAMA2)
def test_the_llama_2_recipes_are_the_papers(name):
    found = values(name)
    for setting, value in LLAMA2[name].items():
        assert found[setting] == value, setting


@pytest.mark.parametrize("name", LLAMA2)
def test_the_llama_2_recipes_set_nothing_that_was_not_compared(name):
    origins = load(name).origins
    given = {setting for setting, origin in origins.items() if origin == f"{name}.yaml"}
    assert not [setting for setting in given - set(LLAMA2[name]) if not NOT_IN_THE_PAPER.fullmatch(setting)]


def test_every_default_that_claims_the_paper_stands_in_these_tables():
    claimed = {name for name, field in known_settings().items() if source_of(field).startswith("paper ")}
    assert claimed == set(PAPER | of("base", PRETRAINING))
    found = values("llama2-7b")
    assert {name: found[name] for name in of("base", PRETRAINING)} == of("base", PRETRAINING)


# ── the schema ───────────────────────────────────────────────────────────────────────────────────────────────────────


def source_of(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["source"]) if isinstance(extra, dict) and "source" in extra else ""


FIELDS = {**known_settings(), **{f"data.{name}": field for name, field in Source.model_fields.items()}}


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_described_and_says_where_its_default_is_from(name):
    field = FIELDS[name]
    assert field.description
    assert re.fullmatch(r"paper (A\.)?\d(\.\d)*|ours: \S.*", source_of(field))


def test_every_setting_is_read_somewhere():
    read = set()
    for path in [*(ROOT / "rlhf").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        if path.name != "schema.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    # A setting with a single possible value has nothing to be read.
    choices = {name for name, field in FIELDS.items() if len(literal_values(field)) != 1}
    assert {name for name in choices if name.rpartition(".")[2] not in read} == set()


def literal_values(field: FieldInfo) -> tuple[object, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def test_every_stage_has_its_section():
    assert {name.partition(".")[0] for name in known_settings() if "." in name} == {
        *STAGES,
        "model",
        "data",
        "microworld",
        "generation",
    }
