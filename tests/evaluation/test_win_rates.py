"""Win rates worked by hand, and judges that look at the place of an answer, at its text, or at nothing."""

import pytest
import torch

from rlhf.data.types import Prompt, Turn
from rlhf.evaluation import win_rates
from rlhf.evaluation.behaviour import own
from rlhf.generation.protocol import Completion
from rlhf.rollout import Sample

PROMPTS = [Prompt(str(i), (Turn("user", f"q{i}"),), "x", is_safety=False) for i in range(3)]


def test_the_same_answer_is_a_tie_whatever_its_last_bits():
    def answered(ids, helpfulness, safety, *, is_safety):
        prompt = Prompt("p", (Turn("user", "why ?"),), "x", is_safety=is_safety)
        return Sample(prompt, (0, 8), Completion(ids, (0.0,) * len(ids), "stop"), "said"), helpfulness, safety

    ours = [answered((9, 1), 2.0000002, 5.0, is_safety=False), answered((9, 1), 1.0, 3.0, is_safety=True)]
    theirs = [answered((9, 1), 2.0, 6.0, is_safety=False), answered((7, 1), 2.0, 2.0, is_safety=True)]
    assert own(ours, theirs) == ([2.0, 3.0], [2.0, 2.0])  # by helpfulness, and by safety


def test_rates_by_hand():
    found = win_rates.win_rate([1.0, 2.0, 0.0, 5.0], [0.0, 2.0, 1.0, 4.0])
    assert (found["rate"], found["tied"], found["n"]) == (pytest.approx(2.5 / 4), 1 / 4, 4)  # two wins, a tie, a loss
    axes = win_rates.by_axis([1.0, 0.0], [0.0, 1.0], [False, True])
    assert (axes["helpfulness"]["rate"], axes["harmlessness"]["rate"]) == (1.0, 0.0)
    assert set(win_rates.by_axis([1.0], [0.0], [False])) == {"helpfulness"}


class Judge:
    """Says A or B by a rule about the two answers it was shown."""

    device = "cpu"

    def __init__(self, tokenizer, says_a):
        self.tokenizer, self.says_a = tokenizer, says_a

    def __call__(self, input_ids, attention_mask, use_cache):
        a, b = (self.tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][-1] for letter in "AB")
        logits = torch.zeros(*input_ids.shape, len(self.tokenizer))
        for i, (row, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            text = self.tokenizer.decode(row[: int(mask.sum())])
            first, second = text.split("Answer A: ")[1].split("Answer B: ")
            logits[i, int(mask.sum()) - 1, a if self.says_a(first, second.split("Which")[0]) else b] = 1.0
        return type("Output", (), {"logits": logits})()


@pytest.mark.parametrize(
    ("says_a", "wanted"),
    [
        (lambda first, second: len(first) > len(second), [1.0, 0.0, 0.5]),  # the longer; of equals, B both times
        (lambda first, second: True, [0.5, 0.5, 0.5]),  # the first, whatever it says: decides nothing
    ],
)
def test_a_judge_is_asked_in_both_orders(tokenizer, says_a, wanted):
    ours, theirs = ["a long answer", "short", "same"], ["short", "a long answer", "same"]
    assert win_rates.judged(Judge(tokenizer, says_a), tokenizer, PROMPTS, ours, theirs, rows_per_batch=2) == wanted
