"""What policies do beyond one answer to one prompt: many turns, changes of mind, attention, diversity, wins, checks."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from rlhf.data import feed
from rlhf.data.conversations import Conversation, another, changed
from rlhf.data.types import Prompt, Turn
from rlhf.errors import ConfigError
from rlhf.evaluation import attention, checks, people, win_rates
from rlhf.evaluation.diversity import over_temperature
from rlhf.evaluation.gold import verdicts
from rlhf.evaluation.multi_turn import follow_rates
from rlhf.evaluation.subject import Evaluation
from rlhf.generation.protocol import Sampling
from rlhf.microworld import corpus, dialogues
from rlhf.microworld.instructions import WITHDRAWAL
from rlhf.microworld.oracle import ideal
from rlhf.models.load import checkpoint_of, freeze, load_given_tokenizer, load_policy
from rlhf.rollout import Sample, sample
from rlhf.schema import MICROWORLD

FACTUAL, CREATIVE = "factual", "creative"


def embedded(e: Evaluation) -> bool:
    """Whether all prompts are the micro-world's, whose oracle knows what follows an instruction."""
    return all(source.name == MICROWORLD for source in e.job.config.data)


def around_gatt(e: Evaluation) -> dict[str, str]:
    """The policies of the multi-turn tests: before Ghost Attention, after it, the last; else the last one alone."""
    names = list(e.policies)
    if "gatt" not in names:
        return {"final": names[-1]}
    after = names.index("gatt")
    shown = {"before": names[after - 1]} if after else {}
    return shown | {"after": "gatt"} | ({"final": names[-1]} if names[-1] != "gatt" else {})


def fact_questions(e: Evaluation) -> list[Prompt]:
    """Where a thing is, which colour it has, what has a colour: what all policies learned and none may forget.

    They have no held-out side, since a fact cannot be put together from others. Without them a policy that takes every
    question for one of how to do something would look perfect.
    """
    if not embedded(e):
        return []
    rng, count = random.Random(e.job.seed_of("facts")), e.job.config.prompts // 4
    forms, safe = corpus.KNOWN_FORMS, {"safe": 1.0}
    drawn = corpus.prompts(rng, 10 * count, mix=safe, instruction_share=0, held_out=False, forms=forms)
    return list({prompt.turns: prompt for prompt in drawn}.values())[:count]


def multi_turn(e: Evaluation) -> dict[str, Any]:
    """An instruction given once, before Ghost Attention and after it, and in the last policy (Table 30).

    In the micro-world the oracle judges; in dialogues of people the rules of instructions that need no judge.
    """
    if not embedded(e):
        return people.multi_turn(e, around_gatt(e))
    config, shown = e.job.config, around_gatt(e)
    held = conversations(e, config.dialogues)
    unseen = [replace(c, instruction=text) for c, text in zip(held, cycle(config.unseen), strict=False)]
    half = max(config.turns) // 2
    turned = [at_half(c, half) for c in conversations(e, config.changes)] if config.changes else []
    later = [turn for turn in range(half + 1, max(config.turns) + 1) if turn in config.turns or turn == half + 1]
    found: dict[str, Any] = {"n": len(held)} | {f"{label}_policy": name for label, name in shown.items()}
    with e.job.track.progress(len(shown), "multi-turn") as bar:
        for label, name in shown.items():
            policy, longest = e.engine(e.model(name)), config.max_new_tokens
            kept = follow_rates(policy, e.tokenizer, held, turns=config.turns, max_new_tokens=longest)
            found[label] = kept.table()
            found[f"content_{label}"] = {str(turn): value for turn, value in kept.content.items()}
            found[f"interval_{label}"] = kept.intervals()
            for what, others, looked_at in (("changed", turned, later), ("unseen", unseen, config.turns)):
                if others:
                    rates = follow_rates(policy, e.tokenizer, others, turns=looked_at, max_new_tokens=longest)
                    found[f"{what}_{label}"] = rates.table()
                    found[f"interval_{what}_{label}"] = rates.intervals()
            bar.advance(1)
    return found | ({"changed_n": len(turned), "changed_at": half + 1} if turned else {})


def conversations(e: Evaluation, count: int) -> list[Conversation]:
    """Held-out conversations, as long as the last turn that is looked at."""
    turns = max(e.job.config.turns)
    seed = e.job.seed_of("multi-turn")
    return feed.conversations(
        e.job.config.data,
        count,
        min_turns=turns,
        max_turns=turns,
        seed=seed,
        held_out=True,
        stage="evaluate",
        test_share=e.job.recipe.data.test_share,
    )


def at_half(c: Conversation, turn: int) -> Conversation:
    """The conversation with its instruction replaced half way, or withdrawn: half and half."""
    rng = random.Random(c.id)
    instead = another(c, dialogues.LISTS, rng) if rng.random() < 0.5 else None
    return changed(c, instead, WITHDRAWAL, at=turn)


def attention_on_instruction(e: Evaluation) -> dict[str, Any]:
    """By turn the highest attention to the instruction, the same dialogues for every policy (Fig 10).

    In the micro-world with the oracle's own answers, in dialogues of people with those that were given there.
    """
    count = e.job.config.attention
    if not count:
        return {}
    spoken = [ideal_dialogue(c) for c in conversations(e, count)] if embedded(e) else people.as_given(e, count)
    found: dict[str, Any] = {"n": len(spoken)} if spoken else {}
    for label, name in around_gatt(e).items() if spoken else ():
        policy = e.model(name)
        try:
            rows = [attention.on_instruction(policy, e.tokenizer, turns) for turns in spoken]
        except ConfigError as error:  # of the model or its template; nothing else is lost for that
            e.job.track.say(f"left out: attention to the instruction (Fig 10): {error}")
            return {}
        found[label] = {str(turn): sum(row[turn] for row in rows) / len(rows) for turn in e.job.config.turns}
    return found


def ideal_dialogue(c: Conversation) -> tuple[Turn, ...]:
    """The conversation with the oracle's own answers, instruction in the first turn only."""
    turns = [Turn("system", c.instruction)]
    for user in c.user_turns:
        turns.append(Turn("user", user))
        turns.append(Turn("assistant", ideal(Prompt(c.id, tuple(turns), c.source, is_safety=False))))
    return tuple(turns)


def diversity(e: Evaluation) -> dict[str, Any]:
    """Self-BLEU over the temperature, factual prompts against creative ones, for every policy (Fig 21)."""
    config = e.job.config
    if not config.diversity_prompts:
        return {}
    asked = kinds_of_prompts(e, config.diversity_prompts)
    if missing := [kind for kind in (FACTUAL, CREATIVE) if kind not in asked]:
        e.job.track.say(
            f"left out: diversity over the temperature of {' and '.join(missing)} prompts (Fig 21). No held-out prompt"
            " has that `kind`; rows of a file may say it"
        )
    if not asked:
        return {}
    found = {}
    with e.job.track.progress(len(e.policies), "diversity") as bar:
        for name in e.policies:
            found[name] = over_temperature(
                e.engine(e.model(name)),
                e.tokenizer,
                asked,
                config.diversity_temperatures,
                samples=config.diversity_samples,
                max_new_tokens=config.max_new_tokens,
                seed=e.job.seed_of("diversity"),
            )
            bar.advance(1)
    return found


def kinds_of_prompts(e: Evaluation, count: int) -> dict[str, list[Prompt]]:
    """Factual and creative prompts: by form in the micro-world, elsewhere those whose `kind` says so."""
    config, world, seed = e.job.config, e.job.recipe.microworld, e.job.seed_of("diversity prompts")
    found: dict[str, list[Prompt]] = {}
    for kind, forms in ((FACTUAL, corpus.FACTUAL_FORMS), (CREATIVE, corpus.CREATIVE_FORMS)):
        if embedded(e):
            rng = random.Random(seed)
            drawn = corpus.prompts(rng, 20 * count, mix={"safe": 1.0}, instruction_share=0, held_out=False, forms=forms)
        else:
            rows = feed.prompts(
                [source for source in config.data if source.name != MICROWORLD],  # which has no end of prompts
                10**9,
                seed=seed,
                stage="evaluate",
                world=world,
                mix={},
                side="test",
                test_share=e.job.recipe.data.test_share,
                say=e.job.track.say,
            )
            drawn = [prompt for prompt in rows if prompt.kind == kind]
        once = list({prompt.turns: prompt for prompt in drawn}.values())[:count]
        found |= {kind: once} if once else {}
    return found


def wins(e: Evaluation, replies: Mapping[str, Sequence[tuple[Sample, float, float]]]) -> dict[str, Any]:
    """Every policy against one of them: by own reward models, by the oracle, by a judge (Fig 11)."""
    names, opponent = [name for name in replies if name != "base"], opponent_of(e)
    if opponent not in replies or len(names) < 2:
        return {}
    theirs = replies[opponent]
    tags = [s.prompt.is_safety for s, _, _ in theirs]
    judge = judge_of(e)
    found: dict[str, Any] = {"against": opponent}
    for name in names:
        if name == opponent:
            continue
        ours = replies[name]
        found[name] = {"own": win_rates.by_axis(*own(ours, theirs), tags)}
        gold, other = (verdicts([row[0] for row in side]) for side in (ours, theirs))
        if gold is not None and other is not None:
            found[name]["gold"] = win_rates.by_axis([v.quality for v in gold], [v.quality for v in other], tags)
        if judge is not None:
            texts, others = ([row[0].text for row in side] for side in (ours, theirs))
            points = win_rates.judged(judge[0], judge[1], [row[0].prompt for row in ours], texts, others)
            found[name]["judge"] = win_rates.by_axis(points, [0.5] * len(points), tags)
    return found


def opponent_of(e: Evaluation) -> str:
    """The policy that the others are held against: the one that is named, else the first that was fine-tuned."""
    return e.job.config.opponent or next((name for name in e.policies if name != "base"), "")


def own(
    ours: Sequence[tuple[Sample, float, float]], theirs: Sequence[tuple[Sample, float, float]]
) -> tuple[list[float], list[float]]:
    """Scores by the model whose domain the prompt is: safety on adversarial prompts, helpfulness on the others.

    The same answer has the same score: in another batch it may differ by a last bit, which is no victory.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for (mine, *scores), (other, *against) in zip(ours, theirs, strict=True):
        same, domain = mine.completion.token_ids == other.completion.token_ids, int(other.prompt.is_safety)
        found[0].append((against if same else scores)[domain])
        found[1].append(against[domain])
    return found


def judge_of(e: Evaluation) -> Any:
    """The model that `evaluate.judge` names, with its tokenizer; None if it names none."""
    path = e.job.config.judge.path
    if path is None:
        return None
    folder = checkpoint_of(Path(path))
    return freeze(load_policy(folder, e.job.recipe.model)), load_given_tokenizer(str(folder), revision=None)


def checked(e: Evaluation) -> dict[str, Any]:
    """Instructions that need no judge, on prompts of a file: every policy's greedy answers."""
    if e.job.config.checks.path is None:
        return {}
    rows = checks.read(e.job.config.checks.path)
    known = [row for row in rows if row.known]
    e.job.track.say(f"{len(known):,} of {len(rows):,} prompts have rules that can be checked")
    greedy = Sampling(1, 0.0, e.job.config.max_new_tokens)
    prompts = [
        Prompt(f"check-{i}", (Turn("user", row.prompt),), "checks", is_safety=False) for i, row in enumerate(known)
    ]
    found: dict[str, Any] = {}
    for name in e.policies:
        answers = [group[0].text for group in sample(e.engine(e.model(name)), e.tokenizer, prompts, greedy, seed=0)]
        found[name] = checks.rates(known, answers)
    return found
