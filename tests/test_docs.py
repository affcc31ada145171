"""The documents say what is there: paths and links exist, every choice of ours is in PAPER.md, the site is whole."""

import re
from pathlib import Path

import pytest

from rlhf.provenance.origins import known_settings
from rlhf.schema import Source

ROOT = Path(__file__).resolve().parents[1]
DOCS = (
    "README.md",
    "PAPER.md",
    "CONTRIBUTING.md",
    "LOG.md",
    "data/README.md",
    "benchmarks/README.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
)
FOLDERS = "rlhf|stages|configs|data|docs|tests|benchmarks"
TEMPLATES = {"stages/name.py", "rlhf/functional/name.py", "tests/functional/test_name.py"}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCS)
def test_every_path_that_is_named_exists(name):
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text(name))) - TEMPLATES
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("name", DOCS)
def test_every_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)#:]+)\)", text(name))
    assert not [link for link in links if not ((ROOT / name).parent / link).exists()]


def test_every_file_of_the_readmes_tree_exists():
    tree = text("README.md").partition("## What is where")[2].partition("\n## ")[0]
    folder = ROOT
    for line in tree.splitlines():
        if found := re.match(r"    (  )?((?:[\w/]+(?:\.py|/) )+)", line + " "):
            inside, names = found.groups()
            if not inside:
                folder = ROOT / names.split()[0]
            assert not [n for n in names.split() if not ((folder if inside else ROOT) / n).exists()], line


def test_the_readmes_tree_names_every_room_of_the_library():
    tree = text("README.md").partition("## What is where")[2].partition("\n## ")[0]
    named = set(re.findall(r"\w+(?:\.py|/)", tree))
    rooms = {path.name + "/" * path.is_dir() for path in (ROOT / "rlhf").glob("[!_]*")}
    assert rooms <= named, rooms - named


def test_every_choice_of_ours_stands_in_paper_md():
    fields = {**known_settings(), **{f"data.{name}": field for name, field in Source.model_fields.items()}}
    ours = [n for n, field in fields.items() if str((field.json_schema_extra or {}).get("source")).startswith("ours")]
    words = set(re.findall(r"\w+", text("PAPER.md")))
    assert not [name for name in ours if name.rpartition(".")[2] not in words]


def test_the_result_has_its_place():
    assert re.search(r"<!-- result -->\n.+?\n<!-- /result -->", text("README.md"), re.DOTALL)
