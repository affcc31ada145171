"""What the pages take from the code, each time they are built: a hook of MkDocs.

A line `<!-- NAME words -->` of a page becomes what the function of that name in `PARTS` returns for the words.
"""

from __future__ import annotations

import ast
import io
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from textwrap import dedent
from typing import Any

from rlhf.cli import main
from rlhf.commands import COMMANDS
from rlhf.commands.request import KEYS
from rlhf.errors import RlhfError
from rlhf.provenance.origins import known_settings, show
from rlhf.schema import Source
from rlhf.tracking.health import RULES
from rlhf.tracking.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
KINDS = {kind.__name__: kind for kind in (RlhfError, *RlhfError.__subclasses__())}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs asks for every page. A file that pages link as it stands in the repository is a page of the site, too."""
    return expand(markdown.replace("](../data/README.md", "](reference/data.md"))


def on_page_content(html: str, **_: Any) -> str:
    """A table that is too wide scrolls by itself, with the keyboard, too."""
    table = '<div class="wide" tabindex="0"><table class="rows">'
    return html.replace("<table>", table).replace("</table>", "</table></div>")


def expand(markdown: str) -> str:
    """The page with its parts filled in."""
    return re.sub(r"^<!-- (\w+)(.*) -->$", lambda m: PARTS[m[1]](*m[2].split()), markdown, flags=re.MULTILINE)


def rows(head: str, lines: list[list[str]]) -> str:
    """A table; `|` in a cell stays text."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head.split(" | "), ["---"] * len(cells[0]), *cells])


def code(text: str) -> str:
    """Text as it is typed."""
    return f"`{text}`" if text else ""


def settings(section: str) -> str:
    """The settings of a section, those of the whole run, or those of a source of data."""
    if section == "source":
        fields = dict(Source.model_fields)
    elif section == "run":
        fields = {name: field for name, field in known_settings().items() if "." not in name}
    else:
        fields = {name: field for name, field in known_settings().items() if name.startswith(f"{section}.")}
    lines = []
    for name, field in fields.items():
        source = str((field.json_schema_extra or {})["source"])  # type: ignore[index, call-overload]
        default = "none" if field.is_required() or field.default is None else show(field.default)
        lines.append([code(name), code(default), field.description or "", source])
    return rows("setting | default | what it is | from", lines)


def health(stage: str) -> str:
    """The rules that look at what a stage logs."""
    trains = {"reward": "helpfulness/loss", "base": "pretrain/loss"}.get(stage, f"{stage}/loss")
    found = [rule for rule in RULES if (rule.metric[0] != "/" if stage == "ppo" else rule.reads(trains))]
    limits = [rule.healthy.format(limit=rule.limit) for rule in found]
    lines = [
        [code(f"health/{r.name}"), code(r.metric.lstrip("/")), limit, r.cure]
        for r, limit in zip(found, limits, strict=True)
    ]
    return rows("alarm | looks at | healthy | what helps", lines)


def metrics() -> str:
    """The dictionary of metrics."""
    lines = [[code(metric.name), metric.unit, metric.meaning, metric.healthy] for metric in METRICS]
    return rows("metric | unit | what it is | healthy", lines)


def exits() -> str:
    """The exit codes of errors, from their classes."""
    lines = [[str(kind.exit_code), str(kind.__doc__).partition("\n")[0]] for kind in KINDS.values()]
    return rows("exit code | meaning", sorted(lines, key=lambda line: int(line[0])))


def failures(*modules: str) -> str:
    """What these modules may end a run with; an ellipsis stands for what is known only then."""
    found = [[what, "<br>".join(hints), str(kind.exit_code)] for m in modules for what, hints, kind in raised(ROOT / m)]
    return rows("message | ways out | exit code", found)


def catalogue() -> str:
    """Every error of the library and the stages, by module."""
    parts = []
    for path in [*sorted((ROOT / "stages").glob("*.py")), *sorted((ROOT / "rlhf").rglob("*.py"))]:
        if any(raised(path)):
            name = path.relative_to(ROOT).as_posix()
            parts.append(f"## `{name}`\n\n{failures(name)}")
    return "\n\n".join(parts)


def raised(path: Path) -> Iterator[tuple[str, list[str], type[RlhfError]]]:
    """Message, ways out and kind of every error that a file raises, in its order; not those that pass on another's."""
    nodes = sorted(
        (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if hasattr(node, "lineno")),
        key=lambda node: node.lineno,
    )
    known: dict[str, ast.expr] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args:
            hints = next((word.value for word in node.keywords if word.arg == "hints"), None)
            if isinstance(hints, ast.Name):
                hints = known.get(hints.id)
            entries = hints.elts if isinstance(hints, ast.List | ast.Tuple) else []
            what, ways = said_by(node.args[0], known), [said_by(entry, known) for entry in entries]
            if what != "…":
                yield what.replace("……", "…"), [way for way in ways if way != "…"], KINDS[node.func.id]


def said_by(node: ast.expr, known: Mapping[str, ast.expr]) -> str:
    """The text that an expression makes, as far as it stands in the source, with names that have a value by then."""
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        case ast.BinOp(op=ast.Add()):
            return said_by(node.left, known) + said_by(node.right, known)
        case ast.IfExp():
            return said_by(node.body, known)
        case ast.Name() if node.id in known:
            return said_by(known[node.id], {})
    return "…"


def commands() -> str:
    """Every command: what it is for, what it takes, how it is typed."""
    keys = re.sub(r" {3,}\[", "  [", dedent(KEYS.partition("\n")[2]))
    parts = [f"```text\n{keys}```"]
    for command in COMMANDS:
        given = {**command.words, **command.flags, **{f"{name}=": text for name, text in command.options.items()}}
        lines = [[code(name), re.sub(r"\s{2,}", " ", text)] for name, text in given.items() if name not in ("", "*")]
        width = max(map(len, command.examples), default=0)
        examples = "\n".join(
            f"{line:{width}}   # {needs}" if (needs := wants(line)) else line for line in command.examples
        )
        parts.append(f"## {command.name}\n\n{command.help.capitalize()}. {command.more}\n\n```sh\n{examples}\n```")
        if lines:
            parts.append(rows("takes | what it does", lines))
    return "\n\n".join(parts)


def wants(line: str) -> str:
    """What an example takes beside a run, in the words of the pages."""
    needs = {
        "rlhf reproduce": "takes as long as the run",
        "rlhf chat --web": "stays open",
        "rlhf push": "needs an account on the hub",
        "rlhf annotate": "waits for people",
        "rlhf check data stage=reward config=hh": "needs the hub",
        "rlhf sync": "needs a W&B account",
        "rlhf replay": "after exit code 76",
    }
    return next((what for start, what in needs.items() if line.startswith(start)), "")


def recipe(name: str, *words: str) -> str:
    """What a recipe says of itself at its head, and what it needs."""
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    head = "".join(line for line in text.partition("\n\n")[0].splitlines(keepends=True) if line.startswith("#"))
    return f"```yaml\n{head}\n```\n\n" + plan(f"config={name}", *words)


def plan(*words: str) -> str:
    """What `rlhf plan` prints of bytes and operations; its steps, all to be made, are left out."""
    out = io.StringIO()
    with redirect_stdout(out):
        main(["plan", *words])
    return f"```sh\nrlhf plan {shlex.join(words)}\n```\n\n```text\n{out.getvalue().partition(chr(10) * 2)[2]}```"


def paper(*title: str) -> str:
    """The choices of PAPER.md under this title."""
    text = (ROOT / "PAPER.md").read_text(encoding="utf-8")
    return text.partition(f"\n### {' '.join(title)}\n")[2].partition("\n#")[0].strip()


def file(path: str) -> str:
    """A page that lives elsewhere, but for its title."""
    return (ROOT / path).read_text(encoding="utf-8").partition("\n")[2]


PARTS = {
    part.__name__: part
    for part in (settings, health, metrics, exits, failures, catalogue, commands, recipe, plan, paper, file)
}
