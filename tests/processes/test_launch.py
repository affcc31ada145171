"""Scripts that start a run elsewhere, carried out beside a Slurm that is none; and what is refused before a start."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf import pipeline
from rlhf.cli import main
from rlhf.config import load
from rlhf.errors import ConfigError, MissingError, RlhfError
from rlhf.processes import engine, launch

ROOT = Path(__file__).resolve().parents[2]
# A srun that does the work twice, as two machines would; one node after the other is enough to see what each is told.
SRUN = """#!/usr/bin/env bash
shift
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || exit; done
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node-a\\nnode-b\\n'; else echo "$@" >> asked; fi
"""
RLHF = """#!/usr/bin/env bash
echo "$RLHF_MACHINE_RANK of $RLHF_MACHINES, $RLHF_PROCESSES at $RLHF_MAIN_ADDRESS:$RLHF_MAIN_PORT," \\
    "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE: $*" >> told
exit "${FAKE_CODE:-0}"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder with a script for two machines of four, and the programs that it calls."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_RUNS", raising=False)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "rlhf": RLHF}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node-[a-b]")
    assert main(["launch", "slurm", "nodes=2", "gpus=4", "stage=sft", "microworld.instruction_share=0.5"]) == 0
    return tmp_path


def test_a_slurm_script_asks_for_what_was_said_and_can_be_read_by_bash(cluster):
    lines = (cluster / "tiny.slurm").read_text().splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert asked >= {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "--requeue", "--signal=B:USR1@120"}
    subprocess.run(["bash", "-n", "tiny.slurm"], check=True)


def test_every_machine_is_told_its_number_and_where_the_first_is(cluster):
    assert subprocess.run(["bash", "tiny.slurm"]).returncode == 0
    assert (cluster / "told").read_text().splitlines() == [
        f"{rank} of 2, 8 at node-a:23456, 1: run launch=ddp microworld.instruction_share=0.5 stage=sft"
        for rank in (0, 1)
    ]
    assert not (cluster / "asked").exists()


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (1, False), (2, False)])
def test_what_was_asked_to_stop_goes_back_to_the_queue_and_what_failed_does_not(cluster, monkeypatch, code, requeued):
    monkeypatch.setenv("FAKE_CODE", str(code))
    assert subprocess.run(["bash", "tiny.slurm"]).returncode == code
    assert (cluster / "asked").exists() == requeued
    assert not requeued or (cluster / "asked").read_text() == "requeue 123456\n"


def test_shortly_before_its_time_is_up_the_work_is_asked_to_stop(cluster):
    """The work says 75 when it gets SIGTERM, as `rlhf run` does, and takes a moment for it."""
    (cluster / "srun").write_text(
        "#!/usr/bin/env bash\ntrap 'sleep 0.3; exit 75' TERM\ntouch started\nwhile true; do sleep 0.05; done\n"
    )
    job = subprocess.Popen(["bash", "tiny.slurm"])
    while not (cluster / "started").exists():
        time.sleep(0.02)
    job.send_signal(10)  # SIGUSR1
    assert job.wait(timeout=20) == 75
    assert (cluster / "asked").read_text() == "requeue 123456\n"


def test_a_script_for_machines_without_a_scheduler(cluster, capsys):
    assert main(["launch", "accelerate", "nodes=2", "gpus=4", "launch=fsdp", "stage=sft", "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert not (cluster / "tiny.sh").exists()
    (cluster / "here.sh").write_text(script)
    subprocess.run(["bash", "here.sh", "1", "10.0.0.7"], check=True)
    assert (cluster / "told").read_text() == "1 of 2, 8 at 10.0.0.7:29500, 1: run launch=fsdp stage=sft\n"


@pytest.mark.parametrize("kind", ["slurm", "accelerate"])
def test_a_word_with_blanks_and_quotes_arrives_as_it_was_typed(cluster, kind, capsys):
    shutil.copy(ROOT / "configs" / "tiny.yaml", cluster / "it's mine.yaml")
    assert main(["launch", kind, "gpus=4", "config=it's mine.yaml", "run=mine", "--dry-run"]) == 0
    (cluster / "script").write_text(capsys.readouterr().out)
    assert subprocess.run(["bash", "script"]).returncode == 0
    assert "run launch=ddp config=it's mine.yaml run=mine\n" in (cluster / "told").read_text()


@pytest.mark.parametrize("words", [["nodes=0"], ["gpus=two"], ["gpus=5", "sft.batch_size=16"], ["launch=zero4"]])
def test_what_could_not_run_is_not_written(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "slurm", *words]) == 2
    assert not list(tmp_path.iterdir())


# --- refused before anything starts ---


def refusal(*words, processes=2, spread="ddp", absent=(), monkeypatch=None) -> RlhfError:
    recipe = load("tiny", words).recipe
    if monkeypatch:
        monkeypatch.setattr(launch, "find_spec", lambda name: None if name in absent else True)
    with pytest.raises(RlhfError) as caught:
        launch.check(recipe, pipeline.expand(recipe), processes, spread)
    return caught.value


QLORA = ("model.quantisation=nf4", "model.lora.rank=8")


def test_four_bit_weights_cannot_be_cut_in_parts(monkeypatch):
    error = refusal(*QLORA, spread="zero3", monkeypatch=monkeypatch)
    assert isinstance(error, ConfigError)
    assert "model.quantisation=nf4 cannot be spread by zero3" in error.what


@pytest.mark.parametrize(
    ("words", "spread", "absent", "extra"),
    [
        (QLORA, "ddp", "bitsandbytes", "rlhf[quantisation]"),
        ((), "zero2", "deepspeed", "rlhf[deepspeed]"),
        (("model.lora.rank=8",), "zero3", "deepspeed", "rlhf[deepspeed]"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(monkeypatch, words, spread, absent, extra):
    error = refusal(*words, spread=spread, absent=(absent,), monkeypatch=monkeypatch)
    assert isinstance(error, MissingError)
    assert absent in error.what
    assert f"install it: pip install '{extra}'" in error.hints


@pytest.mark.parametrize(
    ("words", "spread", "message", "hint"),
    [
        (("model.dtype=bfloat16",), "zero2", "model.dtype=bfloat16 does not go with zero2", "use launch=fsdp"),
        ((), "zero4", "DeepSpeed has no zero4", "the launch file's zero_stage is 1, 2 or 3"),
        (QLORA, "zero2", "model.quantisation=nf4 cannot be spread by zero2", "use launch=ddp"),
    ],
)
def test_what_deepspeed_cannot_do(monkeypatch, words, spread, message, hint):
    error = refusal(*words, spread=spread, monkeypatch=monkeypatch)
    assert isinstance(error, ConfigError)
    assert message in error.what
    assert hint in error.hints


def test_processes_that_do_not_divide_the_batch():
    error = refusal("sft.batch_size=10", "stages=[base,sft]", processes=4)
    assert error.what == "sft.batch_size (10) must be a multiple of microbatch_size * processes (4)"
    assert error.hints == ("set sft.batch_size=12",)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("{distributed_type: DEEPSPEED, deepspeed_config: {zero_stage: 4}}", "DeepSpeed has no zero4"),
        (
            "{distributed_type: DEEPSPEED, deepspeed_config: {offload_optimizer_device: cpu}}",
            "offload_optimizer_device=cpu is not taken from here",
        ),
        ("{distributed_type: MULTI_GPU, mixed_precision: bf16}", "mixed_precision=bf16 is not taken from here"),
        ("{distributed_type: MULTI_CPU, use_cpu: true, num_processes: 7}", "must be a multiple of microbatch_size * p"),
        ("{distributed_type: !!python/object:os.system {}}", "would make an object"),
    ],
)
def test_a_launch_file_is_read_before_it_is_obeyed(tmp_path, monkeypatch, capsys, file, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(file)
    assert main(["run", "launch=mine.yaml"]) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "spread"),
    [
        ({}, "ddp"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "zero2"),
    ],
)
def test_accelerates_own_launcher_says_its_engine_in_the_environment(monkeypatch, variables, spread):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert engine.named.__wrapped__() == spread
    # Accelerate would cut again what transformers has, or what must stay whole.
    assert not {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & set(os.environ)


def says(spread, message, hint):
    """The engine that the environment names; or, with a message, that it is refused, and what to do instead."""
    if message is None:
        assert engine.named.__wrapped__() == spread
        return
    with pytest.raises(ConfigError) as refused:
        engine.named.__wrapped__()
    assert refused.value.what == f"{message} is not taken from here"
    assert hint in refused.value.hints[0]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("--offload_optimizer_device cpu", "offload_optimizer_device=cpu", "zero3 on more of them"),
        ("--offload_param_device nvme", "offload_param_device=nvme", "zero3 on more of them"),
        ("--gradient_clipping 0.5", "gradient_clipping=0.5", "max_grad_norm of a stage"),
        ("--gradient_accumulation_steps 4", "gradient_accumulation_steps=4", "batch_size and microbatch_size"),
        ("--deepspeed_config_file ds.json", "config_file=ds.json", "zero_stage"),
        ("--deepspeed_moe_layer_cls_names A", "moe_layer_cls_names=A", "zero_stage"),
        ("--mixed_precision bf16", "mixed_precision=bf16", "model.dtype"),
        ("--offload_optimizer_device none --zero3_init_flag true --zero3_save_16bit_model true", None, None),
    ],
)
def test_no_setting_of_deepspeed_is_passed_over(monkeypatch, words, message, hint):
    """The oracle is accelerate's own launcher: what it would hand on of its options."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    given = ["--use_deepspeed", "--zero_stage", "3", "--num_processes", "2", "--num_machines", "1"]
    given += ["--mixed_precision", "no", "--main_process_port", "0", *words.split(), "-m", "rlhf"]
    parsed = launch_command_parser().parse_args(given)
    parsed.deepspeed_fields_from_accelerate_config = "zero_stage"
    monkeypatch.setattr(os, "environ", prepare_deepspeed_cmd_env(parsed)[1])  # a copy
    says("zero3", message, hint)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("--fsdp_offload_params true", "fsdp_offload_params=true", "fsdp on more of them"),
        ("--fsdp_activation_checkpointing true", "fsdp_activation_checkpointing=true", "gradient_checkpointing"),
        ("--fsdp_reshard_after_forward true", None, None),
    ],
)
def test_nor_is_what_fsdp_would_do_to_memory(monkeypatch, words, message, hint):
    """The oracle is accelerate's own launcher, as above."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    given = ["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "--num_machines", "1"]
    given += ["--mixed_precision", "no", "--main_process_port", "0", "--dynamo_backend", "no", *words.split()]
    parsed = launch_command_parser().parse_args([*given, "-m", "rlhf"])
    monkeypatch.setattr(os, "environ", prepare_multi_gpu_env(parsed))  # a copy
    says("fsdp", message, hint)


def test_the_launcher_is_told_where_the_rendezvous_is(monkeypatch):
    """Two machines: only the first hosts it, and a lost one may come again."""
    words = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", lambda parsed: words.append(parsed))
    for rank in "01":
        for name, value in {"MACHINES": "2", "PROCESSES": "8", "MACHINE_RANK": rank, "MAIN_ADDRESS": "a"}.items():
            monkeypatch.setenv(f"RLHF_{name}", value)
        monkeypatch.setenv("RLHF_MAIN_PORT", "29500")
        assert launch.start("ddp", ["stage=sft"]) == 0
    for rank, parsed in enumerate(words):
        assert (parsed.num_machines, parsed.num_processes, parsed.machine_rank) == (2, 8, rank)
        assert (parsed.rdzv_backend, parsed.rdzv_conf) == ("c10d", f"is_host={1 - rank}")
        assert (parsed.main_process_ip, parsed.main_process_port, parsed.max_restarts) == ("a", 29500, launch.RESTARTS)
    assert os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_launch_loads_no_torch():
    script = (
        "import sys; from rlhf.cli import main; assert main(['launch', 'slurm', 'gpus=4', '--dry-run']) == 0;"
        "assert not {'torch', 'transformers', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True)
