"""Records that one process of a machine makes and the others open: reading and encoding costs its processor once.

The others wait at the lock of a folder on the machine's own disk, not in a collective, so no time limit runs. The
kernel drops a lock with its holder: of one that was killed the next process makes all anew, and where the records
are to blame every process comes to name them itself.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from rlhf.data.spool import Spool
from rlhf.data.types import Record
from rlhf.processes import team
from rlhf.provenance.fingerprint import digest

Spools = Mapping[str, Spool[Any]]


def filled(place: Path, classes: Mapping[str, type[Record]], fill: Callable[[Spools], None]) -> Spools:
    """Spools of these classes, filled: in a process that works alone in files without a name.

    Args:
        place: what they are for, a folder of the run; what a killed start left for the same is removed.
    """
    if team.size() == 1:
        spools = {name: Spool(cls) for name, cls in classes.items()}
        fill(spools)
        return spools
    machine, name = Path(gettempdir()), None
    with ExitStack() as held:
        if team.rank() == 0:  # goes first on its machine: what it says is what is heard
            # A name that nobody can have made before, neither an earlier start nor a stranger.
            name = f"rlhf-{digest(str(place.resolve()))[:16]}-{secrets.token_hex(8)}"
            held.enter_context(_alone(machine / name))
        folder = machine / str(team.call(name))
        if name is None:
            held.enter_context(_alone(folder))
        if not (folder / "made").exists():
            for left in set(machine.glob(f"{folder.name.rpartition('-')[0]}-*")) - {folder}:
                rmtree(left, ignore_errors=True)
            _make(folder, classes, fill)
        spools = {name: Spool.opened(folder / "made" / name, cls) for name, cls in classes.items()}
    team.meet()
    rmtree(folder, ignore_errors=True)  # all have them open
    return spools


def _make(folder: Path, classes: Mapping[str, type[Record]], fill: Callable[[Spools], None]) -> None:
    """Leave `made`, whole or not at all."""
    with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as making:
        spools = {name: Spool(cls, Path(making) / name) for name, cls in classes.items()}
        fill(spools)
        for spool in spools.values():
            spool.close()
        os.rename(making, folder / "made")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside, however long that takes."""
    folder.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)  # to be written: nfs locks no other
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
