"""`rlhf doctor run|env|secrets`: what is wrong with a run, with this machine, or with what a run would give away."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rlhf.commands.request import Request
from rlhf.commands.text import table

TEXT = (".json", ".jsonl", ".yaml", ".yml", ".txt", ".md", ".log", ".html", ".toml")
EXTRAS = ("vllm", "bitsandbytes", "nicegui", "tensorboard", "trackio", "wandb-workspaces")


def main(request: Request) -> int:
    """rlhf doctor."""
    return {"run": of_run, "env": of_machine, "secrets": of_secrets}[request.words[0]](request)


def of_run(request: Request) -> int:
    """Damaged artefacts and unhealthy metrics of a run, those of a step that is not finished, too."""
    from rlhf.artefacts import finished
    from rlhf.checkpoint import damage
    from rlhf.report import metric_rows
    from rlhf.tracking.health import examine

    loaded = request.load()
    sick = 0
    drafts = sorted(loaded.run_dir.glob(".*.partial"))
    working = {f"{folder.name[1:].removesuffix('.partial')}, not finished": folder for folder in drafts}
    for name, folder in (finished(loaded) | working).items():
        problem = None if name in working else damage(folder)
        findings = examine(metric_rows(folder))
        sick += bool(problem or findings)
        print(f"{'!' if problem or findings else 'ok':<3} {name}")
        if problem:
            print(f"     damaged: {problem}\n     rlhf run stage={name} --rerun")
        for finding in findings:
            print(f"     {finding.metric}: {finding.sign}\n     {finding.cure}")
    print(f"{sick} steps need a look" if sick else "nothing found")
    return 1 if sick else 0


def of_machine(request: Request) -> int:
    """Versions, cores, memory, disk, accounts; nothing heavy is imported and no secret shown."""
    from rlhf.provenance.meter import versions
    from rlhf.tracking.wandb_run import logged_in

    loaded = request.load()
    rows = [[name, version] for name, version in versions().items()]
    for extra in EXTRAS:
        with suppress(importlib.metadata.PackageNotFoundError):
            rows.append([extra, importlib.metadata.version(extra)])
    rows.append(["cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())])
    rows.append(["memory", f"{_memory_gb():.0f} GB" if platform.system() == "Linux" else "unknown"])
    folder = next(path for path in (loaded.runs_dir, *loaded.runs_dir.absolute().parents) if path.exists())
    rows.append(["disk free for runs", f"{shutil.disk_usage(folder).free / 1e9:.0f} GB"])
    rows.append(["NVIDIA driver", "found" if shutil.which("nvidia-smi") else "none: steps run on the processor"])
    rows.append(["W&B", "logged in" if logged_in() else "not logged in: written offline"])
    from huggingface_hub import get_token

    rows.append(["Hugging Face", "logged in" if get_token() else "not logged in: gated models cannot be read"])
    table(rows)
    return 0


def of_secrets(request: Request) -> int:
    """Places in a run's text files that look like a secret; the secret itself is not shown."""
    from rlhf.checkpoint import shown

    run_dir = request.load().run_dir
    found = [f"{shown(path)}:{number}" for path in _texts(run_dir) for number in _suspicious(path)]
    for place in found:
        print(f"looks like a secret: {place}")
    print(f"{len(found)} places in {shown(run_dir)}" if found else f"no secret found in {shown(run_dir)}")
    return 1 if found else 0


def _texts(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in TEXT)


def _suspicious(path: Path) -> Iterator[int]:
    """The numbers of the lines that hold something like a secret. Digests of our own records are none."""
    from rlhf.reporting.text import redact

    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if redact(line, "digest") != line:
                yield number


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
