"""Models, recipes, templates, data and run folders made by an attacker: refused, and none of their code runs.

Each case goes through the command line as a reader would type it, and ends with the exit code that scripts rely on.
"""

import gzip
import json
import os
import struct
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf.checkpoint import damage, open_artefact, verify, write_manifest
from rlhf.cli import main
from rlhf.data.chat import encode_dialogue
from rlhf.data.sources import load_dialogues
from rlhf.data.types import Turn
from rlhf.errors import DataError, UnsafeError
from rlhf.schema import Source
from rlhf.security.vetting import vet_model, vet_template, vet_yaml

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def run(capsys, *arguments):
    code = main(["run", *arguments])
    return code, capsys.readouterr().err


def model(folder, **files):
    """A folder with a Llama's config and the given files, `__` standing for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    return f"model.path={folder}"


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


@contextmanager
def growth():
    """How many MB the process grew at most, in the one entry of the list."""

    def status(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, grown = status("VmRSS"), []
    yield grown
    grown.append(status("VmHWM") - before)


# --- models ---


@pytest.mark.parametrize("name", ["model.bin", "weights.pt", "policy.pth", "policy.pkl", "last.ckpt"])
def test_a_pickle_given_as_the_model(canary, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(canary.pickled())
    code, err = run(capsys, f"model.path={tmp_path / name}")
    assert code == 77
    assert f"{name} is not read: a pickle, which can run any code" in err
    assert not (tmp_path / "runs" / "tiny" / "base").exists()


@pytest.mark.parametrize("name", ["pytorch_model__bin", "adapter_model__bin", "model__pt"])
def test_a_folder_whose_weights_are_pickled(canary, tmp_path, capsys, name):
    code, err = run(capsys, model(tmp_path / "llama", **{name: canary.pickled()}))
    assert code == 77
    assert "take the model in safetensors form" in err


def test_a_pickle_in_the_place_of_safetensors(canary, tmp_path, capsys):
    assert run(capsys, model(tmp_path / "llama", model__safetensors=canary.pickled()))[0] == 77


def test_a_torch_archive_in_the_place_of_safetensors(canary, tmp_path, capsys):
    import torch

    torch.save({"weight": canary}, tmp_path / "model.pt")
    archive = (tmp_path / "model.pt").read_bytes()
    assert run(capsys, model(tmp_path / "llama", model__safetensors=archive))[0] == 77


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b"{}", length=2**60),
        safetensors(b"{}", length=50 * 2**20) + b" " * 60 * 2**20,
        safetensors(b"[" * 200_000),
        safetensors(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99999999]}}'),
        safetensors(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 0]}}') + b" " * 16,
        safetensors(b'{"a": 5}'),
        b"\x00",
    ],
    ids=["huge", "large", "nested", "beyond the end", "backwards", "no tensor", "one byte"],
)
def test_a_header_out_of_all_proportion(canary, tmp_path, capsys, content):
    argument = model(tmp_path / "llama", model__safetensors=content)
    began = time.monotonic()
    with growth() as grown:
        code, err = run(capsys, argument)
    assert code == 77
    assert "model.safetensors" in err
    assert time.monotonic() - began < 10
    assert grown[0] < 200


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\b"])
def test_an_index_that_names_files_elsewhere(canary, tmp_path, capsys, name):
    index = json.dumps({"weight_map": {"lm_head.weight": name}})
    code, err = run(capsys, model(tmp_path / "llama", model__safetensors__index__json=index))
    assert code == 77
    assert "leads out of its folder" in err


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 100_000])
def test_json_that_is_nested_without_end(canary, tmp_path, capsys, name, content):
    argument = model(tmp_path / "llama")
    (tmp_path / "llama" / name).write_text(content)
    code, err = run(capsys, argument)
    assert code == 77
    assert name in err


def remote_code(folder, canary, **config):
    """A model that asks for classes of its own, in files beside it, for its config, its weights and its tokenizer."""
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tok", None]}
    model(folder, evil__py=canary.python, modeling_evil__py=canary.python)
    (folder / "config.json").write_text(json.dumps({"auto_map": names, **config}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": names, "tokenizer_class": "Evil"}))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(canary.python)
    return f"model.path={folder}"


def test_a_model_that_brings_its_own_code(canary, tmp_path, capsys):
    code, err = run(capsys, remote_code(tmp_path / "llama", canary, model_type="evil"), "stage=base", "wandb=disabled")
    assert code == 77, err
    assert "brings code of its own, which is not run" in err


def test_code_beside_a_known_architecture_is_left_alone(canary, tmp_path, policy, tokenizer):
    from rlhf.models.load import load_policy, save, save_source
    from rlhf.schema import ModelConfig

    save(policy, tokenizer, tmp_path / "llama")
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    remote_code(tmp_path / "llama", canary, **config)
    (tmp_path / "llama" / "training_args.bin").write_bytes(canary.pickled())
    (tmp_path / "llama" / "pytorch_model.bin").write_bytes(canary.pickled())
    save_source(tokenizer, tmp_path / "base", path=str(tmp_path / "llama"), revision=None)
    loaded = load_policy(tmp_path / "base", ModelConfig(path=str(tmp_path / "llama")))
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert "generate" not in vars(loaded)


# --- chat templates ---

ESCAPE = "{{ cycler.__init__.__globals__.os.system(%r) }}"
MRO = "{%% for c in ''.__class__.__mro__[1].__subclasses__() %%}{{ c }}{%% endfor %%}{{ messages.__init__ }}%s"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
MEMORY = "{% set x = 'a' * 10 ** 10 %}{{ x }}"
LONG = "{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ESCAPE, "reaches for"),
        (MRO, "reaches for"),
        (LOOP, "more than 2 seconds or 1024 MiB"),
        (MEMORY, "more than"),
        (LONG, "more than"),
    ],
    ids=["escape", "subclasses", "endless", "memory", "output"],
)
def test_a_chat_template_that_wants_out(canary, tmp_path, capsys, template, reason):
    template = template % canary.command if "%r" in template or "%s" in template else template
    began = time.monotonic()
    settings = json.dumps({"chat_template": template})
    code, err = run(capsys, model(tmp_path / "llama", tokenizer_config__json=settings))
    assert code == 77
    assert reason in err
    assert time.monotonic() - began < 30


def test_a_template_that_attacks_only_later_is_stopped_when_it_is_rendered(canary, tokenizer):
    import copy

    sly = "{% if messages[0]['content'] == 'now' %}" + ESCAPE % canary.command + "{% endif %}"
    vet_template(sly, "here")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = sly
    with pytest.raises(UnsafeError, match="the chat template reaches"):
        encode_dialogue(tokenizer, [Turn("user", "now"), Turn("assistant", "a")])


def test_honest_templates_pass():
    from rlhf.data.chat import LLAMA2_TEMPLATE

    chatml = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    )
    strict = "{{ raise_exception('only on Mondays, and today is ' + strftime_now('%A')) }}"
    loops = "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}{% break %}{% endfor %}"
    for template in (LLAMA2_TEMPLATE, chatml, strict, loops, "{{"):
        vet_template(template, "here")


# --- recipes ---


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!evil", "!!python/name:os.system"]
)
def test_a_yaml_tag_that_makes_an_object(canary, tmp_path, capsys, tag):
    (tmp_path / "evil.yaml").write_text(f'rounds: 1\nmodel:\n  path: {tag} ["{canary.command}"]\n')
    code, err = run(capsys, "config=evil.yaml")
    assert code == 77
    assert "would make an object" in err
    assert "evil.yaml line 3" in err


def test_aliases_that_unfold_without_end(canary, tmp_path, capsys):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    began = time.monotonic()
    with growth() as grown:
        code, err = run(capsys, "config=bomb.yaml")
    assert code == 77
    assert "unfold into more than 100,000 values" in err
    assert time.monotonic() - began < 5
    assert grown[0] < 100


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: " + "[" * 5000, "a: " + "x" * 2**21], ids=["loop", "deep", "long"])
def test_yaml_out_of_all_proportion(canary, tmp_path, capsys, text):
    (tmp_path / "bomb.yaml").write_text(text)
    assert run(capsys, "config=bomb.yaml")[0] == 77


def test_the_recipes_of_the_house_are_plain():
    from rlhf.config import known_configs

    for path in known_configs().values():
        assert vet_yaml(path.read_text(), path) is not None


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("run=../../elsewhere", 2),
        ("run=/etc", 2),
        ("model._target_=os.system", 2),
        ("model.path=${eval:1}", 2),
        ("sft.data=[{name: ../../etc, split: train}]", 2),
    ],
)
def test_settings_that_reach_elsewhere(canary, capsys, argument, code):
    assert run(capsys, argument)[0] == code


# --- run folders of others ---


def artefact(tmp_path):
    with open_artefact(tmp_path / "sft", {"step": "sft"}) as out:
        (out / "checkpoint").mkdir()
        (out / "checkpoint" / "weights").write_text("w")
    return tmp_path / "sft"


@pytest.mark.parametrize("name", ["../../.ssh/id_rsa", "/etc/passwd", "checkpoint/../../x"])
@pytest.mark.parametrize("where", ["files", "stat"])
def test_a_manifest_that_lists_files_elsewhere(canary, tmp_path, name, where):
    folder = artefact(tmp_path)
    manifest = verify(folder)
    manifest[where] |= {name: manifest[where]["checkpoint/weights"]}
    write_manifest(folder, manifest)  # with a checksum that fits
    for look in (damage, verify):
        with pytest.raises(UnsafeError, match="leads out of its folder"):
            look(folder)


def test_a_link_that_leads_out_of_an_artefact(canary, tmp_path):
    folder = artefact(tmp_path)
    (tmp_path / "secret").write_text("w")  # the same bytes, so that no checksum can tell
    (folder / "checkpoint" / "weights").unlink()
    (folder / "checkpoint" / "weights").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeError, match="is a link that leads out of sft"):
        verify(folder)


def test_a_file_that_was_added_beside_the_weights(canary, tmp_path):
    from rlhf.errors import MissingError

    folder = artefact(tmp_path)
    (folder / "checkpoint" / "adapter_config.json").write_text("{}")
    with pytest.raises(MissingError, match=r"adapter_config\.json was added later"):
        verify(folder)


# --- data ---


def test_a_folder_of_data_with_a_loading_script(canary, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.py").write_text(canary.python)
    (tmp_path / "set" / "set.py").write_text(canary.python)
    (tmp_path / "set" / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    source = Source(name="mine", path=str(tmp_path / "set"))
    assert len(load_dialogues(source, say=lambda line: None)) == 1


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet", "txt.gz", "pkl"])
def test_a_pickle_in_the_place_of_data(canary, tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(canary.pickled())
    with pytest.raises(DataError) as caught:
        load_dialogues(Source(name="mine", path=str(path)), say=lambda line: None)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("row", ["[" * 100_000, '{"prompt":' * 100_000, '{"prompt": ' + "9" * 10_000 + "}"])
def test_a_row_of_json_that_is_nested_without_end(canary, tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(row + "\n")
    with pytest.raises(DataError, match=r"not a line of JSON"):
        load_dialogues(Source(name="mine", path=str(path)), say=lambda line: None)


def test_a_small_archive_that_unfolds_into_one_long_line(canary, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(b"a" * 2**20)  # 300 MiB of one line, 300 kB packed
    with growth() as grown, pytest.raises(DataError, match="a line longer than 8 MiB"):
        load_dialogues(Source(name="mine", path=str(path)), say=lambda line: None)
    assert grown[0] < 200


def test_a_known_set_whose_folder_leads_elsewhere(canary, monkeypatch):
    entry = {"revision": "0" * 40, "folders": {"helpfulness": "../../private"}}
    monkeypatch.setattr("rlhf.data.sources.entry_of", lambda source, **_: entry)
    with pytest.raises(UnsafeError, match="leads out of its folder"):
        load_dialogues(Source(name="org/set"), say=lambda line: None)


def test_a_hub_id_and_an_honest_folder_pass(tmp_path, policy, tokenizer):
    from rlhf.models.load import save

    vet_model("meta-llama/Llama-2-7b-hf")
    save(policy, tokenizer, tmp_path / "llama")
    os.symlink(
        tmp_path / "llama" / "model.safetensors", tmp_path / "llama" / "blob.safetensors"
    )  # the hub's cache links
    vet_model(str(tmp_path / "llama"))
