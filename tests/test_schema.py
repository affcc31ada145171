"""What the schema refuses beyond types: empty lists, mixes, and settings that do not go together."""

import pytest

from rlhf.config import load
from rlhf.errors import ConfigError
from rlhf.planning.steps import expand


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ("stages=[]", "stages: must have at least one entry (got [])"),
        ("preferences.temperatures=[]", "preferences.temperatures: must have at least one entry (got [])"),
        ("scaling.shares=[0.5]", "scaling.shares: must have at least 2 entries (got [0.5])"),
        ("rejection.temperatures=[]", "rejection.temperatures: must have at least one entry (got [])"),
        ("evaluate.temperatures=[]", "evaluate.temperatures: must have at least one entry (got [])"),
        ("evaluate.turns=[]", "evaluate.turns: must have at least one entry (got [])"),
        ("model.vocab_size=263", "model.vocab_size: must be greater than or equal to 264 (got 263)"),
        ("evaluate.prompts=3", "evaluate.prompts: must be greater than or equal to 4 (got 3)"),
        ("evaluate.best_of_prompts=1", "evaluate.best_of_prompts: must be greater than or equal to 2 (got 1)"),
        (
            "microworld.safety_mix.sfe=0.5",
            "microworld.safety_mix: there is no kind sfe; the kinds of prompts are safe, border, unsafe",
        ),
        (
            "microworld.helpfulness_mix={safe: 0, border: 0}",
            "microworld.helpfulness_mix: shares must be 0 or more and not all 0 (got safe: 0, border: 0)",
        ),
        (
            "microworld.helpfulness_mix={safe: 1, unsafe: -0.5}",
            "microworld.helpfulness_mix: shares must be 0 or more and not all 0 (got safe: 1, unsafe: -0.5)",
        ),
        ("base.microbatch_size=4 base.extension_batch_size=6",
         "base: extension_batch_size (6) must be a multiple of microbatch_size (4)"),
        ("gatt.max_new_tokens=768", "gatt.max_new_tokens (768) must be less than model.max_length (768)"),
        ("model.max_length=600 ppo.max_new_tokens=700",
         "ppo.max_new_tokens (700) must be less than model.max_length (600)"),
        ("base.row_length=769", "base.row_length (769) must not be more than model.max_length (768)"),
        ("model.max_length=511", "base.extension_length (512) must not be more than model.max_length (511)"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_refused_with_its_reason_and_place(overrides, what):
    words = overrides.split(" ") if "{" not in overrides else [overrides]
    with pytest.raises(ConfigError) as caught:
        load("tiny", words)
    assert (caught.value.what, caught.value.where) == (what, "given on the command line")


@pytest.mark.parametrize(
    "overrides",
    [
        ["base.microbatch_size=4", "base.extension_batch_size=6", "base.extension_steps=0"],
        ["base.row_length=768", "base.extension_length=768"],
        ["base.row_length=9999", "model.path=somewhere"],
        ["stages=[base,sft]", "ppo.max_new_tokens=9999"],
        ["ppo.max_new_tokens=767", "model.vocab_size=264", "evaluate.prompts=4"],
    ],
)
def test_the_edge_and_what_has_no_effect_are_accepted(overrides):
    load("tiny", overrides)


def test_a_kind_that_a_mix_does_not_mention_has_no_share():
    mix = load("tiny", ["microworld.safety_mix={unsafe: 1}"]).recipe.microworld.safety_mix
    assert mix == {"safe": 0.0, "border": 0.0, "unsafe": 1.0}


# ── data, asked for before anything starts ───────────────────────────────────────────────────────────────────────────

FILE = "data=[{name: ours, path: rows.jsonl}]"


@pytest.mark.parametrize(
    ("config", "overrides", "what", "hint"),
    [
        (
            "hh",
            ["base.data=[]"],
            "base.data is empty, and base reads running text",
            "or start from a checkpoint: model.path=FOLDER",
        ),
        (
            "hh",
            ["sft.data=[]"],
            "sft.data is empty, and sft reads demonstrations",
            "name demonstrations: sft.data=[{name: NAME, path: FILE}], shapes in data/README.md",
        ),
        (
            "hh",
            ["reward.data=[]"],
            "reward.data is empty, and reward reads pairs",
            "or add preferences to the setting `stages`, which makes pairs",
        ),
        (
            "tiny",
            ["ppo.data=[]"],
            "ppo.data is empty, and ppo reads prompts",
            "or leave ppo out of the setting `stages`",
        ),
        (
            "tiny",
            ["evaluate.data=[]"],
            "evaluate.data is empty, and evaluate reads prompts",
            "or leave evaluate out of the setting `stages`",
        ),
        (
            "tiny",
            [f"preferences.{FILE}"],
            "preferences.data names ours, and only the micro-world has prompts with annotators",
            "use preferences.data=[{name: microworld}]",
        ),
        (
            "tiny",
            ["reward.data=[{name: microworld}]"],
            "reward.data names microworld, whose pairs the stage preferences makes",
            "leave it out of reward.data, and add preferences to the setting `stages`",
        ),
        (
            "tiny",
            ["sft.data=[{name: HuggingFaceH4/no_robot}]"],
            "there is no data set 'HuggingFaceH4/no_robot'",
            "did you mean HuggingFaceH4/no_robots?",
        ),
    ],
)
def test_data_that_is_missing_or_unknown_is_refused_with_a_way_out(config, overrides, what, hint):
    with pytest.raises(ConfigError) as caught:
        expand(load(config, overrides).recipe)
    assert caught.value.what == what
    assert hint in caught.value.hints


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("hh", ["base.data=[]", "model.path=somewhere"]),
        ("hh", ["evaluate.data=[]"]),  # the reward models are measured on pairs held out
        ("hh", ["stages=[base]", "sft.data=[]", "reward.data=[]"]),
        ("tiny", ["reward.data=[]"]),  # the pairs of preferences
        ("tiny", [f"{stage}.{FILE}" for stage in ("base", "sft", "reward", "rejection", "ppo", "evaluate")]),
    ],
)
def test_data_that_a_recipe_can_do_without_may_be_missing(config, overrides):
    expand(load(config, overrides).recipe)
