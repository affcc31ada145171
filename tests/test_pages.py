"""The pages of docs/: every command that stands in them is typed, and what they take from the code is there.

docs/own-data.md is walked by tests/test_tutorial.py, with a model and data of one's own.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf.cli import main, parse
from rlhf.commands import COMMANDS
from rlhf.errors import RlhfError
from rlhf.tracking.health import RULES

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


@pytest.fixture(scope="module")
def generate():
    """The hook that fills the pages in."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generate):
    """Every page by its name, with its parts filled in."""
    return {page.relative_to(DOCS).as_posix(): generate.expand(page.read_text("utf-8")) for page in DOCS.rglob("*.md")}


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
            for line in block.splitlines():
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


LIGHT = ("plan", "show", "status", "metrics", "launch")


def test_what_needs_no_run_does_what_it_says(pages, folder, capsys):
    """`rlhf run` as `rlhf plan`, which reads and decides the same."""
    wrong = []
    for entry in typed(pages):
        words = entry.words[1:]
        if entry.words[0] == "rlhf" and words[0] == "run":
            words = ["plan", *(word for word in words[1:] if word not in ("--strict", "--locked"))]
        if entry.words[0] == "rlhf" and words[0] in LIGHT and not entry.reason and entry.page != "own-data.md":
            wrong += [(entry.page, entry.line, capsys.readouterr().err)] if main(words) else []
    assert not wrong


def test_every_rule_of_health_stands_on_the_page_of_a_stage(pages):
    stages = [text for name, text in pages.items() if name.startswith("stages/")]
    alarms = {alarm for text in stages for alarm in re.findall(r"health/(\w+)", text)}
    assert {rule.name for rule in RULES} <= alarms


def test_a_failure_stands_with_its_ways_out_and_code(generate, tmp_path):
    (tmp_path / "stage.py").write_text(
        "def run(job):\n"
        "    hints = ['first', f'then {job.name}']\n"
        "    if job:\n"
        "        raise DataError(f'{job.rows:,} rows are | too many', where='here', hints=hints)\n"
        "    raise ValueError('ours')\n"
    )
    (found,) = generate.failures(str(tmp_path / "stage.py")).splitlines()[2:]
    assert found == r"| … rows are \| too many | first<br>then … | 65 |"


def test_the_site_is_built_without_a_warning(tmp_path, monkeypatch):
    """Strict: a link or a heading that is not there, a page that is in no menu."""
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install --group docs")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "stages" / "ppo.html").read_text("utf-8")
    assert "ppo.kl_coef" in page
    assert not re.findall(r"<!-- \w+ ", page.partition("<article")[2])
