"""An export: in a fresh process, without us, it is the trained model bit by bit; its card says what the records say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rlhf.artefacts import lineage
from rlhf.checkpoint import open_artefact
from rlhf.cli import main
from rlhf.data.chat import encode_prompt
from rlhf.data.types import Turn
from rlhf.export import export
from rlhf.export.parity import compare
from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.transformers import generate
from rlhf.models.load import load_policy, save
from rlhf.reporting.card import card
from rlhf.schema import ModelConfig

TURNS = (Turn("system", "be brief"), Turn("user", "how do i open the door ?"))
MODEL = ModelConfig(max_length=128)
FRESH = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModelForCausalLM))
messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how do i open the door ?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
with torch.no_grad():
    torch.set_num_threads(1)
    logits = model(**inputs).logits
answer = model.generate(**inputs, do_sample=False, max_new_tokens=16)
bits = logits.view(torch.int32).flatten().tolist()
print(json.dumps([inputs["input_ids"][0].tolist(), bits, answer[0].tolist(), "rlhf" in sys.modules]))
"""


def about(step: str, inputs: dict[str, str], **model) -> dict:
    stage = step.partition("-")[0]
    config = {"seed": 7, "model": {"path": None, "revision": None, **model}, stage: {"data": [{"name": "microworld"}]}}
    more = {"seconds": 12.4, "tokens": 3000, "seeds": {"recipe": 7, "step": 1}, "versions": {"torch": "2"}}
    return {"step": step, "fingerprint": "f" * 64, "config": config, "inputs": inputs, **more}


@pytest.fixture
def run_dir(tmp_path, policy, tokenizer):
    run = tmp_path / "runs" / "tiny"
    for step, inputs in (("base", {}), ("sft", {"base": "x"})):
        with open_artefact(run / step, about(step, inputs)) as out:
            save(policy, tokenizer, out / "checkpoint")
    return run


@pytest.fixture
def exported(run_dir):
    folder = run_dir / "export" / "sft"
    text = card(run_dir / "sft", run="tiny", eos="</s>")
    export(run_dir / "sft", folder, MODEL, card=text, sampling={"temperature": 0.7, "max_new_tokens": 16})
    return folder


def seen_afresh(exported):
    """Prompt ids, bits of the logits and greedy answer in a process that knows transformers alone."""
    torch.set_num_threads(1)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FRESH, str(exported)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=exported)
    assert done.returncode == 0, done.stderr
    ids, bits, answer, with_us = json.loads(done.stdout.splitlines()[-1])
    assert not with_us
    return ids, bits, answer


def test_a_fresh_process_without_us_sees_the_same_bits_and_answers(exported, policy, tokenizer):
    ids, bits, answer = seen_afresh(exported)
    assert ids == encode_prompt(tokenizer, TURNS)
    with torch.no_grad():
        assert bits == policy(torch.tensor([ids])).logits.view(torch.int32).flatten().tolist()
    [[ours]] = generate(
        policy, Request([ids], ["a"], Sampling(1, 0.0, 16), seed=0, eos_token_id=tokenizer.eos_token_id)
    )
    assert answer[len(ids) :] == list(ours.token_ids)


def test_adapters_are_merged_into_the_weights_of_an_export(run_dir, tokenizer, capsys):
    """By hand: W + alpha / rank * B A. The bits are those of the merged model, the values those of the adapter's."""
    lora = ModelConfig(max_length=128, lora={"rank": 4, "alpha": 8})
    trained = load_policy(run_dir / "base" / "checkpoint", lora)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    with open_artefact(run_dir / "gatt", about("gatt", {"base": "x"})) as out:
        save(trained, tokenizer, out / "checkpoint")
    adapter = run_dir / "gatt" / "checkpoint" / "adapter_model.safetensors"
    assert adapter.exists()
    folder = run_dir / "export" / "gatt"
    export(run_dir / "gatt", folder, lora, card="", sampling={"temperature": 0.7, "max_new_tokens": 16})

    name = "model.layers.0.mlp.up_proj"
    parts = load_file(adapter)
    a, b = (parts[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    before = load_file(run_dir / "base" / "checkpoint" / "model.safetensors")[f"{name}.weight"]
    merged = load_file(folder / "model.safetensors")[f"{name}.weight"]
    assert torch.allclose(merged, before + 8 / 4 * b @ a, atol=1e-6)
    assert not torch.allclose(merged, before, atol=1e-3)

    ids, bits, _ = seen_afresh(folder)
    with torch.no_grad():
        ours = load_policy(run_dir / "gatt" / "checkpoint", MODEL).eval()(torch.tensor([ids])).logits
        beside = trained.eval()(torch.tensor([ids])).logits
    assert bits == ours.view(torch.int32).flatten().tolist()
    assert torch.allclose(ours, beside, atol=1e-4)
    words = [f"runs_dir={run_dir.parent}", "policy=gatt", "model.lora.rank=4", "model.lora.alpha=8"]
    assert main(["check", "parity", *words]) == 0
    said = capsys.readouterr().out
    assert "5 of 5 conversations are the same" in said
    apart = float(re.search(r"logits differ by up to (\S+) from", said)[1])
    assert 0 < apart < 1e-4


def test_servers_find_what_they_look_for(exported, tokenizer):
    names = {path.name for path in exported.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "generation_config.json", "config.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt"))]
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert generation["temperature"] == 0.7
    settings = json.loads((exported / "tokenizer_config.json").read_text())
    # Names that transformers 4 knows, on which servers still stand; its template has no tag of transformers' own.
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert isinstance(settings["additional_special_tokens"], list)
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert settings["chat_template"] == (exported / "chat_template.jinja").read_text()
    assert "generation" not in settings["chat_template"]
    model = json.loads((exported / "config.json").read_text())
    assert (model["torch_dtype"], model["rope_theta"]) == ("float32", 10000.0)


def test_parity_holds_and_names_the_first_token_that_differs(run_dir, exported):
    assert [finding.difference for finding in compare(run_dir / "sft", exported, MODEL, max_new_tokens=8)] == [""] * 5
    template = exported / "chat_template.jinja"
    template.write_text(template.read_text().replace("'[INST] '", "'[INST]'"))
    differ = compare(run_dir / "sft", exported, MODEL, max_new_tokens=8)
    assert differ[0].difference.startswith("prompt: token 3 is ")


def test_parity_notices_one_changed_weight(run_dir, exported):
    weights = load_file(exported / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, exported / "model.safetensors", metadata={"format": "pt"})
    assert "logits differ by up to" in compare(run_dir / "sft", exported, MODEL, max_new_tokens=8)[0].difference


def test_the_card_says_what_the_records_say(run_dir, exported):
    text = (exported / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "transformers"
    assert "base_model" not in front
    digest = json.loads((run_dir / "sft" / "manifest.json").read_text())["digest"]
    assert f"`{digest}`" in text
    assert "| sft | microworld | 12 | 3,000 |" in text
    assert "This model was not evaluated." in text
    assert "Its safety was not measured." in text
    entry = {"gold_quality": 0.5, "violation_rate": 0.25, "interval": {"violation_rate": [0.2, 0.3]}}
    (run_dir / "report.json").write_text(json.dumps({"policies": {"sft": entry}}))
    text = card(run_dir / "sft", run="tiny", eos="</s>")
    assert "| violations on unsafe prompts | 25% | 20% to 30% |" in text
    assert "It answered 25% of the unsafe prompts" in text


def test_a_llama_2_base_hands_its_licence_on(tmp_path):
    with open_artefact(tmp_path / "sft", about("sft", {}, path="meta-llama/Llama-2-7b-hf", revision="abc")):
        pass
    text = card(tmp_path / "sft", run="mine", eos="</s>")
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["base_model"]) == ("llama2", "meta-llama/Llama-2-7b-hf")
    assert "LLAMA 2 Community License" in text


def test_lineage_is_in_the_order_made(run_dir):
    assert [name for name, _ in lineage(run_dir / "sft")] == ["base", "sft"]


def test_a_folder_that_is_no_export_is_left_alone(run_dir, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    words = [f"runs_dir={run_dir.parent}", "policy=sft", f"to={tmp_path / 'mine'}"]
    assert main(["export", *words, "evaluate.max_new_tokens=8"]) == 2
    assert "exists and is no export" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").exists()


class Hub:
    """What `rlhf push` asks of the hub."""

    calls: ClassVar[list] = []

    def create_repo(self, repo, **options):
        self.calls.append(("create", repo, options["private"]))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_push_uploads_the_export_and_is_private_unless_told(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    words = [f"runs_dir={run_dir.parent}", "policy=sft", "evaluate.max_new_tokens=8"]
    assert main(["push", *words]) == 2
    assert Hub.calls == []
    for flag, private in ((), True), (("--public",), False):
        assert main(["push", "repo=me/mine", *words, *flag]) == 0
        create, upload = Hub.calls[-2:]
        assert create == ("create", "me/mine", private)
        assert {"README.md", "model.safetensors", "tokenizer.json"} <= set(upload[2])
    assert main(["check", "parity", *words]) == 0
    assert "5 of 5 conversations are the same" in capsys.readouterr().out
