"""A model that is trained in parts, by two processes over gloo, ends as the one that a single process has trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
# One import for all: the processes are forks. 27 rows do not divide into batches of 8: the last ones have fillers.
SCRIPT = """
import json, os, socket, sys
from pathlib import Path
import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.tensor import DTensor
from rlhf.data.collate import PackedRow
from rlhf.data.tokenizer import train_tokenizer
from rlhf.models.load import from_scratch, policy_to_train, reward_model_from_policy, save
from rlhf.resume.preemption import Stop
from rlhf.resume.saves import Saves
from rlhf.schema import AdamW, ModelConfig
from rlhf.tracking.track import Tracker
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

def drawn(length, numbers):
    return torch.randint(5, len(tokenizer), (length,), generator=numbers).tolist()

def train(out):
    for config, name in ((WHOLE, "whole"), (ADAPTED, "adapted")):
        numbers, places = torch.Generator().manual_seed(1), range(27)
        rows = [PackedRow(ids := drawn(20 + i, numbers), [-100] * 5 + ids[5:], list(range(20 + i))) for i in places]
        pairs = [Pair(drawn(20 + i, numbers), drawn(15 + i, numbers), 0.5, 1.0, 0.0) for i in places]
        for kind, load, fit, data, more in (
            ("policy", policy_to_train, fit_lm, rows, {}),
            ("reward", reward_model_from_policy, fit_reward, pairs, {"safety_loss_coef": 1.0, "center_coef": 0.1}),
        ):
            folder = Path(out) / f"{name}-{kind}"
            folder.mkdir(parents=True)
            with Tracker(folder, run="run", step=kind) as track:
                saves = Saves(folder, key="", track=track, every=600, stop=Stop(), note=lambda *_, **__: None)
                model = load(base, config)
                cut = [p.to_local().numel() < p.numel() for p in model.parameters() if isinstance(p, DTensor)]
                fit(model, tokenizer, data, **HOW, **more, track=track, saves=saves, what=kind)
                save(model, tokenizer, folder / "checkpoint")
            (folder / "cut").write_text(json.dumps(len(cut)))

def process(out, **place):
    if child := os.fork():
        return child
    os.environ |= {"ACCELERATE_USE_CPU": "true", **place}
    code = 1
    try:
        if place:
            PartialState()
        train(out)
        code = 0
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
place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_FSDP": "true"}
sys.exit(ended(process("one")) or ended(*(process(f"two-{r}", RANK=r, LOCAL_RANK=r, **place) for r in "01")))
"""
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`one/` by a single process; `two-0/` and `two-1/` by two, each with a part of every model."""
    folder = tmp_path_factory.mktemp("trained")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RLHF_DEBUG": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", ["policy", "reward"])
@pytest.mark.parametrize("name", ["whole", "adapted"])
def test_the_weights_are_those_of_one_process(trained, name, kind):
    made = f"{name}-{kind}/checkpoint/{'adapter_model' if name == 'adapted' else 'model'}.safetensors"
    alone, together = (load_file(trained / folder / made) for folder in ("one", "two-0"))
    assert alone.keys() == together.keys() != set()
    difference = sum((alone[key] - together[key]).double().square().sum() for key in alone)
    # Of an adapter the half that starts at zero; of a head, too, everything was learned.
    learned = [key for key in alone if name == "whole" or "lora_B" in key or "score" in key]
    assert (difference / sum(alone[key].double().square().sum() for key in learned)).sqrt() < 1e-5
    assert sum(alone[key].abs().sum() for key in learned) > 0.1


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_part_of_every_weight_is_on_every_process(trained, kind):
    """Embedding, two layers of nine, a norm and a head."""
    folders = [trained / process / f"whole-{kind}" for process in ("one", "two-0", "two-1")]
    assert [json.loads((folder / "cut").read_text()) for folder in folders] == [0, 21, 21]


def test_the_first_process_writes_and_the_others_link_to_it(trained):
    assert (trained / "two-1" / "whole-policy" / "checkpoint").resolve() == (
        trained / "two-0" / "whole-policy" / "checkpoint"
    )
    config = json.loads((trained / "two-0" / "whole-policy" / "checkpoint" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "distributed_config" not in config
