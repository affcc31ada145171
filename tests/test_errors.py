"""The catalogue of errors, tests/errors.md: every message is provoked, and the page holds what was printed.

After a message was changed on purpose: `.venv/bin/python tests/test_errors.py` writes the page anew.
"""

import os
import re
import shlex
import tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from rlhf.cli import main
from rlhf.commands import COMMANDS
from rlhf.errors import DataError, RlhfError
from rlhf.provenance.origins import known_settings
from rlhf.schema import STAGES, Source

PAGE = Path(__file__).with_name("errors.md")

SOURCE = {f"{stage}.data.{name}" for stage in STAGES for name in Source.model_fields}

FILES = {
    "broken.yaml": "ppo: [1\n",
    "list.yaml": "- ppo\n",
    "latin.yaml": b"run: caf\xe9\n",
    "object.yaml": "run: !!python/object/apply:os.system ['true']\n",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "bomb.yaml": "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
    "secret.yaml": "model: {path: hf_abcdefghijklmnopqrstuvwxyz012345}\n",
    "typo.yaml": "ppo:\n  kl_cof: 0.1\n",
    "empty.yaml": "ppo:\n  kl_coef:\n",
    "model.safetensors": "",
    "runs/empty/report.json": "{}",
    "runs/locked/rlhf.lock": "no lock\n",
    "runs/plain": "a file\n",
    "rated.csv": "id,choice\n",
}

# What a reader may type; none of it starts a stage. Lists that grow with every command are left to tests/test_cli.py.
TYPED = r"""
rlhf run ppo
rlhf run my.yaml
rlhf run stage=
rlhf run --rerum
rlhf run --ppo.kl_coef=0.1
rlhf show --rerun
rlhf show stage=pppo
rlhf run stage=ppo
rlhf run stage=ppo ppo.kl_cof=0.005
rlhf plan stage=rejectoin
rlhf plan stage=,
rlhf plan stage=distill
rlhf plan 'stages=[sft]'
rlhf plan 'stages=[base, rewad]'
rlhf plan 'stages=[]'
rlhf plan rounds=0
rlhf plan run=../elsewhere
rlhf plan ppo.kl_coef=
rlhf plan ppo.kl_coef=much
rlhf plan ppo.kl_coef=-1
rlhf plan ppo.kl_coef=.nan
rlhf plan ppo=3
rlhf plan 'ppo.data=['
rlhf plan reward.margin=huge
rlhf plan model.heads=3
rlhf plan model.quantisation=nf4
rlhf plan ppo.max_new_tokens=768
rlhf plan base.row_length=9999
rlhf plan 'sft.data=[]'
rlhf plan 'reward.data=[{name: microworld}]'
rlhf plan 'reward.data=[{name: ours, kind: nice}]'
rlhf plan 'rejection.data=[{name: microworld, pth: x}]'
rlhf plan 'evaluate.turns=[]'
rlhf plan evaluate.prompts=1
rlhf plan config=nothing
rlhf plan config=nothing.yaml
rlhf plan config=broken.yaml
rlhf plan config=list.yaml
rlhf plan config=latin.yaml
rlhf plan config=object.yaml
rlhf plan config=twice.yaml
rlhf plan config=bomb.yaml
rlhf plan config=secret.yaml
rlhf plan config=typo.yaml
rlhf plan config=empty.yaml
rlhf plan gpus=some
rlhf plan gpu_memory=lots
rlhf plan model.path=me/unknown
rlhf run stage=sft
rlhf run stage=base 'base.data=[{name: books, path: books.txt}]'
rlhf run stage=base model.path=runs/empty
rlhf plan sft.data=demos.jsonl
rlhf run run=locked --locked
rlhf run run=new --locked
rlhf run run=plain
rlhf report
rlhf report format=pdf
rlhf samples
rlhf samples run=empty
rlhf chat
rlhf chat run=empty policy=ppo
rlhf export policy=ppo
rlhf push
rlhf push repo=mine
rlhf check
rlhf check data twice
rlhf check data stage=pppo
rlhf check parity
rlhf diff tiny
rlhf diff tiny nothing
rlhf metrics gen/eos_rat
rlhf reproduce
rlhf reproduce nothing
rlhf reproduce tiny ppo.kl_coef=1
rlhf annotate
rlhf annotate export pairs.csv
rlhf annotate import rated.csv
rlhf doctor
rlhf doctor ruin
"""
COMMANDS_TYPED = TYPED.strip().splitlines()

# A line of pairs.jsonl, read as `reward.data=[{name: ours, kind: helpfulness, path: pairs.jsonl}]`.
LINES = r"""
{"prompt": "how ?", "chosen": "so", "rejected": "no"
{"prompt": "how ?", "prompt": "why ?", "chosen": "so", "rejected": "no"}
{"prompt": "how ?", "chosen": "so", "rejected": NaN}
["how ?", "so", "no"]
{"question": "how ?", "answer": "so"}
{"prompt": "how ?", "chosen": "so"}
{"prompt": "how ?", "chosen": "so", "rejected": "so"}
{"prompt": "how ?", "chosen": "", "rejected": "no"}
{"prompt": "how ?", "chosen": "so", "rejected": 7}
{"prompt": 7, "chosen": "so", "rejected": "no"}
{"prompt": "how ?", "chosen": "so [INST]", "rejected": "no"}
{"prompt": "how ?", "chosen": "so", "rejected": "no", "rating": "much"}
{"prompt": "how ?", "chosen": "so", "rejected": "no", "chosen_safe": "yes"}
{"prompt": "how ?", "chosen": "so", "rejected": "no", "chosen_safe": false, "rejected_safe": true}
{"prompt": [{"role": "assistant", "content": "so"}], "chosen": "so", "rejected": "no"}
{"prompt": [{"role": "robot", "content": "so"}], "chosen": "so", "rejected": "no"}
{"chosen": "how ? so", "rejected": "how ? no"}
{"chosen": "\n\nHuman: how ?\n\nAssistant: so", "rejected": "\n\nHuman: why ?\n\nAssistant: no"}
"""
ROWS = LINES.strip().splitlines()


def typed(line: str) -> tuple[int, str]:
    """Exit code and message of a command."""
    err = StringIO()
    with redirect_stderr(err), redirect_stdout(StringIO()):
        code = main(shlex.split(line)[1:])
    return code, err.getvalue()


def read(row: str) -> tuple[int, str]:
    """Exit code and message that a line of a file of pairs would end a stage with."""
    from rlhf.data.sources import load_preferences

    Path("pairs.jsonl").write_text(row + "\n")
    try:
        load_preferences(Source(name="ours", kind="helpfulness", path="pairs.jsonl"), say=lambda text: None)
    except DataError as error:
        return error.exit_code, f"error: {error}\n"
    return 0, ""


def write_files() -> None:
    for name, content in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RLHF_RUNS", "RLHF_DEBUG", "RANK"):
        monkeypatch.delenv(name, raising=False)
    write_files()


def golden() -> dict[str, tuple[int, str]]:
    """The page: what was typed or read, its exit code, and the message."""
    blocks = re.findall(r"```\n(?:\$ )?(.+)\n((?:.*\n)+?)(\d+)\n```", PAGE.read_text(encoding="utf-8"))
    return {cause: (int(code), message) for cause, message, code in blocks}


@pytest.mark.parametrize("cause", [*COMMANDS_TYPED, *ROWS])
def test_the_page_has_what_is_printed(folder, cause):
    assert (typed(cause) if cause.startswith("rlhf ") else read(cause)) == golden()[cause]


def test_the_page_has_nothing_else_and_enough():
    assert list(golden()) == [*COMMANDS_TYPED, *ROWS]
    assert len({message for _, message in golden().values()}) >= 60


@pytest.mark.parametrize("cause", [*COMMANDS_TYPED, *ROWS])
def test_a_message_is_short_and_names_what_to_change(cause):
    code, message = golden()[cause]
    lines = message.splitlines()
    assert lines[0].startswith("error: ")
    assert "a bug of ours" not in message
    assert len(lines) <= 8
    assert max(map(len, lines)) <= 300
    known = [kind.exit_code for kind in (RlhfError, *RlhfError.__subclasses__())]
    assert code in known
    typed_wrong = "\n  did you mean " in message or "\n  given on the command line\n" in message
    assert typed_wrong or any(named(word) for word in message.split()), message


def named(word: str) -> bool:
    """True for a command, a KEY=VALUE, the name of a setting, a place in a file, or a file to look at."""
    word = word.strip("`:,").removeprefix("(got")
    key = re.sub(r"\.\d+", "", word.partition("=")[0])
    options = {name for command in COMMANDS for name in (*command.options, *command.flags)}
    settings = {*known_settings(), *SOURCE, "runs_dir"}
    return (
        word == "rlhf"
        or key in settings
        or key in {*options, "stage", "config"}
        or key.endswith(".KEY")
        or key in {name.rpartition(".")[2] for name in settings if "_" in name}
        or re.fullmatch(r"\S+\.(yaml|md|lock)|\S+\.\w+:\d+:\d+", word) is not None
    )


def page() -> str:
    """The page as it is now."""
    head = (
        "# Errors\n\nEvery message below was provoked and printed; `tests/test_errors.py` holds the page to it and"
        " writes it.\nThe number after a message is the exit code. A line of JSON stands for that line in"
        " `pairs.jsonl`, read by\n`reward.data=[{name: ours, kind: helpfulness, path: pairs.jsonl}]`.\n"
    )
    parts = [head]
    for title, causes, provoke in (("Commands and settings", COMMANDS_TYPED, typed), ("Data", ROWS, read)):
        parts.append(f"\n## {title}\n")
        for cause in causes:
            with tempfile.TemporaryDirectory() as folder, chdir(folder):
                write_files()
                code, message = provoke(cause)
            dollar = "$ " if provoke is typed else ""
            parts.append(f"\n```\n{dollar}{cause}\n{message}{code}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    for name in ("RLHF_RUNS", "RLHF_DEBUG", "RANK"):
        os.environ.pop(name, None)
    PAGE.write_text(page(), encoding="utf-8")
