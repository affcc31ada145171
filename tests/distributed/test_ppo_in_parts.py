"""What two processes hold in PPO: counted in the run itself, of weights, gradients, moments and the best policy."""

import json
from importlib.util import find_spec

import lives
import pytest
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(600)]
COUNT = """
import json, os
from contextlib import contextmanager
from pathlib import Path
import rlhf.models.score as score
import rlhf.models.shared as shared
import rlhf.rollout as rollout
import stages.ppo as ppo

made, most = {}, {"rest": 0, "whole": 0, "learning": 0}

def remember(name):
    real = getattr(ppo, name)
    def make(*given):
        made[name] = real(*given)
        return made[name]
    setattr(ppo, name, make)

for name in ("load_models", "make_optimizers", "Keeper"):
    remember(name)

def note(when):
    models, keeper = made["load_models"], made["Keeper"]
    held = list(keeper.best_weights.values()) if keeper.best_weights else []
    for model in (models.policy, models.critic, models.reference, models.rewards.helpfulness, models.rewards.safety):
        held += [*model.parameters(), *(part.own for part in shared.parts_of(model))]
    held += [each.grad for each in held if each.grad is not None]
    for optimizer in made["make_optimizers"]:
        held += [moment for state in optimizer.state.values() for moment in state.values() if moment.dim()]
    places = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
    most[when] = max(most[when], sum(places.values()))
    Path(f"held-{os.environ['RANK']}").write_text(json.dumps(most))

def noting(module, name, when):
    real = getattr(module, name)
    @contextmanager
    def noted(*models):
        with real(*models):
            yield
            note(when)
    setattr(module, name, noted)

noting(ppo, "whole", "whole")
noting(rollout, "whole", "whole")
noting(score, "whole", "whole")
collect = shared.Part.collect
def collected(*given):
    collect(*given)
    note("learning")
shared.Part.collect = collected
noting(ppo, "learning", "learning")
update = ppo.update
def updated(*given):
    found = update(*given)
    note("rest")
    return found
ppo.update = updated
"""

ENGINES = {
    "ddp": {},
    "fsdp": {"ACCELERATE_USE_FSDP": "true"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
absent = pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed: pip install 'rlhf[deepspeed]'")


@pytest.mark.parametrize("engine", ["ddp", "fsdp", pytest.param("zero3", marks=absent)])
def test_bytes_at_rest_and_at_the_peak(zygote, undisturbed, tmp_path, engine):
    folder, hook = lives.without(undisturbed, "ppo", tmp_path), tmp_path / "hook.py"
    hook.write_text(COUNT)
    environment = {"RLHF_TEST_HOOK": str(hook), **ENGINES[engine]}
    pids = zygote.start_together(["run", "stage=ppo", *lives.SMALL], folder, environment, processes=2)
    assert [zygote.wait() for _ in pids] == [0, 0], (folder / "log").read_text()[-3000:]
    policy, critic = (
        sum(weight.nbytes for weight in load_file(undisturbed / made / "model.safetensors").values())
        for made in ("gatt/checkpoint", "reward-2/checkpoint/helpfulness")
    )
    # Two learn, with two moments each; the reference, two reward models and the best policy beside them.
    everything = 3 * policy + 3 * critic + policy + 2 * critic + policy
    for rank in (0, 1):
        held = json.loads((folder / f"held-{rank}").read_text())
        if engine == "ddp":
            assert held == {"rest": everything, "whole": everything, "learning": everything + policy + critic}
            continue
        assert held["rest"] == pytest.approx(everything / 2, abs=100)
        # Policy and reference, when the KL to it is taken of held-out answers.
        assert held["whole"] == pytest.approx(everything / 2 + 2 * policy, abs=100)
        # One of them and its gradients, when those of both, or the policy's alone, are there in parts.
        fullest = max(2 * critic + (policy + critic) / 2, 2 * policy + policy / 2)
        assert held["learning"] == pytest.approx(everything / 2 + fullest, abs=100)
