"""`rlhf plan`: figures worked by hand, what fits, and that the advice given would help."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.cli import main
from rlhf.config import load
from rlhf.costs.advice import nearest
from rlhf.costs.hardware import Hardware
from rlhf.costs.memory import Bytes
from rlhf.costs.shapes import shape_of
from rlhf.costs.stages import STAGES, _Plan, cost_of
from rlhf.errors import ConfigError
from rlhf.schema import STAGES as KNOWN

N = 6_738_415_616  # parameters of Llama 2 7B
R = N - 32000 * 4096 + 4096  # with a scalar head


def cost(stage, name="llama2-7b", **hardware):
    recipe = load(name).recipe
    return cost_of(stage, recipe, shape_of(recipe.model), Hardware(**hardware))


def test_every_stage_has_its_costs():
    assert set(STAGES) == set(KNOWN)


def test_sft_of_7b_in_float32():
    found = cost("sft").bytes
    assert (found.weights, found.gradients, found.optimizer) == (4 * N, 4 * N, 8 * N)


def test_zero2_shards_gradients_and_moments_and_zero3_the_weights():
    assert cost("sft", gpus=8, engine="ddp").bytes.weights == 4 * N
    two, three = (cost("sft", gpus=8, engine=engine).bytes for engine in ("zero2", "zero3"))
    assert (two.weights, two.gradients, two.optimizer) == (
        4 * N,
        N / 2,
        1.5 * N,
    )  # two moments and a copy of the weights
    assert (three.weights, three.gradients, three.optimizer) == (N / 2, N / 2, 1.5 * N)
    assert cost("sft", gpus=8, engine="fsdp").bytes == replace(three, optimizer=N)


def test_ppo_holds_five_models_and_the_best_so_far():
    found = cost("ppo").bytes
    assert found.weights == 4 * (3 * N + 3 * R)  # policy, reference, best policy; critic, two reward models
    assert found.optimizer == 8 * (N + R)


@pytest.mark.parametrize("engine", ["fsdp", "zero2", "zero3"])
def test_ppos_models_are_in_parts_where_the_engine_cuts_models(engine):
    """The fullest moment is when the policy learns: its weights and gradients are whole beside an eighth of all."""
    few = ("ppo.minibatch_size=8", "ppo.max_new_tokens=8", "generation.rows_per_batch=8")
    recipe = load("llama2-7b", few).recipe
    found = cost_of("ppo", recipe, shape_of(recipe.model), Hardware(gpus=8, engine=engine)).bytes
    assert found.weights == 4 * (3 * N + 3 * R) / 8 + 4 * N
    assert found.gradients == 4 * (N + R) / 8 + 4 * N
    assert found.optimizer == 8 * (N + R) / 8
    assert cost("ppo", gpus=8).bytes.weights == 4 * (3 * N + 3 * R)


def test_of_ppos_models_with_adapters_only_those_learn():
    """Rank 16 beside all linear layers of a body in bfloat16: the reference is one more adapter, which is not cut."""
    words = ("model.lora.rank=16", "model.dtype=bfloat16", "generation.rows_per_batch=1")
    recipe = load("llama2-7b", words).recipe
    found = cost_of("ppo", recipe, shape_of(recipe.model), Hardware(gpus=8, engine="fsdp")).bytes
    adapter = 4 * 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    head = 4 * 4096  # in float32 beside an adapter
    bodies = 2 * N + adapter + 3 * (2 * R + adapter + head)
    assert found.weights == (bodies + adapter) / 8 + adapter + 2 * N + adapter
    assert found.gradients == (2 * adapter + head) / 8 + adapter


@pytest.mark.parametrize(
    ("name", "gpus", "file"),
    [(f"llama2-{n}b", gpus, f"configs/llama2-{n}b.yaml") for n, gpus in ((7, 1), (7, 8), (7, 16), (13, 8), (13, 16))]
    + [("llama2-7b", 8, "docs/limits.md"), ("llama2-70b", 64, "docs/limits.md")],
)  # fmt: skip
def test_what_is_written_of_ppo(name, gpus, file):
    recipe = load(name, ("generation.rows_per_batch=1",)).recipe
    found = cost_of("ppo", recipe, shape_of(recipe.model), Hardware(gpus=gpus, engine="fsdp")).bytes
    held = (found.weights + found.gradients + found.optimizer) / 1e9
    assert f"{held:.0f} GB" in (Path(__file__).parents[2] / file).read_text()


def test_operations_of_sft():
    """30,000 rows of 1,024 tokens, twice; with checkpointing 8 operations a weight and token, and attention."""
    found = cost("sft")
    assert found.tokens == 30_000 * 1024 * 2
    weights = N - 32000 * 4096 - (2 * 32 + 1) * 4096  # neither embeddings nor norms multiply
    attention = 4 * 2 * 32 * 4096 * 4096
    assert found.flops == found.tokens * (8 * weights + attention)
    assert cost("sft", gpus=8, tflops=312.0, mfu=0.5).seconds(Hardware(gpus=8, tflops=312.0, mfu=0.5)) == (
        pytest.approx(found.flops / (8 * 312e12 * 0.5))
    )


def test_tokens_of_ghost_attention():
    """1,000 dialogues of 11 turns on average, replayed prompts, 4 answers each; two epochs of dialogues and replayed.

    2 to 8 turns give 1 to 7 rows, 9 to 20 give eight: 124 for 19 lengths.
    """
    replayed = 1_000 * 124 / 19
    assert cost("gatt").tokens == pytest.approx(512 * 5 * (11_000 + replayed) + 2 * 1024 * (1_000 + replayed))


def test_tokens_of_safety_data_scaling():
    """Of 50,000 pooled answers half are safety rows: six models, with 1.86 times all of those between them."""
    assert cost("scaling").tokens == pytest.approx(1024 * 6 * 300 + 2 * 1024 * 25_000 * (6 + 1.86))


def test_what_ppo_holds_while_it_updates():
    """7B in float32, an answer of 512 tokens to a prompt of 512, 4 rows at a time, every layer checkpointed; of the
    logits, 2 ** 22 numbers at a time, six copies; and the next gradient of the embedding."""
    recipe = load("llama2-7b", ("generation.rows_per_batch=1",)).recipe
    found = cost_of("ppo", recipe, shape_of(recipe.model), Hardware()).bytes
    layers = 32 * 4096 * 4 + (8 * 4096 + 4 * 4096 + 4 * 11008) * 4
    assert found.activations == 4 * 1024 * layers + 6 * 4 * 2**22 + 32000 * 4096 * 4
    assert found.gradients == 4 * (N + R)
    assert found.cache == 0


def test_decoding_on_a_cpu_holds_its_copy_of_the_weights_and_each_prompt_once():
    """32 prompts of 16 tokens with 8 answers of at most 28 each; linear layers and head of 500 words once more."""
    recipe = load("tiny", ("model.vocab_size=500",)).recipe
    gpu, cpu = (
        _Plan(recipe, shape_of(recipe.model), Hardware(prompt_tokens=16, cpu=cpu)).decoding(1800, 28, samples=8)
        for cpu in (False, True)
    )
    token = 2 * 3 * 2 * 32 * 4
    assert (gpu.weights, gpu.cache) == (0, 256 * (16 + 28) * token)
    linear = 3 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 352)
    assert (cpu.weights, cpu.cache) == (4 * (linear + 500 * 128), (32 * 16 + 256 * 28) * token)


def test_shares_add_up():
    whole = Bytes(weights=8, gradients=8, optimizer=16, activations=3, cache=5)
    assert whole.sharded("fsdp", 4) == Bytes(2, 2, 4, 3, 5)
    assert whole.sharded("ddp", 4) == whole
    assert whole.total == 40


@pytest.mark.parametrize("stage", ["sft", "reward", "rejection"])
@pytest.mark.parametrize("name", ["llama2-7b", "llama2-13b"])
def test_the_advice_helps(stage, name, capsys):
    recipe = load(name).recipe
    found = nearest(stage, recipe, shape_of(recipe.model), Hardware(gpus=8, gpu_memory=80e9))
    assert found is not None
    words, then = found
    assert then.bytes.total <= 80e9
    assert not [word for word in words if word.startswith("gpus=")]
    assert main(["plan", f"config={name}", *words, "gpus=8", "gpu_memory=80GB", f"stage={stage}"]) == 0
    assert f"\n{stage} fits: " in capsys.readouterr().out


def test_fewer_rows_at_once_are_the_least_change_where_the_cache_is_what_does_not_fit():
    """256 rows of 1,024 tokens of Llama 2 7B in float32: 2 * 32 layers * 4096 * 4 bytes a token, 275 GB.

    Of their logits four copies are made. Reading their prompts needs less: half of the cache, and 27 GB.
    """
    recipe = load("llama2-7b").recipe
    whole = cost("preferences").bytes
    assert whole.cache == 256 * (512 + recipe.preferences.max_new_tokens) * 2 * 32 * 4096 * 4
    assert whole.activations == 4 * 256 * 32000 * 4
    room = whole.weights + (whole.cache + whole.activations) / 8
    words, then = nearest("preferences", recipe, shape_of(recipe.model), Hardware(gpu_memory=room))
    assert words == ("generation.rows_per_batch=32",)
    assert then.bytes.cache == whole.cache / 8


def test_what_fits_is_said_of_each_stage(capsys):
    assert main(["plan", "config=llama2-7b", "gpus=8", "launch=zero3", "gpu_memory=80GB", "stage=sft,ppo"]) == 0
    out = capsys.readouterr().out
    assert "\nsft fits: 21.3 GB of 80.0 GB\n" in out
    assert "ppo does not fit" in out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gpus=0", "gpus must be a whole number above 0 (got 0)"),
        ("gpus=1.5", "gpus must be a whole number above 0 (got 1.5)"),
        ("mfu=fast", "mfu must be a number above 0 (got fast)"),
        ("gpu_memory=80QB", "gpu_memory must be a size such as 80GB (got 80QB)"),
        ("launch=zero4", "unknown launch zero4"),
    ],
)
def test_options_that_make_no_sense(word, message, capsys):
    assert main(["plan", word]) == 2
    assert message in capsys.readouterr().err


def test_processes_on_a_cpu(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path))  # whoever runs the tests may have made the run
    assert main(["plan", "launch=cpu", "stage=ppo"]) == 0
    assert "; bytes in one process of 1, the work of all\n" in capsys.readouterr().out


def test_a_model_whose_shape_is_not_known():
    with pytest.raises(ConfigError, match="is not known before it is downloaded"):
        shape_of(load("tiny", ["model.path=someone/something"]).recipe.model)


def test_it_loads_no_torch():
    script = (
        "import sys; from rlhf.cli import main; main(['plan', 'config=llama2-70b', 'gpus=8', 'gpu_memory=80GB']);"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True)


@pytest.mark.parametrize(("limit", "rows"), [("null", 3), (2, 2), (9, 3)])
def test_rows_of_a_local_file_are_counted(tmp_path, limit, rows):
    """Twice (two epochs) 1,024 tokens a row: a prompt of 512 and an answer as long."""
    file = tmp_path / "ours.jsonl"
    file.write_text('{"a": 1}\n\n{"a": 2}\n{"a": 3}')
    recipe = load("llama2-7b", [f"sft.data=[{{name: ours, path: '{file}', limit: {limit}}}]"]).recipe
    assert cost_of("sft", recipe, shape_of(recipe.model), Hardware()).tokens == rows * 1024 * 2


def test_a_dialogue_is_read_to_its_end_and_as_far_as_the_context_goes():
    """64 dialogues of 20 turns, a prompt of 16 and an answer of 28 tokens each: 880, cut at 768 with the last.

    The 740 tokens before that are held for the next turn, and stand again where the answers are drawn. Four times the
    logits of a token each is more than reading needs for the last turn.
    """
    found = cost("evaluate", "tiny", prompt_tokens=16).bytes
    assert found.cache == 64 * (740 + 768) * 2 * 3 * 2 * 32 * 4
    assert found.activations == 64 * 4 * 768 * 4


def test_the_last_turn_of_a_dialogue_is_what_is_read_of_it():
    """One dialogue of 20 turns, a prompt of 1,000 tokens and an answer of 10 each; all before the last are held.

    Reading 1,010 tokens beside 20,190 in all is more than the logits of one token four times over.
    """
    recipe = load("tiny", ["model.max_length=30000"]).recipe
    found = _Plan(recipe, shape_of(recipe.model), Hardware(prompt_tokens=1000)).decoding(1, 10, turns=20)
    assert found.cache == 20_190 * 2 * 3 * 2 * 32 * 4
    assert found.activations == 1_010 * ((4 * 128 + 3 * 352) * 4 + 5 * 20_190)


def test_the_longest_pair_decides_what_a_reward_model_holds():
    whole, short = (cost("reward", "tiny", longest_pair=n).bytes.activations for n in (None, 384))
    assert whole == short * 768 / 384


def test_a_margin_more_is_a_model_more():
    two, four = load("tiny").recipe, load("tiny", ["reward.margin_ablation=[none,small,large]"]).recipe
    one, three = (cost_of("reward", recipe, shape_of(recipe.model), Hardware()) for recipe in (two, four))
    assert three.disk == 2 * one.disk
    assert three.tokens == 2 * one.tokens


def test_a_dialogue_of_two_turns_gives_one_row_however_many_cuts():
    """Eight cuts of 20 turns give eight rows, of 2 turns one; half as many single answers are replayed beside them."""
    share = ["gatt.replay_share=0.5", "gatt.dialogues=100", "gatt.max_new_tokens=28", "gatt.samples_per_turn=1"]
    recipes = (load("tiny", [*share, f"gatt.min_turns={n}", f"gatt.max_turns={n}"]).recipe for n in (20, 2))
    longest, shortest = (cost_of("gatt", recipe, shape_of(recipe.model), Hardware()) for recipe in recipes)
    asked = 512 + 28  # a prompt and its answer
    # Sampled: every turn and what is replayed. Then three epochs of the rows, which the context cuts at 768.
    assert longest.tokens == pytest.approx(100 * (20 + 8) * asked + 3 * 768 * (100 + 800))
    assert shortest.tokens == pytest.approx(100 * (2 + 1) * asked + 3 * 768 * (100 + 100))


def test_rows_of_rejection_sampling_with_their_share_of_demonstrations():
    """1,800 best answers are 0.9 of the rows; three epochs of 2 * 512 tokens, which the context cuts to 768."""
    sampled = 512 * 2200 + 28 * 8 * 2200
    assert cost("rejection", "tiny").tokens == pytest.approx(sampled + 3 * 768 * 1800 / 0.9)


def test_where_evaluate_asks_nobody_it_samples_nothing():
    recipe = load("tiny", ["evaluate.data=[]"]).recipe
    silent, asked = cost_of("evaluate", recipe, shape_of(recipe.model), Hardware()), cost("evaluate", "tiny")
    assert silent.tokens == silent.flops == 0 < asked.tokens
