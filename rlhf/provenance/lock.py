"""rlhf.lock: what the numbers of a run depend on beside its settings and code, one line each, to be held to later.

Bits follow from versions, the processor's instructions, threads and kernels; from data and the chat template. The file
is written when a step starts and completed when it ends. It holds no addresses and no secrets. Torch is asked where a
stage has loaded it, and is not loaded for it.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from rlhf.checkpoint import shown
from rlhf.data.sources import commit_of
from rlhf.disk import write_text
from rlhf.errors import ConfigError
from rlhf.processes import engine, team
from rlhf.provenance.meter import versions
from rlhf.schema import MICROWORLD, Source
from rlhf.security.vetting import vet_yaml

NAME = "rlhf.lock"
ABOUT = """\
# What the numbers of this run depend on beside its settings and code, which are in the manifests.
# `rlhf run --locked` refuses to go on where a line differs; `rlhf reproduce` makes the run again and compares.
"""
MACHINE = ("python", "platform", "cpu", "package", "environment", "processes")
"""Groups of lines that are known without torch; a line that only one side has is a difference."""
KERNELS = ("threads", "torch", "gpu")
"""Groups that only torch can tell."""

INSTRUCTIONS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
STEERING = (
    *("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"),
    "CUBLAS_WORKSPACE_CONFIG",
)

Lines = dict[str, str]


# --- what is here ---


def machine() -> Lines:
    """Python, packages, processor, the variables that choose its kernels, and processes if several; asks no library."""
    found = dict(versions())
    lines = {"python": found.pop("python"), "platform": f"{platform.system()} {platform.machine()}"}
    found.pop("platform")
    lines |= _processor()
    lines |= {f"environment.{name}": os.environ[name] for name in STEERING if name in os.environ}
    if team.size() > 1:  # sums are then made in another order
        lines["processes"] = f"{team.size()} by {engine.named()}"
    return lines | {f"package.{name}": version for name, version in found.items()}


def kernels() -> Lines:
    """Threads, capability and GPUs as torch sees them; nothing if no stage has loaded it."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    lines = {
        "threads": str(torch.get_num_threads()),
        "torch.capability": str(torch.backends.cpu.get_cpu_capability()),
        "torch.commit": str(torch.version.git_version),
        "torch.kernels": " ".join(
            name for name in ("mkl", "mkldnn", "openmp") if getattr(torch.backends, name).is_available()
        ),
    }
    if torch.cuda.is_available():
        lines |= {"torch.cuda": str(torch.version.cuda), "torch.cudnn": str(torch.backends.cudnn.version())}
        lines |= {f"gpu.{n}": torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())}
    return lines


def sources(step: str, manifest: Mapping[str, Any]) -> Lines:
    """The data that a step read, files by content and sets of the hub by commit, and the template of its model."""
    lines = {f"data.{path}": facts["sha256"] for path, facts in manifest.get("data", {}).items()}
    sections = [section for section in manifest.get("config", {}).values() if isinstance(section, Mapping)]
    for source in (Source.model_validate(given) for section in sections for given in section.get("data") or ()):
        if source.path is None and source.name != MICROWORLD:
            lines[f"data.{source.name}"] = commit_of(source)
    template = manifest.get("template")
    return lines | ({f"template.{step}": template} if template else {})


def _processor() -> Lines:
    with suppress(OSError, StopIteration):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(text))}
        flags = facts.get("flags", facts.get("Features", "")).split()
        maker = facts.get("vendor_id", facts.get("CPU implementer", "unknown"))
        return {"cpu.maker": maker, "cpu.instructions": " ".join(name for name in INSTRUCTIONS if name in flags)}
    return {"cpu.maker": platform.processor() or "unknown"}


# --- the file ---


def read(run_dir: Path) -> Lines:
    """The lines of a run's lock; none if it has no lock."""
    path = run_dir / NAME
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        vet_yaml(text, path)
        lines = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError):
        lines = None
    if not isinstance(lines, dict):
        hints = ["delete it: the next step that runs writes it anew"]
        raise ConfigError(f"{shown(path)} is not a valid {NAME}", hints=hints)
    return {str(name): str(value) for name, value in lines.items()}


def differences(lock: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    """One phrase per line that differs: `package.torch is 2.12.0 in the lock, 2.13.0 here`.

    Data, and templates, are compared where both sides have them; so are torch's lines, as long as it is not loaded.
    """
    for name in dict.fromkeys([*lock, *here]):
        group, both = _group(name), name in lock and name in here
        one_side_counts = group in MACHINE or (group in KERNELS and "threads" in here and "threads" in lock)
        if lock.get(name) != here.get(name) and (both or one_side_counts):
            yield f"{name} is {lock.get(name, 'absent')} in the lock, {here.get(name, 'absent')} here"


def require(run_dir: Path, here: Mapping[str, str]) -> None:
    """ConfigError naming the first line that differs from the run's lock."""
    lock = read(run_dir)
    if not lock:
        raise ConfigError(
            f"{shown(run_dir)} has no {NAME} to be held to",
            hints=["run without --locked first", f"or put the {NAME} of another run there"],
        )
    differing = list(differences(lock, here))
    if differing:
        raise ConfigError(
            f"not as locked: {differing[0]}",
            where=f"in {shown(run_dir / NAME)}{f', and {len(differing) - 1} more' if differing[1:] else ''}",
            hints=["restore what it says", "or run without --locked: the numbers may then differ in their last bits"],
        )


def update(run_dir: Path, here: Mapping[str, str]) -> list[str]:
    """Put what is here into the lock, and return what of the machine differs from what it said before."""
    before = read(run_dir)
    stale = (*MACHINE, *KERNELS) if "threads" in here else MACHINE
    kept = {name: value for name, value in before.items() if _group(name) not in stale}
    _write(run_dir, before, {**here, **kept, **here})
    return [line for line in differences(before, here) if _group(line) in (*MACHINE, *KERNELS)] if before else []


def add(run_dir: Path, lines: Mapping[str, str]) -> None:
    """Put lines into the lock and leave the others."""
    before = read(run_dir)
    _write(run_dir, before, {**before, **lines})


def _write(run_dir: Path, before: Mapping[str, str], lines: Lines) -> None:
    if lines == before:
        return
    draft = run_dir / f".{NAME}.partial"
    write_text(draft, ABOUT + yaml.safe_dump(lines, sort_keys=False, allow_unicode=True, width=1000))
    draft.replace(run_dir / NAME)


def _group(line: str) -> str:
    return line.split(" ")[0].partition(".")[0]
