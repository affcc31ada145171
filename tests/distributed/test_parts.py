"""A model that is trained in parts, by two processes over gloo, ends as the one that a single process has trained."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
# One import for all: the processes are forks. 27 rows do not divide into batches of 8: the last ones have fillers.
# Every other row bears no loss, nor does many a micro-batch of two. The logits of "tiled" are made as on a GPU.
SCRIPT = """
import json, os, socket, sys, traceback
from pathlib import Path
import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback
from rlhf.data.collate import PackedRow
from rlhf.data.tokenizer import train_tokenizer
from rlhf.data.types import Prompt, Turn
from rlhf.generation.protocol import Sampling
from rlhf.models.load import freeze, from_scratch, load_reward_model, policy_to_train, reward_model_from_policy, save
from rlhf.models.score import score
from rlhf.models.shared import shared, whole
from rlhf.errors import NonFiniteError, PreemptedError
from rlhf.processes import engine, team
from rlhf.resume.preemption import Stop
from rlhf.resume.saves import Saves
from rlhf.rollout import mean_kl, sample, speaker
from rlhf.schema import AdamW, GenerationConfig, ModelConfig
from rlhf.tracking.track import Tracker
from rlhf.training import row_trainer
from rlhf.training.trainers import Pair, Schedule, fit_lm, fit_reward

torch.set_num_threads(1)
SIZE = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "vocab_size": 300}
WHOLE = ModelConfig(**SIZE, max_length=128, gradient_checkpointing=True)
ADAPTED = ModelConfig(**SIZE, max_length=128, lora={"rank": 4})
TEXTS = ["take the key and open the door in the house . where is the bread ?"] * 20
HOW = {"schedule": Schedule(learning_rate=1e-3, final_lr_ratio=0.1, batch_size=8, warmup_steps=1)}
HOW |= {"optimizer": AdamW(microbatch_size=2), "seed": 3}
tokenizer = train_tokenizer(TEXTS, vocab_size=300, max_length=128)
torch.manual_seed(0)
base = Path("base")
save(from_scratch(WHOLE, tokenizer), tokenizer, base)

def here(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else getattr(tensor, "ds_tensor", tensor)

class Look(TrainerCallback):
    # How many numbers this process holds: of weights, of moments, and of weights that only the optimizer knows.
    def on_step_end(self, args, state, control, model, optimizer, **more):
        weights = [here(parameter) for parameter in model.parameters()]
        places = {tensor.untyped_storage().data_ptr() for tensor in weights}
        moments = [here(value) for state in optimizer.state.values() for value in state.values() if value.dim()]
        stepped = getattr(optimizer.optimizer, "fp32_partitioned_groups_flat", [])  # of zero3, which hides it in groups
        stepped += [here(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        copies = [tensor for tensor in stepped if tensor.untyped_storage().data_ptr() not in places]
        found = {"weights": weights, "moments": moments, "copies": copies}
        held.update({name: sum(tensor.numel() for tensor in tensors) for name, tensors in found.items()})
        watching["stop"].asked = state.global_step == watching.get("until")

held, watching, callbacks = {}, {}, Trainer.__init__
def watched(self, *given, **more):
    callbacks(self, *given, **more)
    self.add_callback(Look())
Trainer.__init__ = watched

def drawn(length, numbers):
    return torch.randint(5, len(tokenizer), (length,), generator=numbers).tolist()

def train(out, name, kind, again=""):
    numbers, places = torch.Generator().manual_seed(1), range(27)
    texts = [drawn(20 + i, numbers) for i in places]
    silent = [20 + i if i % 2 else 5 for i in places]
    rows = [PackedRow(ids, [-100] * n + ids[n:], list(range(len(ids)))) for ids, n in zip(texts, silent, strict=True)]
    row_trainer.FEW_LOGITS = 0 if name == "tiled" else 2**24
    pairs = [Pair(drawn(20 + i, numbers), drawn(15 + i, numbers), 0.5, 1.0, 0.0) for i in places]
    load, fit, data, more = {
        "policy": (policy_to_train, fit_lm, rows, {}),
        "reward": (reward_model_from_policy, fit_reward, pairs, {"safety_loss_coef": 1.0, "center_coef": 0.1}),
    }[kind]
    folder = Path(out) / f"{name}-{kind}{again}"
    folder.mkdir(parents=True, exist_ok=True)
    with Tracker(folder, run="run", step=kind) as track:
        home = Path(team.call(str(folder.absolute())))
        watching["stop"] = stop = Stop()
        saves = Saves(folder, key="", track=track, every=600, stop=stop, note=lambda *_, **__: None, home=home)
        torch.manual_seed(2)
        model = load(base, ADAPTED if name == "adapted" else WHOLE)
        fit(model, tokenizer, data, **HOW, **more, track=track, saves=saves, what=kind)
        save(model, tokenizer, folder / "checkpoint")
    (folder / "held").write_text(json.dumps(held))

def go_on(out):
    # Asked to stop after two steps of four, and started again.
    for name, kind in (("adapted", "policy"), ("whole", "reward")):
        watching["until"] = 2
        try:
            train(out, name, kind, "-again")
        except PreemptedError:
            del watching["until"]
        train(out, name, kind, "-again")

class Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden):
        return hidden.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")

def stop(out):
    # On one of them a gradient is not finite, though every loss is: all stop.
    rows = [PackedRow(ids := list(range(5, 25)), ids, list(range(20)))] * 8
    folder = Path(out) / "stopped"
    folder.mkdir()
    model = policy_to_train(base, ModelConfig(**SIZE, max_length=128))
    if team.rank() == 1:
        model.model.layers[0].register_forward_hook(lambda layer, given, made: Poison.apply(made))
    with Tracker(folder, run="run", step="sft") as track:
        saves = Saves(folder, key="", track=track, every=600, stop=Stop(), note=lambda *_, **__: None)
        try:
            fit_lm(model, tokenizer, rows, **HOW, track=track, saves=saves, what="sft")
        except NonFiniteError as error:
            (folder / "why").write_text(str(error))

def share(out):
    # A frozen model is in parts, but while it works.
    model, alike = (load_reward_model(Path(out) / "whole-reward" / "checkpoint", WHOLE) for _ in range(2))
    kept = shared(freeze(model))
    def size():
        return sum(parameter.numel() for parameter in kept.parameters()), sum(len(part.own) for part in kept.parts)
    sizes = [size()]
    with whole(kept):
        with whole(kept):
            pass  # inside of another it does nothing
        sizes += [size(), all(torch.equal(a, b) for a, b in zip(kept.parameters(), alike.parameters(), strict=True))]
    sizes.append(size())
    start, read = drawn(30, torch.Generator().manual_seed(9)), []
    rows = [[*start, *drawn(9, torch.Generator().manual_seed(i))] for i in range(5)]
    for model in (kept, alike):  # laid out alike, though one holds a part of its weights until it works
        model.model.embed_tokens.register_forward_pre_hook(lambda _, given: read.append(given[0].shape))
    assert torch.equal(*(score(scorer, rows, pad_token_id=tokenizer.pad_token_id) for scorer in (kept, freeze(alike))))
    assert set(read) <= {(1, 30 + 5 * 9)}  # by one of the processes
    assert team.summed(torch.tensor(len(read))).item() == 2
    (Path(out) / "shared").write_text(json.dumps(sizes))

def speak(out):
    # A policy that answers: five prompts of two processes, and how much of it is here before and after.
    answering = speaker(GenerationConfig(), base, WHOLE)
    def size():
        return sum(parameter.numel() for parameter in answering.model.parameters())
    sizes, turns = [size()], (Turn("user", "where is the key ?"),)
    prompts = [Prompt(str(i), turns, "x", is_safety=False) for i in range(5)]
    said = sample(answering, tokenizer, prompts, Sampling(2, 1.0, 6), seed=1)
    other = speaker(GenerationConfig(), Path(out) / "whole-policy" / "checkpoint", WHOLE).model
    kl = mean_kl(answering.model, other, said[0], temperature=1.0, pad_token_id=tokenizer.pad_token_id)
    told = {"said": [[s.completion.token_ids for s in group] for group in said], "kl": kl, "sizes": [*sizes, size()]}
    (Path(out) / "spoken").write_text(json.dumps(told))

def process(out, **place):
    if child := os.fork():
        return child
    os.environ |= {"ACCELERATE_USE_CPU": "true", **place}
    code = 1
    try:
        if engine.named() != engine.WHOLE:
            PartialState()
        for name in ("whole", "adapted"):
            for kind in ("policy", "reward"):
                train(out, name, kind)
        train(out, "tiled", "policy")
        speak(out)
        if place:
            go_on(out)
            share(out)
            stop(out)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)

def ended(*children):
    codes = {}
    while len(codes) < len(children):
        child, codes[child] = os.wait()
        if codes[child]:
            for other in set(children) - set(codes):
                os.kill(other, 9)
    return any(codes.values())

with socket.socket() as asked:
    asked.bind(("127.0.0.1", 0))
    port = str(asked.getsockname()[1])
place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
zero = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
engines = {name: {"ACCELERATE_USE_DEEPSPEED": "true", zero: name[-1]} for name in ("zero1", "zero2", "zero3")}
engines["fsdp"] = {"ACCELERATE_USE_FSDP": "true"}
sys.exit(ended(process("one")) or any(
    ended(*(process(f"{name}-{r}", RANK=r, LOCAL_RANK=r, **place, **engines[name]) for r in "01"))
    for name in sys.argv[1:]
))
"""
# Of weights, of moments, and of copies that only the optimizer knows: what a process holds.
SHARES = {"fsdp": (0.5, 0.5, 0), "zero1": (1, 0.5, 0.5), "zero2": (1, 0.5, 0.5), "zero3": (0.5, 0.5, 0.5)}
absent = pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed: pip install 'rlhf[deepspeed]'")
ENGINES = [pytest.param(name, marks=[absent] * name.startswith("zero")) for name in SHARES]
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`one/` by a single process; `fsdp-0/`, `fsdp-1/` and so on by two, each with a part of every model."""
    folder = tmp_path_factory.mktemp("trained")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"OMP_NUM_THREADS": "1", "RLHF_DEBUG": "1"}
    engines = [name for name in SHARES if name == "fsdp" or find_spec("deepspeed")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *engines],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, kind) for name in ("whole", "adapted") for kind in ("policy", "reward")), ("tiled", "policy")],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_weights_are_those_of_one_process(trained, engine, name, kind):
    made = f"{name}-{kind}/checkpoint/{'adapter_model' if name == 'adapted' else 'model'}.safetensors"
    alone, together = (load_file(trained / folder / made) for folder in ("one", f"{engine}-0"))
    assert alone.keys() == together.keys() != set()
    difference = sum((alone[key] - together[key]).double().square().sum() for key in alone)
    # Of an adapter the half that starts at zero; of a head, too, everything was learned.
    learned = [key for key in alone if name != "adapted" or "lora_B" in key or "score" in key]
    assert (difference / sum(alone[key].double().square().sum() for key in learned)).sqrt() < 1e-5
    assert sum(alone[key].abs().sum() for key in learned) > 0.1


@pytest.mark.parametrize("model", ["adapted-policy", "whole-reward"])
@pytest.mark.parametrize("engine", ENGINES)
def test_training_that_was_stopped_goes_on_and_ends_the_same_bit_for_bit(trained, engine, model):
    assert list((trained / f"{engine}-0" / f"{model}-again" / "resume").glob("save-*/own-1.safetensors"))
    undisturbed, again = (
        next((trained / f"{engine}-0" / f"{model}{way}" / "checkpoint").glob("*model.safetensors"))
        for way in ("", "-again")
    )
    assert undisturbed.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("kind", ["policy", "reward"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_process_holds_its_part(trained, engine, kind):
    alone, *two = (
        json.loads((trained / folder / f"whole-{kind}" / "held").read_text())
        for folder in ("one", f"{engine}-0", f"{engine}-1")
    )
    whole = alone["weights"]
    assert (alone["moments"], alone["copies"]) == (2 * whole, 0)
    for held in two:
        shares = [held["weights"] / whole, held["moments"] / whole / 2, held["copies"] / whole]
        assert shares == pytest.approx(SHARES[engine], abs=0.01)  # parts are of one size, and the last is filled up


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_process_writes_and_the_others_link_to_it(trained, engine):
    places = [trained / f"{engine}-{rank}" / "whole-policy" / "checkpoint" for rank in (0, 1)]
    assert places[1].resolve() == places[0]
    config = json.loads((places[0] / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "distributed_config" not in config


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_frozen_model_is_whole_while_it_works_and_in_parts_otherwise(trained, engine, rank):
    count = json.loads((trained / "one" / "whole-reward" / "held").read_text())["weights"]
    assert count % 2 == 0
    before, during, same, after = json.loads((trained / f"{engine}-{rank}" / "shared").read_text())
    assert (before, during, same, after) == ([0, count // 2], [count, count // 2], True, [0, count // 2])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_policy_that_speaks_is_in_parts_before_and_after(trained, engine, rank):
    alone, found = (json.loads((trained / folder / "spoken").read_text()) for folder in ("one", f"{engine}-{rank}"))
    count = json.loads((trained / "one" / "whole-policy" / "held").read_text())["weights"]
    assert alone["sizes"] == [count, count]
    assert found["sizes"] == [0, 0]
    assert found["said"] == alone["said"]
    assert {len(ids) for group in alone["said"] for ids in group} != {0}
    assert found["kl"] == pytest.approx(alone["kl"], rel=1e-3)  # of policies that are alike to 1e-5


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_that_is_not_finite_on_one_stops_all(trained, engine, rank):
    why = (trained / f"{engine}-{rank}" / "stopped" / "why").read_text()
    assert why.startswith("the gradient is not finite at step 1 of sft\n")
