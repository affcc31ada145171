"""Every setting of the recipe: its type, its default, and where that default comes from.

A default is the paper's value and names its section, or it is ours and says why. `rlhf show` prints both.
Models are frozen and refuse unknown keys; checks that need two settings at once live beside them.
Torch-free, so that help, plan and typos answer at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

STAGES = ("base", "sft", "preferences", "reward", "rejection", "gatt", "ppo", "evaluate")
MICROWORLD = "microworld"
KINDS = ("safe", "border", "unsafe")
"""What a prompt of the micro-world can be."""


class Section(BaseModel):
    """A group of settings: frozen, and an unknown key is an error rather than a new key."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def paper(default: Any, section: str, text: str, **limits: Any) -> Any:
    """A setting whose default is printed in the paper."""
    return Field(default, description=text, json_schema_extra={"source": f"paper {section}"}, **limits)


def ours(default: Any, text: str, why: str = "the paper is silent", **limits: Any) -> Any:
    """A setting whose default is our choice, with the reason."""
    return Field(default, description=text, json_schema_extra={"source": f"ours: {why}"}, **limits)


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


class Source(Section):
    """A set of data: a name listed in data/sources.yaml, or the embedded `microworld`."""

    name: str = ours(..., "a key of data/sources.yaml, or microworld", "no honest default")
    path: str | None = ours(None, "a local file or folder to read instead of the hub", "the hub is the usual place")
    split: str = ours("train", "split of the set", "the usual name")
    limit: Positive | None = ours(None, "read this many rows", "all of them")
    kind: Literal["helpfulness", "safety"] = ours("helpfulness", "which reward model's domain", "the larger one")
    on_bad_row: Literal["error", "drop"] = ours("error", "malformed rows stop the stage, or are dropped and counted")


class AdamW(Section):
    """The optimizer of every fine-tune: 'the same optimizer parameters as for the base model' (2.2, 3.2.2)."""

    beta1: Share = paper(0.9, "2.2", "AdamW beta1")
    beta2: Share = paper(0.95, "2.2", "AdamW beta2")
    eps: Rate = paper(1e-5, "2.2", "AdamW epsilon")
    weight_decay: float = paper(0.1, "2.2", "AdamW weight decay", ge=0)
    max_grad_norm: Rate = paper(1.0, "2.2", "gradients are clipped to this norm")
    microbatch_size: Positive | None = ours(None, "rows per forward on one device", "memory only, no effect on numbers")

    @model_validator(mode="after")
    def _microbatches(self) -> Self:
        name = "minibatch_size" if hasattr(self, "minibatch_size") else "batch_size"
        rows = getattr(self, name, None)
        if rows and self.microbatch_size and rows % self.microbatch_size:
            raise ValueError(f"{name} ({rows}) must be a multiple of microbatch_size ({self.microbatch_size})")
        return self


class FineTune(AdamW):
    """Supervised fine-tuning, shared by sft, rejection and gatt ('similar to SFT', 3.2.3)."""

    epochs: Positive = paper(2, "3.1", "passes over the rows")
    learning_rate: Rate = paper(2e-5, "3.1", "initial learning rate, cosine schedule")
    batch_size: Positive = paper(64, "3.1", "packed rows per step, over all devices")
    final_lr_ratio: Share = ours(0.0, "cosine ends at this share of the learning rate")
    warmup_ratio: Share = ours(0.03, "share of the steps that warm up", "as for the reward models (3.2.2)")
    row_length: Positive | None = ours(None, "tokens per packed row", "model.max_length: rows are filled (3.1)")


class ModelConfig(Section):
    """The language model every stage starts from."""

    path: str | None = ours(None, "hub id or folder; none: train a small Llama from scratch", "no honest default")
    revision: str | None = ours(None, "commit of a hub model", "newest")
    dtype: Literal["float32", "bfloat16"] = ours(
        "float32", "dtype of weights and forwards", "bfloat16 rounds steps of the paper's learning rates away"
    )
    max_length: Positive = paper(4096, "2.2", "context length in tokens")
    gradient_checkpointing: bool = ours(False, "recompute activations in the backward pass", "memory only")
    vocab_size: int = ours(  # 256 bytes and the 8 tokens of the chat format have to fit
        512, "from scratch: byte-pair tokens", "about one token a word in the micro-world", ge=264
    )
    hidden_size: Positive = ours(128, "from scratch: width", "minutes on two cores")
    intermediate_size: Positive = ours(352, "from scratch: SwiGLU width", "8/3 of the width, as in Llama")
    layers: Positive = ours(3, "from scratch: decoder layers", "minutes on two cores")
    heads: Positive = ours(4, "from scratch: attention heads", "width 32 a head")
    kv_heads: Positive = ours(2, "from scratch: key and value heads", "grouped-query attention, as in 2.2")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of heads ({self.heads}),"
                f" and heads of kv_heads ({self.kv_heads})"
            )
        return self


class MicroworldConfig(Section):
    """What the embedded world asks for; without effect on recipes that bring their own data."""

    instruction_share: Share = ours(0.4, "share of prompts with an instruction", "enough to learn to follow them")
    helpfulness_mix: dict[str, float] = ours(
        {"safe": 0.64, "border": 0.20, "unsafe": 0.16}, "kinds of helpfulness prompts", "mostly ordinary ones"
    )
    safety_mix: dict[str, float] = ours(
        {"safe": 0.20, "border": 0.25, "unsafe": 0.55}, "kinds of safety prompts", "mostly adversarial ones (3.2.1)"
    )

    @field_validator("helpfulness_mix", "safety_mix")
    @classmethod
    def _shares(cls, mix: dict[str, float]) -> dict[str, float]:
        """A kind that is not mentioned has no share."""
        if unknown := sorted(set(mix) - set(KINDS)):
            raise ValueError(f"there is no kind {', '.join(unknown)}; the kinds of prompts are {', '.join(KINDS)}")
        if min(mix.values(), default=0.0) < 0 or not sum(mix.values()) > 0:
            raise ValueError(
                f"shares must be 0 or more and not all 0 (got {', '.join(f'{k}: {mix[k]:g}' for k in mix)})"
            )
        return {kind: mix.get(kind, 0.0) for kind in KINDS}


class BaseConfig(AdamW):
    """Pretraining from scratch (2.2); without effect when model.path names a checkpoint."""

    data: tuple[Source, ...] = ours((), "running text", "no honest default")
    words: Positive = ours(525_000, "words of text the micro-world writes", "what its facts need")
    steps: Positive = ours(1200, "optimizer steps at `row_length`", "enough for the micro-world's facts")
    row_length: Positive = ours(128, "tokens per row", "short rows learn facts first, long ones then extend")
    batch_size: Positive = ours(8, "rows per step", "1,024 tokens a step")
    extension_steps: Count = ours(80, "steps at `extension_length` after that", "so that long dialogues are known")
    extension_length: Positive = ours(512, "tokens per row then", "twenty turns of the micro-world")
    extension_batch_size: Positive = ours(3, "rows per step then", "about as many tokens a step")
    learning_rate: Rate = paper(3e-4, "2.2", "peak learning rate (7B and 13B)")
    warmup_steps: Count = paper(2000, "2.2", "steps that warm up")
    final_lr_ratio: Share = paper(0.1, "2.2", "cosine ends at this share of the learning rate")

    @model_validator(mode="after")
    def _extension_microbatches(self) -> Self:
        rows, part = self.extension_batch_size, self.microbatch_size
        if self.extension_steps and part and rows % part:
            raise ValueError(f"extension_batch_size ({rows}) must be a multiple of microbatch_size ({part})")
        return self


class SFTConfig(FineTune):
    """Supervised fine-tuning on demonstrations (3.1)."""

    data: tuple[Source, ...] = ours((), "demonstrations", "no honest default")


class PreferencesConfig(Section):
    """Two answers a prompt by different variants and temperatures, rated on four levels (3.2.1)."""

    data: tuple[Source, ...] = ours((), "prompts", "no honest default")
    helpfulness_prompts: Positive = ours(4000, "prompts of the helpfulness annotators, a round")
    safety_prompts: Positive = ours(2800, "prompts of the safety annotators, a round")
    test_prompts: Positive = paper(1000, "3.2.1", "prompts held out for testing, a round and domain")
    temperatures: tuple[Rate, ...] = ours(
        (0.7, 1.0, 1.3), "drawn per answer", "'varying the temperature' (3.2.1)", min_length=1
    )
    max_new_tokens: Positive = ours(512, "longest answer in tokens")


class RewardConfig(AdamW):
    """Helpfulness and safety reward models (3.2.2)."""

    data: tuple[Source, ...] = ours((), "public preference sets, beside the pairs of earlier stages", "none")
    test_share: Share = ours(
        0.1, "share of the prompts of public sets held out for testing", "they hold no batch of 1000"
    )
    margin: Literal["none", "small", "large"] = ours("small", "margin by rating (Table 27)", "best average in Table 28")
    unrated_margin: float = ours(0.0, "margin of pairs without a rating", "no claim about how different they are", ge=0)
    safety_loss_coef: float = ours(1.0, "weight of the safety auxiliary loss (Table 29)", ge=0)
    center_coef: float = ours(0.01, "weight of (r_chosen + r_rejected)^2: keeps scores around 0", ge=0)
    helpfulness_share: Rate = ours(0.5, "helpfulness model: share of helpfulness pairs", "our reading of 3.2.2", le=1)
    safety_share: Rate = paper(0.9, "3.2.2", "safety model: share of safety pairs, the rest helpfulness", le=1)
    epochs: Positive = paper(1, "3.2.2", "passes over the pairs; longer 'can lead to over-fitting'")
    learning_rate: Rate = paper(1e-5, "3.2.2", "maximum learning rate; the paper uses 5e-6 at 70B")
    final_lr_ratio: Share = paper(0.1, "3.2.2", "cosine ends at this share of the learning rate")
    warmup_ratio: Share = paper(0.03, "3.2.2", "share of the steps that warm up")
    warmup_min_steps: Count = paper(5, "3.2.2", "and at least this many")
    batch_size: Positive = paper(512, "3.2.2", "pairs per step, over all devices")


class Combine(Section):
    """How two scores become one (3.2.3)."""

    safety_threshold: float = paper(0.15, "3.2.3", "below this probability the safety model decides", gt=0, lt=1)


class RejectionConfig(FineTune, Combine):
    """Rejection-sampling fine-tuning (3.2.3)."""

    data: tuple[Source, ...] = ours((), "prompts", "no honest default")
    prompts: Positive = ours(10_000, "prompts a round")
    samples_per_prompt: Positive = ours(20, "K answers a prompt", "Fig 26 samples 20; the paper gives no K")
    temperatures: tuple[Rate, ...] = ours(
        (1.0, 1.2), "tried every round; it samples at the lowest that is as good as the best", "Fig 8", min_length=1
    )
    temperature_prompts: Positive = ours(200, "held-out prompts of that trial")
    max_new_tokens: Positive = ours(512, "longest answer in tokens")
    pool: Literal["all", "last"] = paper("all", "3.2.3", "top samples of all rounds, or of the last one only (V3)")
    start: Literal["base", "policy"] = paper("base", "3.2.3", "'always starting from the base model'")
    sft_share: Share = ours(0.1, "share of the training rows drawn from the demonstrations", "keeps their breadth")


class GAttConfig(FineTune, Combine):
    """Ghost Attention (3.3)."""

    data: tuple[Source, ...] = ours((), "multi-turn conversations", "no honest default")
    dialogues: Positive = ours(1000, "conversations to make")
    cuts: Positive = ours(3, "training rows a conversation: it ends at so many random turns", "sampling costs most")
    min_turns: Positive = ours(2, "user turns of the shortest")
    max_turns: Positive = ours(20, "user turns of the longest", "consistent 'up to 20+ turns' (3.3)")
    samples_per_turn: Positive = ours(4, "answers sampled a turn, the best by reward is kept", "'analogous to RS'")
    temperature: Rate = ours(1.0, "of those samples")
    judged: Literal["dialogue", "turn"] = ours("dialogue", "reward models see all turns, or the last", "as in 3.2.2")
    short_share: Share = paper(0.5, "A.3.5", "share of instructions made less verbose")
    replay_share: Share = ours(
        0.5, "share of the rows that are the policy's own single answers", "keeps what it knew", lt=1
    )
    max_new_tokens: Positive = ours(512, "longest answer in tokens")

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min_turns > self.max_turns:
            raise ValueError(f"min_turns ({self.min_turns}) is more than max_turns ({self.max_turns})")
        return self


class PPOConfig(AdamW, Combine):
    """PPO on the piecewise reward (3.2.3)."""

    data: tuple[Source, ...] = ours((), "prompts", "no honest default")
    iterations: Positive = paper(400, "3.2.3", "most iterations (200 to 400), with early stopping")
    batch_size: Positive = paper(512, "3.2.3", "prompts per iteration, over all devices")
    minibatch_size: Positive = paper(64, "3.2.3", "rows per gradient step, over all devices")
    learning_rate: Rate = paper(1e-6, "3.2.3", "constant")
    clip_range: Rate = paper(0.2, "3.2.3", "PPO ratio clip")
    kl_coef: float = paper(0.01, "3.2.3", "beta in eq. 4: 0.01 for 7B and 13B, 0.005 for 34B and 70B", ge=0)
    kl_estimator: Literal["k1", "k2", "k3"] = ours("k1", "per-token KL estimate in the reward", "unbiased")
    gamma: Share = ours(1.0, "discount per token", "episodes are short")
    gae_lambda: Share = ours(0.95, "GAE's lambda", "the field's usual value")
    value_clip_range: Rate = ours(0.2, "clip of the critic's move", "as the policy's")
    critic_learning_rate: Rate = ours(1e-6, "constant", "as the policy's")
    critic_warmup: Count = ours(0, "iterations in which only the critic learns", "0 unless its head is new and fast")
    temperature: Rate = ours(1.0, "of the rollouts", "so that sampling and training see one distribution")
    max_new_tokens: Positive = ours(512, "longest answer in tokens")
    missing_eos_score: float | None = ours(None, "score of an answer that never ended", "none: what the models say")
    heldout_prompts: Positive = ours(256, "prompts of the early-stopping check (3.2.3)")
    heldout_every: Positive = ours(20, "iterations between checks")
    patience: Positive = ours(3, "checks without a better held-out reward before it stops")
    max_kl: Rate = ours(10.0, "nats an answer: above it the run stops", "held-out reward can be hacked, KL cannot")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.minibatch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of minibatch_size ({self.minibatch_size})"
            )
        return self


class EvaluateConfig(Combine):
    """What is measured on every policy, always on held-out prompts (3.4, 4)."""

    data: tuple[Source, ...] = ours((), "prompts", "no honest default")
    prompts: int = ours(400, "prompts: a quarter each ordinary, instructed, borderline, unsafe", ge=4)
    temperature: Rate = ours(1.0, "of the measured answers", "what was trained")
    max_new_tokens: Positive = ours(512, "longest answer in tokens")
    best_of_prompts: int = ours(64, "prompts of the max-of-N curves, half borderline (Fig 7, Fig 8)", ge=2)
    best_of_samples: Positive = ours(16, "N of those curves")
    temperatures: tuple[Rate, ...] = ours((0.6, 1.0, 1.4), "of the temperature curves (Fig 8)", min_length=1)
    dialogues: Positive = ours(48, "conversations of the multi-turn test (Table 30)")
    turns: tuple[Positive, ...] = paper(
        (2, 4, 6, 20), "A.3.5", "user turns at which the instruction is checked", min_length=1
    )
    samples: Positive = ours(12, "prompts shown in the report across all policies")


class Recipe(Section):
    """One run: which stages, how many rounds, and the settings of each."""

    run: str = ours("run", "folder under runs/", "the config file's name", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: Count = ours(0, "every random number derives from it and the step's name", "any will do")
    rounds: Positive = paper(5, "3.2.3", "RLHF-V1 to V5: preferences, reward models and rejection sampling, anew")
    stages: tuple[Literal[STAGES], ...] = ours(  # type: ignore[valid-type]
        STAGES, "stages of this recipe, in order", "the whole recipe", min_length=1
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = ours("auto", "online when logged in, offline otherwise")
    threads: Positive | None = ours(None, "CPU threads of torch", "all cores")
    model: ModelConfig = ModelConfig()
    microworld: MicroworldConfig = MicroworldConfig()
    base: BaseConfig = BaseConfig()
    sft: SFTConfig = SFTConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    reward: RewardConfig = RewardConfig()
    rejection: RejectionConfig = RejectionConfig()
    gatt: GAttConfig = GAttConfig()
    ppo: PPOConfig = PPOConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _fits_the_context(self) -> Self:
        """Of the stages that run: a prompt needs room before its answer, and no row is longer than the context."""
        limit = self.model.max_length
        for stage in self.stages:
            longest = getattr(getattr(self, stage), "max_new_tokens", 0)
            if longest >= limit:
                raise ValueError(f"{stage}.max_new_tokens ({longest}) must be less than model.max_length ({limit})")
        if "base" in self.stages and self.model.path is None:
            lengths = {"row_length": self.base.row_length}
            if self.base.extension_steps:
                lengths["extension_length"] = self.base.extension_length
            for name, length in lengths.items():
                if length > limit:
                    raise ValueError(f"base.{name} ({length}) must not be more than model.max_length ({limit})")
        return self
