"""Ghost Attention: an instruction given once holds for the whole dialogue (3.3)."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rlhf.data import feed
from rlhf.data.chat import encode_prompt
from rlhf.data.conversations import Conversation, Said, Without, under_instructions, with_changes
from rlhf.data.gatt import ends, spread, training_dialogue
from rlhf.data.instructions import WITHDRAWAL, Lists, read_lists
from rlhf.data.types import Dialogue, Prompt, Turn, write_jsonl
from rlhf.errors import RlhfError
from rlhf.evaluation import checks
from rlhf.evaluation.obedience import Obeys, obedience
from rlhf.generation.protocol import Sampling
from rlhf.generation.transformers import InProcess
from rlhf.microworld import dialogues as worldly
from rlhf.models.gate import check_gate
from rlhf.models.load import load_tokenizer, policy_to_train, save
from rlhf.models.reward_models import RewardModels
from rlhf.models.target_modules import require_modules, train_only
from rlhf.pipeline import Job
from rlhf.rollout import Sample, batches, remembering, speaker
from rlhf.training import selfplay
from rlhf.training.finetune import fine_tune
from rlhf.training.rehearsal import best_answers, replay, share_to_ratio


def run(job: Job) -> None:
    """Leave `dialogues.jsonl`, what was trained on, and `checkpoint/`."""
    config = job.config
    check_gate(job.one("reward"), config, stage="gatt", say=job.track.say)
    start = job.one("policy") / "checkpoint"
    require_modules(start, job.recipe.model, config.target_modules, setting="gatt.target_modules")
    tokenizer = load_tokenizer(start)
    opened = partial(speaker, job.recipe.generation, start, job.recipe.model)
    # Data first: a bad row is said before any model is loaded, unless the policy itself has to speak before.
    rules = checks.read(config.rules.path)
    conversations = conversations_of(job, opened, tokenizer)
    obeys = obedience(conversations, rules, path=config.rules.path, say=job.track.say) if config.check_targets else None
    rewards = RewardModels.load(job.one("reward"), job.recipe.model, reads=tokenizer)
    engine = opened()
    answers = answers_to(job, engine, tokenizer, rewards, conversations)
    rows = training_rows(job, conversations, answers, obeys)
    count = round(len(rows) * share_to_ratio(config.replay_share))
    # With loss on all answers the longest row of each conversation: others would count its first answers again. What is
    # replayed beside it stays the same.
    if config.train_on == "all_answers":
        rows = list({row.id.rpartition("/")[0]: row for row in rows}.values())
    ghosts = frozenset(row.id for row in rows if config.train_on == "last_answer")
    replayed = replay(job, engine, tokenizer, rewards, sampling(job), count=count)
    write_jsonl(job.out / "dialogues.jsonl", rows + replayed)
    said = f"{len(conversations):,} conversations give {len(rows):,} rows"
    job.track.say(f"{said}, {len(replayed):,} of the policy's own answers beside them")
    del engine  # the policy that spoke makes room for the one that learns
    policy = train_only(policy_to_train(start, job.recipe.model), config.target_modules)
    fine_tune(policy, tokenizer, rows + replayed, job, last_answer_only=ghosts)
    save(policy, tokenizer, job.out / "checkpoint")


def conversations_of(job: Job, opened: Callable[[], InProcess], tokenizer) -> list[Conversation]:
    """What users say, each dialogue under an instruction: from the data, or spoken by the policy itself."""
    config = job.config
    embedded = all(source.name == feed.MICROWORLD for source in config.data)
    lists = worldly.LISTS if embedded else lists_of(job, opened, tokenizer)
    if config.users == "data":
        return feed.conversations(
            config.data,
            config.dialogues,
            min_turns=config.min_turns,
            max_turns=config.max_turns,
            seed=job.seed,
            held_out=False,
            stage="gatt",
            lists=lists,
            change_share=config.change_share,
            unseen=config.unseen,
            test_share=job.recipe.data.test_share,
            say=job.track.say,
        )
    said = self_play(job, opened(), tokenizer)
    turns, withdrawal = (config.min_turns, config.max_turns), worldly.WITHDRAWAL if embedded else WITHDRAWAL
    source = feed.MICROWORLD if embedded else "self-play"
    lists = Without(lists, config.unseen)
    rows = under_instructions(said, lists, config.dialogues, turns=turns, seed=job.seed, prefix="gatt", source=source)
    job.track.say(f"{len(rows):,} conversations from {len(said):,} that the policy held with itself")
    return with_changes(rows, config.change_share, lists=lists, seed=job.seed, withdrawal=withdrawal)


def lists_of(job: Job, opened: Callable[[], InProcess], tokenizer) -> Lists:
    """What constraints are drawn from: a file, or lists by the policy itself (A.3.5)."""
    config = job.config
    if config.instructions.path:
        return read_lists(Path(config.instructions.path).expanduser())
    return selfplay.written_lists(
        opened(),
        tokenizer,
        items=config.instructions.items,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=job.seed_of("lists"),
        say=job.track.say,
    )


def self_play(job: Job, policy, tokenizer) -> list[Said]:
    """Dialogues that the policy holds with itself, from prompts of the data on; each of a random length."""
    config = job.config
    openings = feed.asked(job, config.dialogues, label="openings", instruction_share=0.0)
    rng = random.Random(job.seed_of("lengths"))
    said = selfplay.user_turns(
        policy,
        tokenizer,
        openings,
        turns=[rng.randint(config.min_turns, config.max_turns) for _ in openings],
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=job.seed_of("self-play"),
    )
    return [Said(users, opening.is_safety) for users, opening in zip(said, openings, strict=True)]


def training_rows(
    job: Job, conversations: Sequence[Conversation], answers: list[list[Sample]], obeys: Obeys | None = None
) -> list[Dialogue]:
    """The instruction in the first turn only, less verbose half of the time; every conversation cut at some turns.

    A conversation that was sampled to its end holds one row for every turn it could have ended at; they begin alike,
    and are read in one pass. What changes an instruction is said once, too, in the turn where it changes.

    An answer that never ended is no target, nor one that is seen to miss its instruction; later rows hold both.

    Raises:
        RlhfError: if no answer can be a target.
    """
    config, rng, rows = job.config, random.Random(job.seed), []
    seen: Counter[bool | None] = Counter()
    for c, replies in zip(conversations, answers, strict=True):
        texts = [reply.text or "." for reply in replies]
        short = rng.random() < config.short_share
        shown = c.short if short and c.short else c.instruction
        for end in ends(len(replies), config.cuts, rng):
            last = replies[end - 1]
            if last.usable:
                verdict = obeys(c, end - 1, last) if obeys else None
                seen[verdict] += 1
                if verdict is not False:
                    users = [c.said(turn, short=short) for turn in range(end)]
                    rows.append(training_dialogue(f"{c.id}/{end}", shown, users, texts[:end], source="gatt"))
    if obeys:
        known = seen[True] + seen[False]
        said = f"left out: {seen[False]:,} of {known:,} targets, which miss their instruction"
        job.track.say(f"{said}; {seen[None]:,} more have one that no rule is for" if seen[None] else said)
    if not rows:
        raise no_target(job, conversations, missed=seen[False])
    return rows


def no_target(job: Job, conversations: Sequence[Conversation], *, missed: int) -> RlhfError:
    """What to say where no answer can be trained on."""
    if missed:
        why = f"{missed:,} miss their instruction, the others never ended"
        hints = ["train the policy longer: sft.epochs", "or take all that ended: gatt.check_targets=false"]
    else:
        why = "all never ended"
        hints = ["give answers more room: gatt.max_new_tokens", "or train the policy longer: sft.epochs"]
    what = f"none of {len(conversations):,} conversations ends with an answer that can be a target: {why}"
    return RlhfError(what, where=job.name, hints=hints)


def answers_to(job: Job, policy, tokenizer, rewards, conversations: Sequence[Conversation]) -> list[list[Sample]]:
    """Answers to every conversation; one whose instruction changes goes over from one track to the other.

    Each track is held under its own instruction from the start on: a policy goes on as its dialogue began, so that what
    it says after a change would be a poor example.
    """
    tracks = [c.tracks() for c in conversations]
    spoken = iter(converse(job, policy, tokenizer, rewards, [track for pair in tracks for track in pair]))
    found = []
    for pair in tracks:
        first, *then = [next(spoken) for _ in pair]
        found.append(first + [answer for later in then for answer in later[len(first) :]])
    return found


def converse(job: Job, policy, tokenizer, rewards, conversations: Sequence[Conversation]) -> list[list[Sample]]:
    """Answer turn by turn, with the instruction written to every user turn; of K answers the best is kept.

    As many conversations as are answered in one batch advance together, the longest first; those that are over leave,
    the last ones, so that the others stay with the process that has read them.
    """
    engine, asked = remembering(policy), sampling(job)
    answers: list[list[Sample]] = [[] for _ in conversations]
    order = sorted(range(len(conversations)), key=lambda i: -len(conversations[i].user_turns))
    parts = [[order[i] for i in part] for part in batches(engine, len(order), samples=asked.samples_per_prompt)]
    with job.track.progress(sum(len(conversations[part[0]].user_turns) for part in parts), "conversations") as bar:
        for part in parts:
            for turn in range(len(conversations[part[0]].user_turns)):
                live = [i for i in part if len(conversations[i].user_turns) > turn]
                best = best_answers(
                    engine,
                    tokenizer,
                    rewards,
                    [context(conversations[i], answers[i], turn) for i in live],
                    asked,
                    seed=job.seed_of(f"turn {turn}"),
                    safety_threshold=job.config.safety_threshold,
                    read=lambda s: judged_row(tokenizer, s, job.config.judged),
                )
                for i, kept in zip(live, best, strict=True):
                    answers[i].append(kept)
                bar.advance(1)
    return answers


def context(c: Conversation, answers: Sequence[Sample], turn: int) -> Prompt:
    """The dialogue so far, the instruction at every user turn."""
    spoken: list[Turn] = []
    for user, answer in zip(c.user_turns[:turn], answers, strict=True):
        spoken += [Turn("user", user), Turn("assistant", answer.text or ".")]
    spoken.append(Turn("user", c.user_turns[turn]))
    return Prompt(f"{c.id}/{turn}", spread(c.instruction, spoken), c.source, is_safety=c.is_safety[turn])


def sampling(job: Job) -> Sampling:
    """K answers a turn."""
    return Sampling(job.config.samples_per_turn, job.config.temperature, job.config.max_new_tokens)


def judged_row(tokenizer, s: Sample, judged: str) -> Sequence[int]:
    """What the reward models read: the dialogue, or the last turn alone, which carries the instruction itself."""
    if judged == "dialogue":
        return s.row
    turns = s.prompt.turns
    system = turns[:1] if turns[0].role == "system" else ()
    return (*encode_prompt(tokenizer, (*system, turns[-1])), *s.completion.token_ids)
