"""Two machines in one: network namespaces joined by a pair of links, each with an address and a name of its own.

Needs root and iproute2. The files are shared, as those of a cluster are.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import lives

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "29400"


def possible() -> bool:
    """Whether this machine lets us make namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    name = f"rlhf-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


class Nodes:
    """Both machines; `close` ends what runs on them and takes them away."""

    def __init__(self) -> None:
        self.names = tuple(f"rlhf-{os.getpid()}-{number}" for number in range(2))
        links = [f"v{os.getpid()}-{number}" for number in range(2)]
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", links[0], "netns", self.names[0], "type", "veth", "peer", links[1], "netns", self.names[1])
        self.links = links
        for name, link, address in zip(self.names, links, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            _ip("-n", name, "link", "set", link, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            hosts = Path("/etc/netns") / name / "hosts"  # `ip netns exec` lays it over /etc/hosts
            hosts.parent.mkdir(parents=True)
            hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{a} node-{i}\n" for i, a in enumerate(ADDRESSES)))

    def start(self, number: int, arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
        """`rlhf ARGUMENTS` on one machine, as `rlhf launch accelerate` would have it started there."""
        place = {"RLHF_MACHINES": "2", "RLHF_PROCESSES": "2", "RLHF_MACHINE_RANK": str(number)}
        place |= {"RLHF_MAIN_ADDRESS": ADDRESSES[0], "RLHF_MAIN_PORT": PORT, "GLOO_SOCKET_IFNAME": self.links[number]}
        place |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        named = ["unshare", "--uts", "sh", "-c", f'hostname node-{number}; exec "$@"', "-"]
        command = ["ip", "netns", "exec", self.names[number], *named, sys.executable, "-m", "rlhf", *arguments]
        with (folder / f"node-{number}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=folder, env={**os.environ, **place}, stdout=log, stderr=log)

    def kill(self, number: int) -> None:
        """The machine is gone: every process on it, at once."""
        for pid in _ip("netns", "pids", self.names[number]).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def close(self) -> None:
        for number, name in enumerate(self.names):
            self.kill(number)
            _ip("netns", "del", name)
            shutil.rmtree(Path("/etc/netns") / name)


def to_the_end(nodes: Nodes, folder: Path, step: str, *, lost: int | None = None, after: int = 0) -> float | None:
    """A step made by both machines; the seconds from the loss of one of them until the step went on.

    Machine `lost` is killed once `after` more saves were made, and started again. Where the first one was lost, at
    which they meet, the other one ends by itself and is started again, too.
    """
    command = ["run", f"stage={step}", "launch=cpu", *lives.SMALL, "save_every=0s"]
    saves, resumed = lives.events(folder, "save"), lives.events(folder, "resume")
    running = [nodes.start(number, command, folder) for number in range(2)]
    seconds = None
    if lost is not None:
        while lives.events(folder, "save") < saves + after:
            assert running[0].poll() is None, (folder / "node-0.log").read_text()[-3000:]
            time.sleep(0.02)
        nodes.kill(lost)
        began = time.monotonic()
        running[lost].wait()
        running[lost] = nodes.start(lost, command, folder)
        if lost == 0:
            assert running[1].wait(timeout=120) == 1
            assert "cannot be reached" in (folder / "node-1.log").read_text()
            running[1] = nodes.start(1, command, folder)
        while lives.events(folder, "resume") == resumed and time.monotonic() < began + 300:
            time.sleep(0.02)
        seconds = time.monotonic() - began
    codes = [process.wait(timeout=300) for process in running]
    assert codes == [0, 0], (folder / "node-0.log").read_text()[-3000:]
    return seconds


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
