"""TensorBoard's event files, read back by TensorBoard: every point once at its step, after a kill, too."""

from __future__ import annotations

import io
import json
import sys

import pytest
from rich.console import Console

from rlhf.tracking.track import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own


def test_the_event_files_have_every_metric_histogram_and_sample_once(logged_twice) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = logged_twice(tensorboard=True)
    everything = {"tensors": 0, "histograms": 0, "scalars": 0}
    seen = EventAccumulator(str(run_dir / "tensorboard" / "ppo"), size_guidance=everything).Reload()
    assert [(e.step, e.value) for e in seen.Scalars("objective/kl")] == [(10 * n, n / 4) for n in range(6)]
    histograms = seen.Histograms("reward/combined_histogram")
    assert [e.step for e in histograms] == [10 * n for n in range(6)]
    assert sum(histograms[0].histogram_value.bucket) == 4
    texts = [e.tensor_proto.string_val[0].decode() for e in seen.Tensors("samples/text_summary")]
    assert [json.loads(text)["iteration"] for text in texts] == list(range(6))


def test_without_the_package_it_is_left_out_with_the_command_that_installs_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out, screen = tmp_path / "tiny" / "sft", io.StringIO()
    out.mkdir(parents=True)
    with Tracker(out, run="tiny", step="sft", tensorboard=True, console=Console(file=screen, width=200)) as track:
        track.log({"sft/loss": 1.0}, step=1)
    assert "tensorboard is left out of sft (not installed: pip install 'rlhf[tensorboard]')" in screen.getvalue()
