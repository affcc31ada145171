"""The tracker: files that can be read back, lines that can be searched, and a W&B that can fail without harm."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlhf.errors import NonFiniteError
from rlhf.reporting.text import duration, plain, redact
from rlhf.tracking import track
from rlhf.tracking.track import Tracker
from rlhf.tracking.wandb_run import WandbRun, logged_in

OPENED: list[Tracker] = []


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(WandbRun, "_unreachable", False)
    yield
    while OPENED:
        OPENED.pop().close()


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


def tracker(tmp_path: Path, screen: io.StringIO, **settings: Any) -> Tracker:
    folder = tmp_path / "runs" / "tiny" / "reward-1"
    folder.mkdir(parents=True, exist_ok=True)
    OPENED.append(Tracker(folder, run="tiny", step="reward-1", console=Console(file=screen, width=80), **settings))
    return OPENED[-1]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class FakeWandb(types.ModuleType):
    """As much of wandb as the door uses; `init` answers from a list, and an answer that is an error is raised."""

    def __init__(self, *answers: Exception | None) -> None:
        super().__init__("wandb")
        self.answers = list(answers)
        self.inits: list[dict[str, Any]] = []
        self.rows: list[dict[str, float]] = []
        self.finished = 0
        self.url = "https://wandb.invalid/run"
        self.resumed, self.step, self.summary = False, 0, {}  # what a server says of a run it knows
        self.defined: dict[str, dict[str, Any]] = {}
        self.fail_log: Exception | None = None
        self.fail_finish: Exception | None = None

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def setup(self, settings: dict[str, Any]) -> None:
        assert settings["silent"]

    def init(self, **settings: Any) -> FakeWandb:
        self.inits.append(settings)
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer
        return self

    def define_metric(self, name: str, **about: Any) -> None:
        self.defined[name] = about

    def log(self, row: dict[str, float], step: int, commit: bool) -> None:
        if self.fail_log is not None:
            raise self.fail_log
        self.rows.append(row)

    def finish(self) -> None:
        self.finished += 1
        if self.fail_finish is not None:
            raise self.fail_finish


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeWandb) -> FakeWandb:
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_every_row_can_be_read_before_the_step_ends(tmp_path: Path, screen: io.StringIO) -> None:
    t = tracker(tmp_path, screen)
    t.log({"loss": 0.5, "eos": 1}, step=3)
    (row,) = rows(t.folder / "metrics.jsonl")
    assert row["step"] == 3
    assert (row["loss"], row["eos"]) == (0.5, 1.0)
    assert 0 <= row["time"] < 60
    t.close()
    t.close()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_metric_stops_the_step_and_names_it(tmp_path: Path, screen: io.StringIO, bad: float) -> None:
    t = tracker(tmp_path, screen)
    with pytest.raises(NonFiniteError) as caught:
        t.log({"fine": 1.0, "loss/policy": bad}, step=12)
    assert caught.value.exit_code == 76
    assert all(part in str(caught.value) for part in ("loss/policy", str(bad), "step 12", "reward-1"))
    assert not (t.folder / "metrics.jsonl").exists()


def test_samples_are_stored_exactly_even_when_they_are_hostile(tmp_path: Path, screen: io.StringIO) -> None:
    t = tracker(tmp_path, screen)
    text = "\x1b[2Jé </script>\n\ud800 \u202e"
    t.sample({"completion": text, "score": 1.5})
    t.close()
    assert rows(t.folder / "samples.jsonl") == [{"completion": text, "score": 1.5}]


def test_said_text_cannot_steer_the_terminal(tmp_path: Path, screen: io.StringIO) -> None:
    tracker(tmp_path, screen).say("a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\x07 [bold]e[/bold] \ud800\u202ef")
    assert screen.getvalue() == "abc2Jd [bold]e[/bold] f\n"


def test_plain_keeps_newlines_tabs_and_every_script() -> None:
    assert plain("a\tb\nçé漢🙂") == "a\tb\nçé漢🙂"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_log_file_gets_a_line_at_the_start_every_thirty_seconds_and_at_the_end(
    tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(track, "monotonic", lambda: now[0])
    t = tracker(tmp_path, screen)
    with t.progress(100, "helpfulness") as bar:
        for _ in range(100):
            now[0] += 0.5
            bar.advance(loss=0.5124)
    # 30 s after the start 60 of 100 are done, so 40 remain at 0.5 s each: 20 s.
    assert screen.getvalue().splitlines() == [
        "[reward-1] helpfulness 0/100",
        "[reward-1] helpfulness 60/100  60%  eta 20 s  loss 0.5124",
        "[reward-1] helpfulness 100/100  in 50 s  loss 0.5124",
    ]


def test_a_loop_that_counts_tokens_says_how_fast_and_at_what_memory(
    tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(track, "monotonic", lambda: now[0])
    monkeypatch.setattr(track, "peak_rss_mb", lambda: 2048.4)
    t = tracker(tmp_path, screen)
    t.tokens = 500  # of a loop before this one
    with t.progress(80, "helpfulness") as bar:
        for _ in range(80):
            now[0] += 0.5
            t.tokens += 700
            bar.advance(loss=0.5)
    assert screen.getvalue().splitlines()[1:] == [
        "[reward-1] helpfulness 60/80  75%  eta 10 s  loss 0.5  1,400 tokens/s  peak 2,048 MB",
        "[reward-1] helpfulness 80/80  in 40 s  loss 0.5  1,400 tokens/s  peak 2,048 MB",
    ]


def test_a_loop_that_breaks_says_how_far_it_came(tmp_path: Path, screen: io.StringIO) -> None:
    t = tracker(tmp_path, screen)
    with t.progress(0, "reward"):
        pass
    assert screen.getvalue().startswith("[reward-1] 0/0\n")

    def breaks() -> None:
        with t.progress(10, "sampling") as bar:
            bar.advance(4)
            raise KeyError

    with pytest.raises(KeyError):
        breaks()
    assert screen.getvalue().splitlines()[-1].startswith("[reward-1] sampling 4/10  in ")


def test_a_terminal_gets_a_bar_with_its_eta_and_loops_may_nest(tmp_path: Path, screen: io.StringIO) -> None:
    t = tracker(tmp_path, screen)
    t.console = Console(file=screen, width=120, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    with t.progress(2, "rounds") as outer:
        with t.progress(4, "answers") as inner:
            t.tokens += 100
            inner.advance(1, reward=1.25)
            t.say("a word in between")
            inner.advance(3)
        outer.advance(2)
    shown = screen.getvalue()
    assert "[reward-1] rounds" in shown
    assert "[reward-1] answers" in shown
    assert "4/4" in shown
    assert "reward 1.25" in shown
    assert "tokens/s  peak " in shown
    assert "a word in between" in shown


def test_a_bar_that_an_exception_left_open_is_closed_with_the_tracker(tmp_path: Path, screen: io.StringIO) -> None:
    t = tracker(tmp_path, screen)
    t.console = Console(file=screen, width=120, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    loop = t.progress(2, "sft")  # as the Trainer's callbacks do, which nobody calls when training is broken off
    loop.__enter__().advance(1)
    t.close()
    drawing = [thread for thread in threading.enumerate() if type(thread).__name__ == "_RefreshThread"]
    for thread in drawing:
        thread.join(timeout=5)  # told to stop, it ends at its next tick
    assert not any(thread.is_alive() for thread in drawing)
    shown = screen.getvalue()
    loop.__exit__(None, None, None)  # what the interpreter does when it ends, too late to draw anything
    assert screen.getvalue() == shown


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["silent", "refusing"])
def test_a_server_that_never_answers_delays_the_start_by_less_than_five_seconds(
    tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    wandb = pytest.importorskip("wandb")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "silent":  # the kernel completes the handshake, and nobody ever reads the request
            server.listen(8)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
        t = tracker(tmp_path, screen, wandb_mode="online")
        began = time.monotonic()
        t.log({"loss": 1.0}, step=1)
        assert time.monotonic() - began <= 5.0
        for step in range(2, 21):
            t.log({"loss": 1.0 / step}, step=step)
        t.close()
        wandb.teardown()
    assert [row["step"] for row in rows(t.folder / "metrics.jsonl")] == list(range(1, 21))
    assert "wandb cannot be reached" in screen.getvalue()
    assert list((tmp_path / "runs" / "tiny" / "wandb").glob("offline-run-*/*.wandb"))


def test_disabled_never_imports_wandb(tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    t = tracker(tmp_path, screen, wandb_mode="disabled")
    t.log({"loss": 1.0}, step=1)
    t.close()
    assert screen.getvalue() == ""


def test_a_machine_without_wandb_says_so_once(
    tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    t = tracker(tmp_path, screen, wandb_mode="auto")
    for step in range(3):
        t.log({"loss": 1.0}, step=step)
    t.close()
    assert len(rows(t.folder / "metrics.jsonl")) == 3
    assert screen.getvalue().count("wandb is left out") == 1


def test_auto_is_offline_without_a_login_and_online_with_one(
    tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = use(monkeypatch, FakeWandb())
    tracker(tmp_path, screen, wandb_mode="auto").log({"loss": 1.0}, step=1)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    tracker(tmp_path, screen, wandb_mode="auto").log({"loss": 1.0}, step=1)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker(tmp_path, screen, wandb_mode="auto").log({"loss": 1.0}, step=1)
    assert [init["mode"] for init in fake.inits] == ["offline", "online"]
    assert fake.inits[0]["dir"] == tmp_path / "runs" / "tiny"
    assert fake.inits[0]["group"] == "tiny"
    assert fake.inits[0]["job_type"] == "reward"
    assert fake.inits[0]["id"] == fake.inits[1]["id"]
    assert [(row["step"], row["loss"]) for row in fake.rows] == [(1, 1.0)] * 2


def test_another_fingerprint_is_another_wandb_run(
    tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = use(monkeypatch, FakeWandb())
    for fingerprint in ("a", "b", "a"):
        tracker(tmp_path, screen, wandb_mode="offline", fingerprint=fingerprint).log({"loss": 1.0}, step=1)
    first, second, third = (init["id"] for init in fake.inits)
    assert first == third != second


def test_an_unreachable_server_means_offline_and_is_not_waited_for_twice(
    tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = use(monkeypatch, FakeWandb(TimeoutError("no answer\nfrom the server")))
    for _ in range(2):
        t = tracker(tmp_path, screen, wandb_mode="online")
        t.log({"loss": 1.0}, step=1)
        t.close()
    assert [init["mode"] for init in fake.inits] == ["online", "offline", "offline"]
    assert len(fake.rows) == 2
    assert fake.finished == 2
    assert screen.getvalue().count("wandb cannot be reached (no answer)") == 1


@pytest.mark.parametrize("where", ["fail_log", "fail_finish"])
def test_a_fault_inside_wandb_is_said_once_and_changes_nothing(
    tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    fake = use(monkeypatch, FakeWandb())
    setattr(fake, where, RuntimeError("broken pipe, key hf_abcdefghijklmnopqrstuvwxyz"))
    t = tracker(tmp_path, screen, wandb_mode="offline")
    t.log({"loss": 1.0}, step=1)
    t.log({"loss": 2.0}, step=2)
    t.close()
    assert [row["loss"] for row in rows(t.folder / "metrics.jsonl")] == [1.0, 2.0]
    assert screen.getvalue().count("wandb is left out of reward-1 (broken pipe, key [redacted])") == 1


def test_settings_reach_wandb_without_secrets(
    tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = use(monkeypatch, FakeWandb())
    config = {"lr": 1e-3, "hub": {"token": "whatever-it-is"}, "urls": ["https://me:pw@host/x"]}
    tracker(tmp_path, screen, wandb_mode="offline", config=config).log({"loss": 1.0}, step=1)
    assert fake.inits[0]["config"] == {
        "lr": 1e-3,
        "hub": {"token": "[redacted]"},
        "urls": ["https://[redacted]@host/x"],
    }


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("note", "use hf_" + "a" * 34 + " here", "use [redacted] here"),
        ("note", "ghp_" + "A1" * 18, "[redacted]"),
        ("wandb", "0123456789abcdef0123456789abcdef01234567", "[redacted]"),
        ("revision", "0123456789abcdef0123456789abcdef01234567", "0123456789abcdef0123456789abcdef01234567"),
        ("api_key", "correct horse", "[redacted]"),
        ("pad_token", "<pad>", "<pad>"),
        ("max_new_tokens", 512, 512),
        ("path", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
    ],
)
def test_redaction(name: str, value: Any, shown: Any) -> None:
    assert redact({name: value}) == {name: shown}


def test_a_login_is_found_in_the_environment_or_a_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not logged_in()
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    file.write_text("machine example.com login user password x\n")
    assert not logged_in()
    file.write_text("machine api.wandb.ai login user password x\n")
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not logged_in()
    file.write_text("this is no netrc\n")
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert logged_in()


def test_the_names_of_many_samples_are_written_as_one_line_in_parts(
    tmp_path: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.tracking.track.TOGETHER", 2)
    track = tracker(tmp_path, screen)
    lines = []
    for ids in ([], ["a"], ['b "', "größe", "\ud83d", "d"], [["e", "f"], ["g"], []]):
        track.ledger_of("sft", ids, draws=4, epochs=2)
        lines.append(json.dumps({"part": "sft", "ids": ids, "draws": 4, "epochs": 2}, ensure_ascii=False) + "\n")
    made = (track.folder / "ledger.jsonl").read_bytes()
    assert made == "".join(lines).encode(errors="backslashreplace")


def test_training_counts_every_token_it_reads_and_no_padding(
    tmp_path: Path, screen: io.StringIO, policy: Any, reward_model: Any, tokenizer: Any, saves_of: Any
) -> None:
    from rlhf.data.collate import PackedRow
    from rlhf.schema import AdamW
    from rlhf.training.trainers import Pair, Schedule, fit_lm, fit_reward

    options: dict[str, Any] = {"seed": 0, "what": "sft", "track": tracker(tmp_path, screen)}
    options["saves"] = saves_of(options["track"])
    assert options["track"].tokens == 0
    # Lengths 1 to 9 make 45 tokens, two epochs 90; batches of 4 are read in twos, and the last holds one row.
    rows = [PackedRow([50] * n, [50] * n, list(range(n))) for n in range(1, 10)]
    schedule = Schedule(1e-3, final_lr_ratio=1.0, batch_size=4, warmup_steps=0, epochs=2)
    fit_lm(policy, tokenizer, rows, schedule, AdamW(microbatch_size=2), **options)
    assert options["track"].tokens == 90
    # Answers of 3 and 5 tokens, 2 and 7: 17 an epoch. What was counted before stays.
    pairs = [Pair([50] * a, [60] * b, 0.0, 1.0, 0.0) for a, b in ((3, 5), (2, 7))]
    fit_reward(reward_model, tokenizer, pairs, schedule, AdamW(), safety_loss_coef=0.0, center_coef=0.0, **options)
    assert options["track"].tokens == 90 + 34
