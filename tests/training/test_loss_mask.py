"""What the report shows of the rows that are trained on: where the loss is."""

import json
from pathlib import Path

from rlhf.data.collate import Row
from rlhf.training.finetune import SHOWN_TOKENS, show_loss_mask


def test_of_a_long_row_the_loss_mask_shows_where_the_loss_is(tmp_path: Path) -> None:
    """As in Ghost Attention: 500 tokens, of which the last five bear loss."""

    class Numbers:
        def decode(self, ids: list[int]) -> str:
            return f" {ids[0]}"

    labels = [-100] * 495 + list(range(495, 500))
    show_loss_mask(tmp_path / "loss_mask.jsonl", Numbers(), [Row(list(range(500)), labels, "a")])
    (shown,) = [json.loads(line)["tokens"] for line in (tmp_path / "loss_mask.jsonl").read_text().splitlines()]
    assert [text for text, bears in shown if bears] == [f" {i}" for i in range(495, 500)]
    assert shown[0] == [" 0", False]
    assert [text for text, bears in shown if bears is None] == [f" … {500 - SHOWN_TOKENS} tokens … "]
