"""Settings: the file, the command line over it, where each came from, and every way to get one wrong."""

from pathlib import Path

import pytest

from rlhf.config import known_configs, load
from rlhf.errors import ConfigError, MissingError, did_you_mean
from rlhf.provenance.origins import known_settings, show


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def refusal(config: str | None, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError, match=r"\S") as caught:
        load(config, overrides)
    assert caught.value.exit_code == 2
    return caught.value


def test_command_line_beats_file_beats_default(recipe_file):
    loaded = load(recipe_file("ppo:\n  kl_coef: 0.3\n  gamma: 0.5\n"), ["ppo.kl_coef=0.005"])
    assert (loaded.recipe.ppo.kl_coef, loaded.recipe.ppo.gamma, loaded.recipe.ppo.clip_range) == (0.005, 0.5, 0.2)
    assert loaded.origins["ppo.kl_coef"] == "command line"
    assert loaded.origins["ppo.gamma"] == "mine.yaml"
    assert loaded.origins["ppo.clip_range"] == "paper 3.2.3"
    assert loaded.origins["ppo.gae_lambda"].startswith("ours: ")


def test_every_setting_has_an_origin_and_every_default_a_source(recipe_file):
    loaded = load(recipe_file(""))
    assert set(loaded.origins) == set(known_settings())
    assert all(origin.startswith(("paper ", "ours: ")) for origin in loaded.origins.values())


def test_the_run_is_named_for_the_file_unless_told_otherwise(recipe_file):
    path = recipe_file("seed: 1\n")
    assert load(path).recipe.run == "mine"
    assert load(path, ["run=2024"]).recipe.run == "2024"  # text, though YAML would read a number


def test_runs_root_from_override_then_environment_then_here(recipe_file, monkeypatch):
    path = recipe_file("")
    monkeypatch.delenv("RLHF_RUNS", raising=False)
    assert load(path).run_dir == Path("runs/mine")
    monkeypatch.setenv("RLHF_RUNS", "/elsewhere")
    assert load(path).run_dir == Path("/elsewhere/mine")
    assert load(path, ["runs_dir=/third"]).run_dir == Path("/third/mine")


@pytest.mark.parametrize(
    ("override", "value"),
    [("ppo.learning_rate=1e-5", 1e-5), ("ppo.learning_rate=3E-4", 3e-4), ("ppo.learning_rate='1e-5'", 1e-5)],
)
def test_scientific_notation_is_a_number(recipe_file, override, value):
    assert load(recipe_file(""), [override]).recipe.ppo.learning_rate == value
    name, _, raw = override.partition("=")
    assert load(recipe_file(f"ppo:\n  {name.split('.')[1]}: {raw}\n")).recipe.ppo.learning_rate == value


def test_lists_null_and_one_entry_of_a_table(recipe_file):
    overrides = [
        "ppo.data=[{name: a}, {name: b, limit: 3}]",
        "ppo.missing_eos_score=~",
        "stages=[base,sft]",
        "microworld.safety_mix.safe=0.9",
        "evaluate.turns=[2,20]",
    ]
    recipe = load(recipe_file("ppo:\n  missing_eos_score: -1.0\n"), overrides).recipe
    assert [(source.name, source.limit) for source in recipe.ppo.data] == [("a", None), ("b", 3)]
    assert recipe.ppo.missing_eos_score is None
    assert recipe.stages == ("base", "sft")
    assert recipe.microworld.safety_mix == {"safe": 0.9, "border": 0.25, "unsafe": 0.55}
    assert recipe.evaluate.turns == (2, 20)


def test_one_entry_of_a_list_in_the_file(recipe_file):
    path = recipe_file("sft:\n  data:\n    - name: a\n    - name: b\n")
    assert [source.limit for source in load(path, ["sft.data[1].limit=7"]).recipe.sft.data] == [None, 7]


def test_a_section_of_comments_only_is_no_section(recipe_file):
    assert load(recipe_file("ppo:\n  # kl_coef: 0.3\n")).recipe.ppo.clip_range == 0.2


def test_misspelt_setting_on_the_command_line_is_told_the_right_one():
    error = refusal(None, "ppo.kl_cof=0.005")
    assert error.what == "unknown setting ppo.kl_cof"
    assert error.where == "given on the command line"
    assert error.hints == ("did you mean ppo.kl_coef?", "all of them: rlhf show stage=ppo")


def test_misspelt_setting_in_a_file_is_told_its_line(recipe_file):
    path = recipe_file("seed: 3\nppo:\n  gamma: 1.0\n  kl_cof: 0.1\n")
    error = refusal(path)
    assert (error.what, error.where) == ("unknown setting ppo.kl_cof", f"in {path} line 4")
    assert "did you mean ppo.kl_coef?" in error.hints


def test_a_bare_setting_finds_its_section(recipe_file):
    assert "did you mean ppo.kl_coef?" in refusal(recipe_file("kl_coef: 1\n")).hints


def test_unknown_setting_inside_a_list(recipe_file):
    path = recipe_file("sft:\n  data:\n    - name: a\n      limt: 3\n")
    error = refusal(path)
    assert (error.what, error.where) == ("unknown setting sft.data.0.limt", f"in {path} line 4")
    keys = "name, path, split, limit, kind, use, revision, on_bad_row"
    assert error.hints == ("did you mean limit?", f"an entry has {keys}")
    assert refusal(None, "evaluate.policies=[{name: a, pth: b}]").hints == (
        "did you mean path?",
        "an entry has path, name",
    )


@pytest.mark.parametrize(
    ("given", "entry"),
    [
        ("demos.jsonl", "{name: demos, path: demos.jsonl}"),
        ("sets/pairs.jsonl.gz", "{name: pairs, path: sets/pairs.jsonl.gz}"),
        ("..", "{name: .., path: ..}"),  # a folder that is there
        ("microworld", "{name: microworld}"),
        ("Anthropic/hh-rlhf", "{name: Anthropic/hh-rlhf}"),
    ],
)
def test_a_file_or_name_in_the_place_of_a_list_of_sources_is_told_how_to_stand_there(given, entry):
    error = refusal(None, f"sft.data={given}")
    assert (error.what, error.hints) == (f"sft.data: must be a list (got {given})", (f"write sft.data=[{entry}]",))


def test_most_single_typos_are_recognised():
    names = list(known_settings())
    swapped = {name: name[:-2] + name[-1] + name[-2] for name in names if name[-1] != name[-2]}
    found = sum(did_you_mean(typo, names) == f"did you mean {name}?" for name, typo in swapped.items())
    assert found >= 0.95 * len(swapped)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("ppo.kl_coef=a", "ppo.kl_coef: must be a valid number (got a)"),
        ("sft.data=demos.jsonl", "sft.data: must be a list (got demos.jsonl)"),
        ("save_every=soon", "save_every: must be a time such as 90s, 10min or 1.5h (got soon)"),
        ("ppo.gamma=2", "ppo.gamma: must be less than or equal to 1 (got 2)"),
        ("reward.margin=smal", "reward.margin: must be 'none', 'small' or 'large' (got smal)"),
        ("ppo.clip_range=.inf", "ppo.clip_range: must be a finite number (got inf)"),
        ("sft.epochs=1.5", "sft.epochs: must be a valid integer, got a number with a fractional part (got 1.5)"),
        ("ppo.kl_coef=", "ppo.kl_coef has no value"),
        ("ppo=3", "ppo is a group of settings (got 3)"),
        ("sft.data=[a]", "sft.data.0: must be a group of settings (got a)"),
        (
            "run=../x",
            "run: use letters, digits, `.`, `_` or `-`, beginning with a letter or digit (got ../x)",
        ),
        ("ppo.kl_coef", "expected KEY=VALUE, got ppo.kl_coef"),
    ],
)
def test_wrong_values_show_setting_reason_and_value(override, what):
    error = refusal(None, override)
    assert (error.what, error.where) == (what, "given on the command line")


def test_settings_that_contradict_each_other_are_both_named(recipe_file):
    error = refusal(recipe_file("ppo:\n  batch_size: 8\n  minibatch_size: 3\n"))
    assert error.what == "ppo: batch_size (8) must be a multiple of minibatch_size (3)"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "ppo:\n  minibatch_size: 64\n  microbatch_size: 48\n",  # it divides neither, and the mini-batch counts
            "ppo: minibatch_size (64) must be a multiple of microbatch_size (48)",
        ),
        (
            "ppo:\n  batch_size: 512\n  minibatch_size: 64\n  microbatch_size: 128\n",  # it divides the batch only
            "ppo: minibatch_size (64) must be a multiple of microbatch_size (128)",
        ),
        ("sft:\n  microbatch_size: 5\n", "sft: batch_size (64) must be a multiple of microbatch_size (5)"),
        ("reward:\n  microbatch_size: 1000\n", "reward: batch_size (512) must be a multiple of microbatch_size (1000)"),
    ],
)
def test_microbatches_make_up_a_step_exactly(recipe_file, text, what):
    assert refusal(recipe_file(text)).what == what


def test_microbatches_that_do_are_accepted(recipe_file):
    recipe = load(recipe_file("sft:\n  microbatch_size: 4\nppo:\n  microbatch_size: 64\n")).recipe
    assert (recipe.sft.microbatch_size, recipe.ppo.microbatch_size) == (4, 64)


@pytest.mark.parametrize("share", ["1", "1.0"])
def test_own_answers_cannot_be_all_there_is(share):
    assert refusal(None, f"gatt.replay_share={share}").what.startswith("gatt.replay_share: must be less than 1")


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("ppo:\n  gamma: 1\n  gamma: 1\n", "not YAML: found duplicate key gamma", 3),
        ("ppo:\n  gamma: [1\n", "not YAML: ", 3),
        ("ppo:\n  gamma:\n", "ppo.gamma has no value", 2),
        ("ppo:\n\tgamma: 1\n", "not YAML: found character", 2),
    ],
)
def test_broken_files_name_the_line(recipe_file, text, what, line):
    path = recipe_file(text)
    error = refusal(path)
    assert error.what.startswith(what)  # the wording beyond that is the YAML library's
    assert error.where == f"in {path} line {line}"


@pytest.mark.parametrize(("text", "found"), [("- a\n- b\n", "a list"), ("just words\n", "a single value")])
def test_a_file_that_is_no_mapping(recipe_file, text, found):
    path = recipe_file(text)
    error = refusal(path)
    assert error.what == f"a recipe must be a mapping of `setting: value` lines (got {found})"
    assert error.where == f"in {path}"


def test_a_missing_file_lists_the_known_ones():
    error = refusal("tny")
    assert error.what == "no configuration tny"
    assert error.hints[0] == "did you mean tiny?"
    assert all(name in error.hints[1] for name in known_configs())


def test_an_unreadable_file_is_missing(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(MissingError, match="Permission denied"):
        load(str(path))


@pytest.mark.parametrize("name", sorted(known_configs()))
def test_every_shipped_recipe_is_valid_and_says_where_its_values_are_from(name):
    loaded = load(name)
    assert loaded.recipe.run == name
    assert set(loaded.origins) == set(known_settings())


@pytest.mark.parametrize("value", [None, True, 0.25, 3, "word", ["a", "b"], {"a": 1}])
def test_a_shown_value_can_be_typed(value):
    from omegaconf import OmegaConf

    assert OmegaConf.to_container(OmegaConf.from_dotlist([f"value={show(value)}"])) == {"value": value}
