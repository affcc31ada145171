"""Wrong versions of every formula, each of which its tests must notice: `python tests/mutants.py [file ...]`.

A mutant is a file of `rlhf/functional`, a piece of its text and a wrong piece in its place. Each is run as the module
of that name, in this one process, against the tests of that file. The files themselves are never changed. A mutant that
no test notices, or that cannot run at all, is printed, and the exit status is 1.
"""

import contextlib
import gc
import io
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

import rlhf.functional  # noqa: F401  # torch and the modules that mutants replace, loaded once

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "rlhf" / "functional"

# (file, right, wrong)
MUTANTS = [
    ("margin.py", '"small": _table(1.0, 2 / 3, 1 / 3, 0.0)', '"small": _table(1.0, 1 / 3, 2 / 3, 0.0)'),
    ("margin.py", '"large": _table(3.0, 2.0, 1.0, 0.0)', '"large": _table(3.0, 2.0, 1.0, 1.0)'),
    ("margin.py", '"none": _table(0.0,', '"none": _table(1.0,'),
    ("margin.py", "return unrated", "return 0.0"),
    ("margin.py", 'return 0.0 if table == "none" else numeric', "return numeric"),
    ("margin.py", "if numeric is not None:", "if numeric:"),
    ("margin.py", "if table not in MARGINS:", "if rating is not None and table not in MARGINS:"),
    ("margin.py", "- rejected_score - margin", "- rejected_score + margin"),
    ("margin.py", "chosen_score - rejected_score", "rejected_score - chosen_score"),
    ("margin.py", "-logsigmoid(", "-(lambda gap: gap.sigmoid().log())("),
    ("margin.py", "- margin)", ")"),
    ("safety_loss.py", "0.5 * (chosen + rejected)", "chosen + rejected"),
    ("safety_loss.py", "torch.where(labelled, 0.5 * (chosen + rejected), 0.0)", "0.5 * (chosen + rejected)"),
    ("safety_loss.py", "cross_entropy(rejected_score, rejected_label", "cross_entropy(rejected_score, chosen_label"),
    ("safety_loss.py", "cross_entropy(chosen_score, chosen_label", "cross_entropy(-chosen_score, chosen_label"),
    ("safety_loss.py", "chosen_score.dtype).masked_fill(~labelled, 0.0)", "chosen_score.dtype)"),
    ("safety_loss.py", "(chosen + rejected)", "(chosen - rejected)"),
    ("piecewise.py", "~(probability >= safety_threshold)", "~(probability > safety_threshold)"),
    ("piecewise.py", "~(probability >= safety_threshold)", "(probability < safety_threshold)"),
    ("piecewise.py", "~(probability >= safety_threshold)", "~(safety_score >= safety_threshold)"),
    ("piecewise.py", "~(probability >= safety_threshold)", "(probability >= safety_threshold)"),
    ("piecewise.py", "is_safety_prompt | ", "is_safety_prompt & "),
    ("piecewise.py", "is_safety_prompt | ~", "~"),
    ("piecewise.py", "safety_score, helpfulness_score)", "safety_score, helpfulness_score).sigmoid()"),
    ("piecewise.py", "safety_score, helpfulness_score)", "helpfulness_score, safety_score)"),
    ("piecewise.py", "torch.where(safety_counts, ", "torch.minimum("),
    ("piecewise.py", "safety_score.to(torch.promote_types(safety_score.dtype, torch.float32))", "safety_score"),
    ("piecewise.py", "not 0.0 <= safety_threshold <= 1.0", "not safety_threshold <= 1.0"),
    ("combine.py", "(1.0 - safety_weight) * helpfulness_score", "helpfulness_score"),
    ("combine.py", "(1.0 - safety_weight) * helpfulness_score + safety_weight * safety_score",
     "safety_weight * helpfulness_score + (1.0 - safety_weight) * safety_score"),
    ("combine.py", "return helpfulness_score.clone()", "pass"),
    ("combine.py", "return safety_score.clone()", "pass"),
    ("combine.py", "not 0.0 <= safety_weight <= 1.0", "not safety_weight <= 1.0"),
    ("combine.py", "not 0.0 <= safety_weight <= 1.0", "not 0.0 <= safety_weight"),
    ("combine.py", "helpfulness_score + multiplier", "helpfulness_score - multiplier"),
    ("combine.py", " / (1.0 + multiplier)", ""),
    ("combine.py", "/ (1.0 + multiplier)", "/ (1.0 - multiplier)"),
    ("combine.py", "if not multiplier >= 0.0:", "if not multiplier > 0.0:"),
    ("combine.py", "if not multiplier >= 0.0:", "if False:"),
    ("combine.py", "rate * multiplier * (mean_cost", "rate * (mean_cost"),
    ("combine.py", "mean_cost - cost_limit", "mean_cost"),
    ("combine.py", "mean_cost - cost_limit", "cost_limit - mean_cost"),
    ("combine.py", "min(log, math.log(largest))", "log"),
    ("combine.py", "math.log(largest)", "largest"),
    ("combine.py", "math.log(multiplier) + rate", "rate"),
    ("combine.py", ", SMALLEST_LOG)", ", -1000.0)"),
    ("combine.py", "if not math.isfinite(mean_cost):", "if False:"),
    ("combine.py", "if not value > 0.0:", "if False:"),
    ("combine.py", '("multiplier", multiplier), ', ""),
    ("combine.py", '("rate", rate), ', ""),
    ("combine.py", ', ("largest", largest)', ""),
    ("whiten.py", "inside.sum() / count", "x.detach().double().mean()"),
    ("whiten.py", "x.detach().double().masked_fill(~where, 0.0)", "x.detach().masked_fill(~where, 0.0)"),
    ("whiten.py", "x.detach().double()", "x.double()"),
    ("whiten.py", "(inside - mean).masked_fill(~where, 0.0)", "(inside - mean)"),
    ("whiten.py", "0.0).square().sum() / count", "0.0).square().sum() / (count - 1)"),
    ("whiten.py", "(x.double() - moments.mean) / scale", "x.double() / scale"),
    ("whiten.py", "(x.double() - moments.mean) / scale", "(x.double() - moments.mean)"),
    ("whiten.py", "mean) / scale).to(x.dtype).masked_fill(~where, 0.0)", "mean) / scale).to(x.dtype)"),
    ("whiten.py", "moments.var.sqrt().clamp(min=epsilon)", "moments.var.clamp(min=epsilon)"),
    ("whiten.py", "moments.var.sqrt().clamp(min=epsilon)", "moments.var.sqrt() + epsilon"),
    ("whiten.py", "moments.var.sqrt().clamp(min=epsilon)", "(moments.var + 1e-8).sqrt()"),
    ("whiten.py", "moments.count < 2", "moments.count < 1"),
    ("whiten.py", "if not epsilon > 0.0:", "if not epsilon >= 0.0:"),
    ("kl.py", "logprobs - reference_logprobs, 0.0", "reference_logprobs - logprobs, 0.0"),
    ("kl.py", "torch.where(completion_mask, logprobs - reference_logprobs, 0.0)",
     "(logprobs - reference_logprobs) * completion_mask"),
    ("kl.py", "torch.where(completion_mask, logprobs - reference_logprobs, 0.0)", "logprobs - reference_logprobs"),
    ("kl.py", "return log_ratio\n", "return log_ratio.abs()\n"),
    ("kl.py", "0.5 * log_ratio.square()", "log_ratio.square()"),
    ("kl.py", "torch.expm1(-log_ratio) + log_ratio", "torch.expm1(log_ratio) - log_ratio"),
    ("kl.py", "torch.expm1(-log_ratio)", "torch.exp(-log_ratio)"),
    ("kl.py", "log_policy.exp() * gap", "log_reference.exp() * gap"),
    ("kl.py", "logits.log_softmax(-1), reference_logits", "logits, reference_logits"),
    ("kl.py", ".masked_fill(log_policy == -torch.inf, 0.0)", ""),
    ("kl.py", "torch.where(completion_mask, (log_policy.exp() * gap).sum(-1), 0.0)",
     "(log_policy.exp() * gap).sum(-1)"),
    ("kl.py", "(places * completion_mask).amax(dim=1)", "completion_mask.sum(dim=1)"),
    ("kl.py", "(places * completion_mask).amax(dim=1)", "completion_mask.sum(dim=1) - 1"),
    ("kl.py", "(places * completion_mask).amax(dim=1)", "(places + 0 * completion_mask).amax(dim=1)"),
    ("kl.py", "if bool(empty.any()):", "if bool(empty.all()):"),
    ("kl.py", "-kl_coef * kl, 0.0", "kl_coef * kl, 0.0"),
    ("kl.py", "torch.where(completion_mask, -kl_coef * kl, 0.0)", "-kl_coef * kl"),
    ("kl.py", "torch.where(completion_mask, -kl_coef * kl, 0.0)",
     "kl.mul_(-kl_coef).masked_fill_(~completion_mask, 0.0)"),
    ("kl.py", "penalty.scatter_add(", "penalty.scatter("),
    ("kl.py", "last_token(completion_mask).unsqueeze(1), score", "0 * last_token(completion_mask).unsqueeze(1), score"),
    ("kl.py", "not kl_coef >= 0.0", "False"),
    ("gae.py", "+ gamma * next_value", "+ next_value"),
    ("gae.py", "+ gamma * next_value", "+ gae_lambda * next_value"),
    ("gae.py", "- values[:, t]\n", "\n"),
    ("gae.py", "delta + gamma * gae_lambda * next_advantage", "delta + gamma * next_advantage"),
    ("gae.py", "delta + gamma * gae_lambda * next_advantage", "delta + gae_lambda * next_advantage"),
    ("gae.py", "next_value = values[:, t]", "next_value = rewards[:, t]"),
    ("gae.py", "values = torch.where(completion_mask, values.detach(), 0.0)", "values = values.detach()"),
    ("gae.py", "rewards = torch.where(completion_mask, rewards.detach(), 0.0)", "rewards = rewards.detach()"),
    ("gae.py", "torch.where(completion_mask, values.detach(), 0.0)", "torch.where(completion_mask, values, 0.0)"),
    ("gae.py", "return advantages, advantages + values", "return advantages, advantages"),
    ("gae.py", "return advantages, advantages + values", "return advantages, rewards + values"),
    ("gae.py", "if bool((completion_mask[:, 1:] & ~completion_mask[:, :-1]).any()):", "if False:"),
    ("gae.py", "reversed(range(rewards.shape[1]))", "range(rewards.shape[1])"),
    ("gae.py", "not 0.0 <= gamma <= 1.0", "not gamma <= 1.0"),
    ("gae.py", "not 0.0 <= gae_lambda <= 1.0", "not 0.0 <= gae_lambda"),
    ("ppo.py", "torch.minimum(objective, clipped_objective)", "clipped_objective"),
    ("ppo.py", "torch.minimum(objective, clipped_objective)", "objective"),
    ("ppo.py", "torch.minimum(objective, clipped_objective)", "torch.maximum(objective, clipped_objective)"),
    ("ppo.py", "loss = -torch.minimum", "loss = torch.minimum"),
    ("ppo.py", "ratio.clamp(1.0 - clip_range, 1.0 + clip_range)", "ratio.clamp(max=1.0 + clip_range)"),
    ("ppo.py", "ratio.clamp(1.0 - clip_range, 1.0 + clip_range)", "ratio.clamp(-clip_range, clip_range)"),
    ("ppo.py", "logprobs - old_logprobs.detach()", "old_logprobs.detach() - logprobs"),
    ("ppo.py", "old_logprobs.detach()", "old_logprobs"),
    ("ppo.py", "torch.where(completion_mask, advantages.detach(), 0.0)", "advantages.detach()"),
    ("ppo.py", "completion_mask, advantages.detach(), 0.0)", "completion_mask, advantages, 0.0)"),
    ("ppo.py", "denominator = completion_mask.sum()", "denominator = float(completion_mask.numel())"),
    ("ppo.py", "if denominator is None:", "if True:"),
    ("ppo.py", "(clipped_objective < objective).sum()", "((ratio - 1.0).abs() > clip_range).sum()"),
    ("ppo.py", "ratio_mean=ratio.masked_fill(~completion_mask, 0.0).sum()", "ratio_mean=ratio.sum()"),
    ("ppo.py", "ratio_max=ratio.masked_fill(~completion_mask, 0.0).amax()", "ratio_max=ratio.amax()"),
    ("ppo.py", "torch.expm1(log_ratio) - log_ratio", "-log_ratio"),
    ("ppo.py", "with torch.no_grad():\n        stats = PolicyStats", "if True:\n        stats = PolicyStats"),
    ("ppo.py", "torch.maximum(error, clipped_error)", "torch.minimum(error, clipped_error)"),
    ("ppo.py", "torch.maximum(error, clipped_error)", "error"),
    ("ppo.py", "torch.maximum(error, clipped_error)", "clipped_error"),
    ("ppo.py", "return 0.5 * torch.maximum", "return torch.maximum"),
    ("ppo.py", "old_values + (values - old_values).clamp", "(values - old_values).clamp"),
    ("ppo.py", "old_values, returns = old_values.detach(), returns.detach()", "pass"),
    ("ppo.py", "1.0 - missed / variance, 0.0", "missed / variance, 0.0"),
    ("ppo.py", "torch.where(variance > 0.0, 1.0 - missed / variance, 0.0)", "1.0 - missed / variance"),
    ("ppo.py", ".double()).var(correction=0)", ".double()).square().mean()"),
    ("ppo.py", "returns.detach()[completion_mask].double()", "returns.detach()[completion_mask]"),
    ("ppo.py", "not 0.0 < clip_range < 1.0", "not 0.0 < clip_range"),
    ("ppo.py", "not value_clip_range > 0.0", "not value_clip_range >= 0.0"),
    ("ppo.py", "elif not denominator > 0:", "elif not denominator >= 0:"),
    ("ppo.py", "if denominator == 0:", "if False:"),
    ("logprobs.py", "scaled = scaled / temperature", "scaled = scaled * temperature"),
    ("logprobs.py", "scaled = scaled / temperature", "pass"),
    ("logprobs.py", "return chosen - scaled.logsumexp(-1)", "return chosen - logits.logsumexp(-1)"),
    ("logprobs.py", "return chosen - scaled.logsumexp(-1)", "return chosen"),
    ("logprobs.py", "return chosen - scaled.logsumexp(-1)", "return chosen - scaled.exp().sum(-1).log()"),
    ("logprobs.py", "return chosen - scaled.logsumexp(-1)",
     "return scaled.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)"),
    ("logprobs.py", "scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))", "scaled = logits"),
    ("logprobs.py", "return -(log_probability.exp()", "return (log_probability.exp()"),
    ("logprobs.py", "log_probability.masked_fill(log_probability == -torch.inf, 0.0)", "log_probability"),
    ("logprobs.py", "if not temperature > 0.0:", "if temperature < 0.0:"),
    ("best_of.py", "_statistics(scores, k, (k - 1,))", "_statistics(scores, k, (0,))"),
    ("best_of.py", "_weights(scores, k, (k - 1,))", "_weights(scores, k, (0,))"),
    ("best_of.py", "((k - 1) // 2, k // 2)", "(k // 2,)"),
    ("best_of.py", "((k - 1) // 2, k // 2)", "((k - 1) // 2,)"),
    ("best_of.py", "subsets = len(ranks) * math.comb(n, k)", "subsets = math.comb(n, k)"),
    ("best_of.py", "subsets = len(ranks) * math.comb(n, k)", "subsets = len(ranks) * math.comb(n - 1, k - 1)"),
    ("best_of.py", "math.comb(n - 1 - i, k - 1 - r)", "math.comb(n - i, k - 1 - r)"),
    ("best_of.py", "math.comb(i, r) * ", ""),
    ("best_of.py", "scores.double().sort(dim=-1).values", "scores.double()"),
    ("best_of.py", "scores.double().sort(dim=-1).values", "scores.double().sort(dim=-1, descending=True).values"),
    ("best_of.py", "values.flip(-1).gather", "values.gather"),
    ("best_of.py", "scores.flip(-1).sort(dim=-1, stable=True)", "scores.sort(dim=-1, stable=True)"),
    ("best_of.py", "scores.flip(-1).sort(dim=-1, stable=True)", "scores.flip(-1).sort(dim=-1, descending=True)"),
    ("best_of.py", "if not 1 <= k <= n:", "if not 0 <= k <= n:"),
    ("best_of.py", "if not bool(scores.isfinite().all()):", "if bool(scores.isnan().any()):"),
]  # fmt: skip


class FirstFailure:
    """A pytest plugin that remembers which test noticed first, and whether the mutant ran at all."""

    test: str | None = None
    broken: str | None = None

    def pytest_exception_interact(self, node: pytest.Item, call: pytest.CallInfo) -> None:
        self.test = self.test or node.name
        if call.excinfo is not None and call.excinfo.errisinstance((NameError, ImportError, SyntaxError)):
            self.broken = call.excinfo.exconly()


def run_tests_of(file: str, source: str) -> FirstFailure:
    """Run tests/functional/test_<file> with `source` in the place of the module, up to the first test that fails."""
    name = f"rlhf.functional.{file.removesuffix('.py')}"
    tests = HERE / "functional" / f"test_{file}"
    for loaded, module in list(sys.modules.items()):  # else pytest would find the tests bound to the last version
        if getattr(module, "__file__", None) == str(tests):
            del sys.modules[loaded]
    noticed, silence = FirstFailure(), io.StringIO()
    replaced, sys.modules[name] = sys.modules[name], ModuleType(name)
    try:
        exec(compile(source, str(PACKAGE / file), "exec"), sys.modules[name].__dict__)
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            # No configuration file: the project's options name plugins that are not loaded here.
            options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-c", os.devnull]
            status = pytest.main([*options, str(tests)], plugins=[noticed])
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            noticed.broken = noticed.broken or silence.getvalue().strip().splitlines()[-1]
    except Exception as error:  # whatever importing a wrong version may raise
        noticed.broken = repr(error)
    finally:
        sys.modules[name] = replaced
    return noticed


def complaint(source: str, file: str, right: str, wrong: str) -> str | None:
    """What is the matter with a mutant; None when a test notices it, as it should be."""
    if source.count(right) != 1:
        return f"found {source.count(right)} times, not once:"
    noticed = run_tests_of(file, source.replace(right, wrong))
    if noticed.broken is not None:  # code that cannot run proves nothing about the tests
        return f"cannot run ({noticed.broken}):"
    return None if noticed.test else "no test notices"


def main(files: list[str]) -> int:
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # starting plugins 150 times costs more than the tests,
    gc.freeze()  # and so does looking for garbage in torch, which pytest does after each run
    started = time.perf_counter()
    known = dict.fromkeys(file for file, _, _ in MUTANTS)
    if strangers := [file for file in files if file not in known]:
        print(f"no mutants of {', '.join(strangers)}; known: {', '.join(known)}")
        return 2
    sources = {file: (PACKAGE / file).read_text(encoding="utf-8") for file in files or known}
    for file, source in sources.items():
        right = run_tests_of(file, source)
        if right.test or right.broken:
            print(f"rlhf/functional/{file}: the right version fails already ({right.broken or right.test})")
            return 1
    mutants = [mutant for mutant in MUTANTS if mutant[0] in sources]
    survivors = 0
    for file, right_text, wrong_text in mutants:
        if what := complaint(sources[file], file, right_text, wrong_text):
            print(f"rlhf/functional/{file}: {what} {right_text!r} -> {wrong_text!r}")
            survivors += 1
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants killed in {time.perf_counter() - started:.0f} s")
    return min(survivors, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
