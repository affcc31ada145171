"""Models that learn in parts, of which each of two processes over gloo holds one, end as those of a single process."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
# Five rows, then one: then the second process makes no forward pass at all.
SCRIPT = """
import json, os, socket, sys
from pathlib import Path
import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from rlhf.models import adapters
from rlhf.models.shared import Learnt, clip, learners, learning, parts_of, shared, whole
from rlhf.processes import engine, team
from rlhf.schema.model import LoraConfig

torch.set_num_threads(1)
SIZE = {"vocab_size": 51, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
ROWS = [torch.randint(51, (1, 5 + i), generator=torch.Generator().manual_seed(i)) for i in range(5)]

class TwoWidths(nn.Module):
    # Parameters of two dtypes, both of which learn.
    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Linear(7, 5), nn.Linear(5, 3).double()

    def forward(self, input_ids, labels):
        return self.wide(self.narrow(input_ids[:, :1] / torch.arange(9.0, 16.0)).tanh().double())

def llama(**more):
    return LlamaForCausalLM(LlamaConfig(**SIZE, attn_implementation="eager", **more)).train()

def adapted():
    model = llama()
    adapters.add(model, LoraConfig(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model

MAKE = {"plain": llama, "tied": lambda: llama(tie_word_embeddings=True), "adapted": adapted, "two dtypes": TwoWidths}

def loss_of(model, row):
    made = model(input_ids=row, labels=row)
    return (made.loss if hasattr(made, "loss") else made.float().square().sum()) / 5

def bytes_held(model, optimizer):
    # Of weights, gradients and moments, each place in memory once.
    held = [*model.parameters(), *(part.own for part in parts_of(model))]
    held += [each.grad for each in held if each.grad is not None]
    held += [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}.values())

def store(model, file):
    with whole(model):
        save_file({name: weight.clone() for name, weight in model.named_parameters()}, file)

def train(out, name):
    torch.manual_seed(7)
    model = shared(MAKE[name]())
    reference = adapters.StartOf(model) if name == "adapted" else None
    optimizer = torch.optim.AdamW(learners(model), lr=1e-2, weight_decay=0.1, fused=True)
    figures, kept = {"norms": []}, None
    for step in range(3):
        if step == 2:
            kept = {number: weight.clone() for number, weight in Learnt(model).state_dict().items()}
        with learning(model):
            for row in (ROWS, ROWS[:1], ROWS)[step][team.rank() :: team.size()]:
                loss_of(model, row).backward()
            figures["peak"] = bytes_held(model, optimizer)
        figures["norms"].append(clip(model, 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
        figures["rest"] = bytes_held(model, optimizer)
    store(model, out / f"{name}.safetensors")
    Learnt(model).load_state_dict(kept)
    store(model, out / f"{name} before.safetensors")
    if reference is not None:
        with torch.no_grad(), whole(model, reference):
            save_file({"states": reference.base_model(input_ids=ROWS[0]).last_hidden_state}, out / "reference")
    (out / f"{name}.json").write_text(json.dumps(figures))

def process(out, **place):
    if child := os.fork():
        return child
    os.environ |= {"ACCELERATE_USE_CPU": "true", **place}
    code = 1
    try:
        Path(out).mkdir()
        if place:
            assert engine.named() == "fsdp"
            PartialState()
        for name in MAKE:
            train(Path(out), name)
        code = 0
    finally:
        os._exit(code)

with socket.socket() as asked:
    asked.bind(("127.0.0.1", 0))
    port = str(asked.getsockname()[1])
place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_FSDP": "true"}
children = [process("one"), *(process(f"two-{rank}", RANK=rank, LOCAL_RANK=rank, **place) for rank in "01")]
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""
KINDS = ["plain", "tied", "adapted", "two dtypes"]
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`one/` by a single process, `two-0/` and `two-1/` by two under fsdp."""
    folder = tmp_path_factory.mktemp("made")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def figures(made, kind):
    return [json.loads((made / folder / f"{kind}.json").read_text()) for folder in ("one", "two-0", "two-1")]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["", " before"], ids=["at the end", "put back as it was"])
def test_the_weights_are_those_of_one_process(made, kind, rank, when):
    alone, together = (load_file(made / folder / f"{kind}{when}.safetensors") for folder in ("one", f"two-{rank}"))
    assert alone.keys() == together.keys() != set()
    for name in alone:
        assert (alone[name] - together[name]).norm() <= 1e-5 * alone[name].norm(), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_step_had_changed_them(made, kind):
    before, after = (load_file(made / "one" / f"{kind}{when}.safetensors") for when in (" before", ""))
    assert max((after[name] - before[name]).abs().max() for name in before) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_so_are_the_norms_of_gradients(made, kind):
    alone, *two = figures(made, kind)
    assert max(alone["norms"]) > 0.5  # so that they were scaled
    for found in two:
        assert found["norms"] == pytest.approx(alone["norms"], rel=1e-5)


def test_a_reference_without_its_adapter_is_what_the_policy_was(made):
    alone, *two = (load_file(made / folder / "reference")["states"] for folder in ("one", "two-0", "two-1"))
    for found in two:
        assert (found == alone).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_at_rest_and_at_the_peak(made, kind):
    """At rest a process holds half of weights and moments; with its gradients the whole model stands beside them.

    Of each dtype, and of what learns and what does not, a part is filled up by less than one number.
    """
    count = Counter()
    for name, weight in load_file(made / "one" / f"{kind}.safetensors").items():
        learns = kind != "adapted" or ".default." in name
        count["learns" if learns else "reference" if ".start." in name else "frozen"] += weight.nbytes
    alone, *two = figures(made, kind)
    learn, frozen, reference = count["learns"], count["frozen"], count["reference"]  # the last, an adapter, is not cut
    whole = frozen + reference + learn
    assert (alone["rest"], alone["peak"]) == (whole + 2 * learn, whole + 3 * learn)
    for found in two:
        parts = (frozen + 3 * learn) / 2
        assert found["rest"] == pytest.approx(parts + reference, abs=24)
        assert found["peak"] == pytest.approx(parts + whole + learn, abs=48)
