"""The steps of docs/own-data.md, to the letter: its files, its recipe, its commands, and a model of one's own."""

import json
import re
import shlex
from pathlib import Path

import pytest

from rlhf.cli import main

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "own-data.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line)[1:] for line in PAGE.replace("\\\n", " ").splitlines() if line.startswith("rlhf ")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def copies(block: str, count: int = 24) -> str:
    """The rows of the page many times over, each time about something else."""
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    words = [f"{a} {b}" for a in numbers for b in numbers][:count]
    return "".join(
        block.replace("the door", f"the {word} door").replace("the key", f"the {word} key") for word in words
    )


@pytest.fixture
def folder(tmp_path, monkeypatch, policy, tokenizer):
    """A folder with what the reader has, a model, and what the page has them write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_RUNS", raising=False)
    policy.config.max_position_embeddings = 1024  # rotary positions have no weights
    policy.save_pretrained("my-model")
    tokenizer.save_pretrained("my-model")
    names = re.findall(r"in `(\w+\.jsonl)`", PAGE)
    for name, block in zip(names, blocks("json"), strict=True):
        Path(name).write_text(copies(block))
    (recipe,) = blocks("yaml")
    assert len(recipe.splitlines()) <= 36
    Path("my.yaml").write_text(recipe)
    return tmp_path


def test_the_lines_that_add_a_padding_token_make_a_model_that_is_taken(folder, policy):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    from rlhf.data.chat import ensure_pad

    words = Tokenizer(WordLevel({"<eos>": 0, "key": 1}, unk_token="key"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained("bare")
    policy.resize_token_embeddings(2)
    policy.config.pad_token_id = None
    policy.save_pretrained("bare")
    assert ensure_pad(AutoTokenizer.from_pretrained("bare"))  # which is what a model is refused for
    (lines,) = blocks("python")
    exec(lines.replace("their/model", "bare"))
    tokenizer = AutoTokenizer.from_pretrained("my-model")
    assert not ensure_pad(tokenizer)
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert AutoModelForCausalLM.from_pretrained("my-model").get_input_embeddings().num_embeddings == len(tokenizer) == 3
    assert list(Path("my-model").glob("*.safetensors"))


@pytest.mark.slow
def test_the_text_alone_leads_to_trained_reward_models(folder, capsys):
    assert [words[0] for words in COMMANDS] == ["check", "plan", "run", "status", "plan"]
    for words in COMMANDS:
        code = main([*words, "threads=1", "wandb=disabled"])
        assert code == 0, (words, capsys.readouterr())
        out = capsys.readouterr().out
    kept = {line.split()[0]: line.split()[1] for line in out.partition("\n\n")[0].splitlines()}
    assert [kept[name] for name in ("base", "sft", "reward-1")] == ["skip"] * 3
    for path in re.findall(r"`(runs/my/[\w./]+)`", PAGE):
        assert Path(path).exists(), path
    report = json.loads(Path("runs/my/report.json").read_text())
    assert set(report["reward_models"]) == {"helpfulness", "safety"}
    for domain, model in report["reward_models"].items():
        assert model[domain]["pairs"]["all"] > 0
