"""The page of `rlhf chat --web` in a real browser: it answers, keeps a pair, and asks nobody else."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, types
from pathlib import Path
from rlhf.generation.protocol import Sampling
from rlhf.talk.answer import Answer
from rlhf.talk.conversation import Conversation
from rlhf.talk.web import serve

class Parrot:
    def __init__(self, name): self.name = name
    def answer(self, turns, sampling, *, seed):
        yield Answer((1,), (2,), "<b>", None)
        yield Answer((1,), (2, 3), f"<img src=x onerror=alert(1)> {self.name}", "stop")

serve(Conversation([Parrot("sft"), Parrot("ppo")], None, Sampling(1, 0.7, 8), 3),
      save_to=Path(sys.argv[1]), port=int(sys.argv[2]), title="tiny")
"""


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("web")
    pytest.importorskip("nicegui", reason="needs nicegui: pip install 'rlhf[web]'")
    (tmp_path / "serve.py").write_text(SCRIPT)
    port, file = free_port(), tmp_path / "chat.jsonl"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "serve.py", file, str(port)]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield port, file
    process.terminate()
    process.wait(timeout=10)


def test_the_page_answers_keeps_a_pair_and_asks_nobody_else(browser, served):
    port, file = served
    page = browser.new_page()
    hosts, errors, alerts = set(), [], []
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.goto(f"http://127.0.0.1:{port}")
    page.get_by_label("your message").fill("how do i open the door ?")
    page.get_by_role("button", name="send").click()
    page.get_by_role("button", name="prefer this").nth(1).click()
    page.get_by_text("kept as better").wait_for()
    assert page.get_by_text("<img src=x onerror=alert(1)> ppo").is_visible()
    assert page.get_by_text("temperature 0.7  seed 3").count() == 2
    assert (hosts, errors, alerts) == ({f"127.0.0.1:{port}"}, [], [])
    row = json.loads(file.read_text())
    assert (row["chosen"][-3:], row["rejected"][-3:], row["rating"]) == ("ppo", "sft", "better")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, served, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page = browser.new_context(color_scheme=scheme).new_page()
    page.goto(f"http://127.0.0.1:{served[0]}")
    page.get_by_label("your message").fill("how do i open the door ?")
    page.get_by_role("button", name="send").click()
    page.get_by_role("button", name="prefer this").nth(1).wait_for()
    page.get_by_label("system prompt").focus()  # the button's ripple has gone by then
    page.wait_for_timeout(600)
    found = [v for v in axe.run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not [(v["id"], node["html"]) for v in found for node in v["nodes"]]


def test_other_machines_cannot_reach_it(served):
    port, _ = served
    outward = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    outward = {address for address in outward if not address.startswith("127.")}
    if not outward:
        pytest.skip("this machine has the loopback address only")
    for address in outward:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((address, port)) != 0
