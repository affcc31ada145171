"""An artefact folder: written whole or not at all, listed in a manifest with checksums, verified when it is read.

A folder counts as finished exactly when it holds `manifest.json`. It is written under a hidden name,
`.NAME.partial`, made durable, given its manifest last, and only then renamed. Killed at any point, the old artefact or
the new one is there, or neither; never a half. Torch-free.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import yaml

from rlhf.disk import write_text
from rlhf.errors import DiskError, LockedError, MissingError, RlhfError, UnsafeError, disk_error
from rlhf.provenance.fingerprint import digest, file_digest
from rlhf.security.vetting import require_inside

MANIFEST = "manifest.json"
DRAFT = f".{MANIFEST}.partial"
HOLDER_SECONDS = 0.5

# What differs between two equal runs, or repeats what the manifest says. Nobody downstream computes with it, so it has
# a checksum but no part in the artefact's digest.
VOLATILE = ("config.yaml", "metrics.jsonl", "wandb/", "resume/")


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def shown(path: Path) -> str:
    """A path as the reader would type it: relative to the working directory if it is inside."""
    with suppress(ValueError):
        return str(path.absolute().relative_to(Path.cwd()))
    return str(path)


# --- writing ---


def working_folder(final: Path) -> Path:
    """Where an artefact is made. The name is the same in every life, so that a killed stage finds its saves again."""
    return final.parent / f".{final.name}.partial"


@contextmanager
def open_artefact(final: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to write in, which becomes `final` when the block ends well.

    `about` is read when the block ends, so it may be filled inside it; it goes into the manifest beside `files`
    (path -> SHA-256), `stat` (path -> size and time of change), `digest` (of the files) and `finished_at`. An artefact
    that is already there stays until the new one is complete. If the block does not end well, the folder stays as it is
    where it holds something to go on from, and vanishes where not. A full or read-only disk is a DiskError.
    """
    partial = working_folder(final)
    try:
        if not resumable(partial):
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, final) or error from error
    try:
        yield partial
        _commit(partial, final, about)
    except BaseException as error:
        gone = not partial.exists()
        if not resumable(partial):
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and (full := disk_error(error, final)):
            raise full from error
        if gone and isinstance(error, Exception) and not isinstance(error, RlhfError):
            raise DiskError(
                f"{shown(partial)} vanished while {final.name} was being made",
                where=str(error).splitlines()[0] if str(error) else None,
                hints=["see whether the disk is still mounted, and who moves or deletes folders there"],
            ) from error
        raise


def resumable(partial: Path) -> bool:
    """Whether a killed or failed stage has left saves or shards in its working folder."""
    resume = partial / "resume"
    return any(resume.glob("save-*")) or any(resume.glob("shards-*"))


def _commit(partial: Path, final: Path, about: Mapping[str, Any]) -> None:
    config = yaml.safe_dump(about.get("config", {}), sort_keys=False, allow_unicode=True)
    write_text(partial / "config.yaml", config)
    # The saves go only once the artefact is whole: killed in between, the folder is found complete, or resumed.
    seal(partial, about, leaving_out="resume/")
    shutil.rmtree(partial / "resume", ignore_errors=True)
    old = final.parent / f".{final.name}.old-{os.getpid()}"
    if final.exists():
        final.rename(old)
    # Killed between these two renames, `recover` finds the complete new artefact under its hidden name.
    partial.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def seal(folder: Path, about: Mapping[str, Any], *, leaving_out: str = "/") -> None:
    """Make every file of a folder durable, then list it in the folder's manifest, which makes the folder whole."""
    checksums, stat = {}, {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name.startswith(leaving_out) or name in (MANIFEST, DRAFT):
            continue
        sync(file)
        checksums[name] = file_digest(file)
        stat[name] = [file.stat().st_size, file.stat().st_mtime_ns]
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        sync(path)
    lasting = {name: checksum for name, checksum in checksums.items() if not name.startswith(VOLATILE)}
    made = {"files": checksums, "stat": stat, "digest": digest(lasting), "finished_at": now()}
    write_manifest(folder, {**about, **made})


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Put manifest.json into `folder` by rename, with a checksum over itself; durable on return."""
    manifest = {key: value for key, value in manifest.items() if key != "checksum"}
    draft = folder / DRAFT
    write_text(draft, _rendered(manifest))
    sync(draft)
    draft.replace(folder / MANIFEST)
    sync(folder)


def _rendered(manifest: Mapping[str, Any]) -> str:
    return json.dumps({**manifest, "checksum": digest(manifest)}, indent=1) + "\n"


def recover(run_dir: Path) -> None:
    """Clear what killed writers left in a run folder; the caller holds its lock.

    A complete artefact that only lacked its last rename is put in place; one moved aside in vain goes back. What can be
    gone on from stays.
    """
    for left in sorted(run_dir.glob(".*.partial")):
        final = run_dir / left.name[1:].removesuffix(".partial")
        if damage(left) is None:
            shutil.rmtree(left / "resume", ignore_errors=True)
            if final.exists():
                final.rename(run_dir / f".{final.name}.old-{os.getpid()}")
            left.rename(final)
            sync(run_dir)
        elif not resumable(left):
            shutil.rmtree(left, ignore_errors=True)
    for left in run_dir.glob(".*.rank-*"):  # what another process worked in, beside the one whose folder is kept
        shutil.rmtree(left, ignore_errors=True)
    for left in sorted(run_dir.glob(".*.old-*")):
        final = run_dir / left.name[1:].rpartition(".old-")[0]
        if final.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.rename(final)
            sync(run_dir)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- reading ---


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished artefact; MissingError if there is none or it was tampered with."""
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        del manifest["checksum"]
    except FileNotFoundError:
        raise MissingError(f"{shown(folder)} is no finished artefact: it has no {MANIFEST}") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise MissingError(f"{shown(path)} is damaged: it is not a manifest") from None
    if text != _rendered(manifest):  # byte for byte: a space that flipped is damage, too
        raise MissingError(f"{shown(path)} is damaged: it does not match its own checksum")
    require_inside([*manifest.get("files", {}), *manifest.get("stat", {})], shown(path))
    return dict(manifest)


def damage(folder: Path, manifest: Mapping[str, Any] | None = None) -> str | None:
    """What is wrong with an artefact, found cheaply, or None.

    A file of the size and time of change it was written with is taken as it is; any other is compared by checksum, so
    a copied run is still whole. A bit that flips on the disk without either changing is found by `verify`.
    """
    try:
        manifest = manifest or read_manifest(folder)
    except MissingError as error:
        return error.what
    for name, (size, mtime_ns) in manifest["stat"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        require_own(file, folder)
        facts = file.stat()
        if facts.st_size != size:
            return f"{name} has {facts.st_size:,} bytes, was written with {size:,}"
        if facts.st_mtime_ns != mtime_ns and file_digest(file) != manifest["files"][name]:
            return f"{name} does not match its checksum"
    return None


def require_own(file: Path, folder: Path) -> None:
    """UnsafeError if the file is a link to something outside its folder, whose bytes somebody else may change."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UnsafeError(
            f"{shown(file)} is a link that leads out of {folder.name}",
            where=f"to {file.resolve()}",
            hints=["put the file itself there", f"or make it again: rlhf run stage={folder.name} --rerun"],
        )


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, once every byte was compared with its SHA-256; MissingError names the first bad file."""
    manifest = read_manifest(folder)
    problem = unsound(folder, manifest)
    added = [file for file in (folder / "checkpoint").rglob("*") if not file.is_dir()]
    for name in sorted(file.relative_to(folder).as_posix() for file in added):
        if problem is None and name not in manifest["files"]:
            problem = f"{name} was added later"  # a library may read whatever lies beside the weights
    if problem:
        hint = f"make it again: rlhf run stage={folder.name} --rerun"
        raise MissingError(f"{shown(folder)} is damaged: {problem}", hints=[hint])
    return manifest


def unsound(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with a folder that a manifest lists, every byte compared with its SHA-256, or None."""
    for name, checksum in manifest["files"].items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        require_own(folder / name, folder)
        if file_digest(folder / name) != checksum:
            return damage(folder, manifest) or f"{name} does not match its checksum"
    return None


# --- one writer per run ---


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run folder for the life of the block; LockedError names the process that already does.

    The kernel holds the lock and drops it with the process, so none is ever stale; the file's text is for people.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except FileExistsError:
        raise MissingError(f"{shown(run_dir)} is a file, not a folder", hints=["give another name: run=NAME"]) from None
    except OSError as error:
        reason = f"cannot write {shown(run_dir)}: {(error.strerror or str(error)).lower()}"
        raise disk_error(error, run_dir) or DiskError(reason, hints=["write elsewhere: runs_dir=FOLDER"]) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(run_dir, _holder(handle)) from None
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(holder).encode())
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def is_locked(run_dir: Path) -> bool:
    """Whether some process is writing to the run; touches nothing."""
    with suppress(OSError), (run_dir / ".lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _holder(handle: int) -> bytes:
    """What the lock says of its holder. For a moment it names nobody, or still the one before: wait for that."""
    deadline = monotonic() + HOLDER_SECONDS
    while True:
        text = os.pread(handle, 4096, 0)
        with suppress(ValueError, KeyError, TypeError):
            holder = json.loads(text)
            if holder["host"] != socket.gethostname() or Path(f"/proc/{holder['pid']}").exists():
                return text
        if monotonic() > deadline:
            return text
        sleep(0.01)


def _held(run_dir: Path, text: bytes) -> LockedError:
    try:
        holder = json.loads(text)
        who = f"process {holder['pid']} on {holder['host']} holds it since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        who = "its lock does not say by whom"
    return LockedError(
        f"{shown(run_dir)} is in use by another rlhf run", where=who, hints=["wait for it, or give another run=NAME"]
    )
