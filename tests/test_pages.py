"""The pages of docs/: every command that stands in them is typed, and what they take from the code is there.

docs/own-data.md is walked by tests/test_tutorial.py, with a model and data of one's own.
"""

import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf.cli import main, parse
from rlhf.commands import COMMANDS
from rlhf.errors import RlhfError
from rlhf.provenance.origins import known_settings
from rlhf.tracking.health import RULES
from rlhf.tracking.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

# Why a command is read, with every setting in it, and not executed; the page says so behind it.
REASONS = (
    "needs the hub",
    "needs an account on the hub",
    "needs a W&B account",
    "needs a cluster",
    "waits for people",
    "stays open",
    "after exit code 76",
    "takes as long as the run",
)


# The recipe as small as it still goes through: what `rlhf run` stands for here.
SMALL = """
stages: [base, sft, preferences, reward, rejection, ppo, evaluate]
rounds: 1
threads: 1
wandb: disabled
model: {hidden_size: 32, intermediate_size: 64, layers: 1, max_length: 768}
base: {data: &world [{name: microworld}], steps: 10, words: 4000, extension_steps: 0, row_length: 128}
sft: {data: [{name: microworld, limit: 60}], epochs: 1, row_length: 128}
preferences: {data: *world, helpfulness_prompts: 24, safety_prompts: 24, test_prompts: 16, max_new_tokens: 12}
reward: {epochs: 1, batch_size: 16}
rejection: {data: *world, prompts: 8, samples_per_prompt: 2, temperature_prompts: 4, temperatures: [1.0], epochs: 1,
            max_truncated: 1, max_new_tokens: 40, reward_gate: ignore}
ppo: {data: *world, iterations: 1, batch_size: 4, minibatch_size: 4, heldout_prompts: 4, heldout_every: 1,
      max_kl: 1000, max_new_tokens: 12, reward_gate: ignore}
evaluate: {data: *world, prompts: 8, best_of_prompts: 2, best_of_samples: 2, dialogues: 1, turns: [2], samples: 2,
           attention: 1, max_new_tokens: 12, diversity_temperatures: [0.5, 1.0]}
"""


@pytest.fixture(scope="module")
def generate():
    """The hook that fills the pages in."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generate):
    """Every page by its name, in the order of the menu, with its parts filled in."""
    menu = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    return {name: generate.expand((DOCS / name).read_text("utf-8")) for name in re.findall(r"[\w/-]+\.md", menu)}


@dataclass(frozen=True)
class Typed:
    """A line that a reader would copy, and what is said behind it."""

    page: str
    line: str
    comment: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)

    @property
    def reason(self) -> str:
        return next((reason for reason in REASONS if self.comment.startswith(reason)), "")


def typed(pages: dict[str, str]) -> list[Typed]:
    """Every command of these pages."""
    found = []
    for name, text in pages.items():
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                command, _, comment = line.partition(" #")
                found.append(Typed(name, command.strip(), comment.strip()))
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch, pages):
    """An empty folder with the recipes that the pages have their readers write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_RUNS", raising=False)
    for text in pages.values():
        for name, recipe in re.findall(r"`([\w-]+\.yaml)`[^\n]*\n(?:[^\n`]*\n)*?```yaml\n(.*?)```", text, re.DOTALL):
            Path(name).write_text(recipe)
    return tmp_path


def test_no_command_hides_in_another_kind_of_block(pages):
    for name, text in pages.items():
        if name != "reference/printed.md":  # tests/test_errors.py provokes those
            assert not re.findall(r"^(?: {4}|\$ )(?:rlhf|make|pip) ", text, re.MULTILINE), name


def test_every_command_is_read_with_every_setting_in_it(pages, folder):
    commands = [entry for entry in typed(pages) if entry.words[0] == "rlhf"]
    for entry in commands:
        try:
            request = parse(entry.words[1:])
            if not (request.command.name == "report" and any("," in word for word in entry.words)):
                request.load()
        except RlhfError as error:
            raise AssertionError(f"{entry.page}: {entry.line}: {error}") from None
    by_hand = {entry.words[1] for entry in commands if entry.page != "reference/commands.md"}
    assert by_hand == {command.name for command in COMMANDS}


def test_what_is_not_ours_is_there(pages):
    extras = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2]
    for name, text in pages.items():
        for extra in re.findall(r"rlhf\[(\w+)\]", text):
            assert re.search(rf"^{extra} = ", extras, re.MULTILINE), (name, extra)
    for entry in typed(pages):
        if entry.words[0] == "make":
            said = subprocess.run(["make", "-n", *entry.words[1:]], cwd=ROOT, capture_output=True, check=False)
            assert said.returncode == 0, entry
        elif entry.words[0] != "rlhf":
            assert entry.reason, entry


def ours(pages: dict[str, str]) -> list[Typed]:
    """The commands of rlhf that need nothing but a run."""
    return [e for e in typed(pages) if e.words[0] == "rlhf" and not e.reason and e.page != "own-data.md"]


LIGHT = ("plan", "show", "launch", "metrics")


def test_what_needs_no_run_does_what_it_says(pages, folder, capsys):
    """`rlhf run` as `rlhf plan`, which reads and decides the same."""
    wrong = []
    for entry in ours(pages):
        words = entry.words[1:]
        if words[0] == "run":
            words = ["plan", *(word for word in words[1:] if word not in ("--strict", "--locked"))]
        if words[0] in LIGHT:
            wrong += [(entry.page, entry.line, capsys.readouterr().err)] if main(words) else []
    assert not wrong


@pytest.mark.slow
def test_what_needs_a_run_does_what_it_says(pages, folder, monkeypatch, capsys):
    """In one folder, in which the tutorial's `rlhf run` has made three small runs for real."""
    Path("small.yaml").write_text(SMALL)
    assert main(["run", "config=small.yaml", "run=tiny"]) == 0, capsys.readouterr()
    shutil.copytree("runs/tiny", "runs/tiny-2")
    wrong = []
    for entry in ours(pages):
        words = entry.words[1:]
        if words[0] == "run" and entry.page == "tutorial.md":
            words += ["config=small.yaml", *(["run=tiny"] if "run=" not in entry.line else [])]
        elif words[0] in (*LIGHT, "run"):
            continue
        monkeypatch.setattr(sys, "stdin", io.StringIO("how do i open the door ?\n"))
        code = main(words)
        found = words[0] == "doctor" and code == 1  # so short a training is not healthy
        wrong += [(entry.page, entry.line, code, capsys.readouterr().err)] if code and not found else []
    assert not wrong


def test_every_setting_metric_recipe_and_kind_of_error_stands_on_a_page(pages):
    text = "\n".join(pages.values())
    wanted = {*known_settings(), *(metric.name for metric in METRICS)}
    assert not [name for name in wanted if f"`{name}`" not in text]
    assert {f"## {path.stem}" for path in (ROOT / "configs").glob("*.yaml")} <= set(pages["recipes.md"].splitlines())
    # tests/test_errors.py counts what is printed; here every module that may end a run with an error of ours.
    modules = [*(ROOT / "rlhf").rglob("*.py"), *(ROOT / "stages").glob("*.py")]
    raising = {path for path in modules if re.search(r"raise \w+Error\(", path.read_text("utf-8"))}
    silent = {path.relative_to(ROOT).as_posix() for path in raising} - set(
        re.findall(r"^## `(.+)`$", text, re.MULTILINE)
    )
    ours = "|".join(kind.__name__ for kind in (RlhfError, *RlhfError.__subclasses__()))
    assert not [path for path in silent if re.search(rf"raise ({ours})\(", (ROOT / path).read_text("utf-8"))]


def test_every_rule_of_health_stands_on_the_page_of_a_stage(pages):
    stages = [text for name, text in pages.items() if name.startswith("stages/")]
    alarms = {alarm for text in stages for alarm in re.findall(r"health/(\w+)", text)}
    assert {rule.name for rule in RULES} <= alarms


def test_a_failure_stands_with_its_ways_out_and_code(generate, tmp_path):
    (tmp_path / "stage.py").write_text(
        "def run(job):\n"
        "    hints = ['first', f'then {job.name}']\n"
        "    if job:\n"
        "        raise DataError(f'{job.rows:,} rows' + (f' of {job.all}' if job else ''), where='here', hints=hints)\n"
        "    what = 'a | b'\n"
        "    raise ConfigError(what)\n"
        "    raise ConfigError(str(error))\n"
        "    raise ValueError('ours')\n"
    )
    _, _, *found = generate.failures(str(tmp_path / "stage.py")).splitlines()
    assert found == ["| … rows of … | first<br>then … | 65 |", r"| a \| b |  | 2 |"]


def test_a_page_of_a_stage_names_modules_that_end_it(generate):
    for page in (DOCS / "stages").glob("*.md"):
        for modules in re.findall(r"<!-- failures (.*) -->", page.read_text("utf-8")):
            assert not [name for name in modules.split() if not any(generate.raised(ROOT / name))], page.name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages as they are read. Strict: a link or a heading that is not there, a page that is in no menu."""
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install --group docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_parts_are_filled_in(site, pages):
    for name in pages:
        page = (site / name).with_suffix(".html").read_text("utf-8").partition("<article")[2]
        assert not re.findall(r"<!-- \w+ ", page), name
    assert "ppo.kl_coef" in (site / "stages" / "ppo.html").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_ask_for_nothing_and_are_for_everyone(browser, site, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page = browser.new_context(color_scheme=scheme, viewport={"width": 390, "height": 800}).new_page()
    seen = []
    page.on("request", lambda request: seen.append(request.url))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    for name in ("index", "tutorial", "recipes", "stages/ppo", "reference/errors"):
        page.goto((site / f"{name}.html").as_uri())
        found = axe.run(page).response["violations"]
        assert not [(f["id"], f["nodes"][0]["html"]) for f in found if f["impact"] in ("serious", "critical")], name
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    assert not [url for url in seen if not url.startswith(("file:", "data:", "blob:"))]
