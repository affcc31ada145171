"""The house rules, read from the source: imports run one way, heavy libraries have one door, files stay short."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RLHF = sorted((ROOT / "rlhf").rglob("*.py"))
STAGES = sorted((ROOT / "stages").rglob("*.py"))
FUNCTIONAL = [path for path in RLHF if "functional" in path.relative_to(ROOT).parts]

TORCH_FREE = (
    *("rlhf.checkpoint", "rlhf.cli", "rlhf.commands", "rlhf.config", "rlhf.errors", "rlhf.pipeline", "rlhf.report"),
    *("rlhf.planning.decision", "rlhf.planning.room", "rlhf.planning.steps", "rlhf.processes.launch", "rlhf.schema"),
    *("rlhf.provenance.fingerprint", "rlhf.provenance.meter", "rlhf.provenance.origins", "rlhf.tracking.track"),
    *("rlhf.data.types", "rlhf.microworld.language", "rlhf.microworld.oracle", "rlhf.microworld.annotator"),
    *("rlhf.microworld.corpus", "stages"),
)

DOORS = {
    "trl": {"rlhf/training/trainers.py", "rlhf/training/row_trainer.py"},
    "wandb": {"rlhf/tracking/wandb_run.py"},
    "tensorboard": {"rlhf/tracking/tensorboard_run.py"},
    "trackio": {"rlhf/tracking/trackio_run.py"},
    "wandb_workspaces": {"rlhf/tracking/workspace.py"},
    "peft": {"rlhf/models/adapters.py"},
    "deepspeed": {"rlhf/processes/zero.py"},
    "vllm": {"rlhf/generation/vllm.py"},
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or inside a function; names given to import_module as text, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("path", RLHF, ids=name)
def test_the_library_never_imports_a_stage(path):
    allowed = {"stages"} if name(path) == "rlhf/planning/steps.py" else set()  # the table, found by name
    assert {module for module in imports(path) if top(module) == "stages"} <= allowed


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_stages_never_import_one_another(path):
    assert not [module for module in imports(path) if top(module) == "stages" or module.startswith(".")]


@pytest.mark.parametrize("path", FUNCTIONAL, ids=name)
def test_formulas_import_torch_and_nothing_heavier(path):
    allowed = {"torch", "jaxtyping", *sys.stdlib_module_names}
    foreign = {module for module in imports(path) if top(module) not in allowed}
    assert all(module.startswith("rlhf.functional") for module in foreign)


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_have_one_door(library):
    users = {name(path) for path in [*RLHF, *STAGES] if library in map(top, imports(path))}
    assert users <= DOORS[library]


LAYERS = ("functional", "data", "models", "generation", "rollout", "training", "evaluation")
BESIDE = {"generation": {"models"}}  # an engine reads checkpoints


@pytest.mark.parametrize("layer", ["functional", "data", "models", "generation"])
def test_lower_layers_do_not_import_higher_ones(layer):
    higher = {*LAYERS[LAYERS.index("models") :]} - {layer} - BESIDE.get(layer, set())
    for path in RLHF:
        if layer == path.relative_to(ROOT / "rlhf").parts[0]:
            up = tuple(f"rlhf.{name}" for name in higher)
            assert not [module for module in imports(path) if module.startswith(up)], path


def test_light_modules_never_load_torch():
    script = (
        f"import importlib, sys\nfor name in {TORCH_FREE!r}:\n    importlib.import_module(name)\n"
        "    loaded = {'torch', 'transformers', 'trl', 'wandb', 'datasets'} & set(sys.modules)\n"
        "    assert not loaded, (name, loaded)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_row_of_the_table_has_its_file_and_signature():
    from rlhf.schema import STAGES as KNOWN
    from stages import PIPELINE

    assert tuple(stage.name for stage in PIPELINE) == KNOWN
    for stage in PIPELINE:
        tree = ast.parse((ROOT / "stages" / f"{stage.name}.py").read_text(encoding="utf-8"))
        (run,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
        assert ast.unparse(run.args) == "job: Job"
        assert ast.unparse(run.returns or ast.Constant(...)) == "None"


def test_a_stage_reads_no_other_stages_settings():
    """They are not in its fingerprint, so a change of them would not make it stale."""
    from rlhf.schema import STAGES as KNOWN

    for path in STAGES:
        read = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("recipe")
        }
        assert not read & {*KNOWN, "run", "rounds", "stages", "wandb"} - {path.stem}, path


def test_a_stage_asks_for_the_artefacts_that_the_table_grants_it():
    from stages import PIPELINE

    for stage in PIPELINE:
        tree = ast.parse((ROOT / "stages" / f"{stage.name}.py").read_text(encoding="utf-8"))
        asked = {
            constant.value.rstrip("*?")
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("job.one", "job.every", "job.digest_of")
            for argument in node.args
            for constant in ast.walk(argument)
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
        }
        granted = {token.rstrip("*?") for token in stage.reads}
        assert asked <= granted, stage.name


@pytest.mark.parametrize("path", [*RLHF, *STAGES], ids=name)
def test_files_stay_short_and_are_named_for_an_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    assert path.stem not in ("utils", "util", "common", "core", "misc", "helpers", "helper")


@pytest.mark.parametrize("path", [*RLHF, *STAGES], ids=name)
def test_every_file_opens_by_saying_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_nothing_unpickles_and_remote_code_stays_off():
    for path in [*RLHF, *STAGES]:
        text = path.read_text(encoding="utf-8")
        assert "pickle" not in {top(module) for module in imports(path)}, path
        for banned in ("torch.load(", "torch.save(", "trust_remote_code=True"):
            assert banned not in text, (path, banned)
