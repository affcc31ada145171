"""Scripts that start a run elsewhere, as text: a Slurm job, or one script for every machine. Torch-free."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rlhf.errors import PreemptedError
from rlhf.processes.launch import ENVIRONMENT

EXPORTS = "\n".join(f"export {name}={value}" for name, value in ENVIRONMENT.items())

SLURM = """\
#!/usr/bin/env bash
#SBATCH --job-name=rlhf-{run}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --output=rlhf-{run}-%j.log
#SBATCH --open-mode=append
# Two minutes before the time is up or the job is preempted, this script is told; it comes back to the queue.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

set -uo pipefail
{exports}
RLHF_MAIN_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RLHF_MAIN_ADDRESS RLHF_MAIN_PORT=$((20000 + SLURM_JOB_ID % 10000))
export RLHF_MACHINES={nodes} RLHF_PROCESSES={processes}

# shellcheck disable=SC2016 # each machine knows its own number
srun --kill-on-bad-exit=1 bash -c 'RLHF_MACHINE_RANK=$SLURM_NODEID exec "$@"' - \\
    {command} &
work=$!
trap 'kill -TERM "$work"' USR1
wait "$work"
code=$?
while kill -0 "$work" 2>/dev/null; do # a signal ends a wait, not the work
    wait "$work"
    code=$?
done
# {preempted}: asked to stop, start me again.
if [ "$code" -eq {preempted} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

MACHINES = """\
#!/usr/bin/env bash
# On every one of {nodes} machines: bash FILE NUMBER ADDRESS, numbered from 0; ADDRESS is that of number 0.
set -euo pipefail
{exports}
export RLHF_MACHINE_RANK="${{1:-0}}" RLHF_MAIN_ADDRESS="${{2:-127.0.0.1}}" RLHF_MAIN_PORT="${{3:-29500}}"
export RLHF_MACHINES={nodes} RLHF_PROCESSES={processes}
exec {command}
"""

KINDS = {"slurm": SLURM, "accelerate": MACHINES}


def write(kind: str, run: str, arguments: Sequence[str], *, nodes: int, gpus: int) -> str:
    """The script that starts `rlhf run ARGUMENTS` on so many machines of so many GPUs each."""
    return KINDS[kind].format(
        run=run,
        nodes=nodes,
        gpus=gpus,
        processes=nodes * gpus,
        exports=EXPORTS,
        command=shlex.join(["rlhf", "run", *arguments]),
        preempted=PreemptedError.exit_code,
    )
