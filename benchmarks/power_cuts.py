"""A file system that forgets what was not made durable: ext4 on a loop device, shut down without its log."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
NO_LOG_FLUSH = struct.pack("I", 2)


class Disk:
    """One that is mounted."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.image, self.folder = image, folder

    def cut(self, child: int) -> None:
        """Cut the power under a child that writes, and switch it on again."""
        handle = os.open(self.folder, os.O_RDONLY)
        fcntl.ioctl(handle, SHUTDOWN, NO_LOG_FLUSH)
        os.close(handle)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        shell("umount", str(self.folder))
        shell("mount", "-o", "loop", str(self.image), str(self.folder))


@contextmanager
def disk() -> Iterator[Disk]:
    """A disk to lose; needs root and loop devices, else OSError or CalledProcessError."""
    with tempfile.TemporaryDirectory() as name:
        image, folder = Path(name) / "image", Path(name) / "disk"
        folder.mkdir()
        with image.open("wb") as file:
            file.truncate(64 << 20)
        shell("mkfs.ext4", "-q", str(image))
        shell("mount", "-o", "loop", str(image), str(folder))
        try:
            yield Disk(image, folder)
        finally:
            shell("umount", str(folder))


def shell(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
