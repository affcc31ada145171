"""The recipe, in order: each stage, what it reads, what it makes. Start reading here.

`reads` names artefacts: `policy` is the newest policy made before the step, `policies` all of them, `reward` the
newest reward models, `rejection*` every round so far; `data` says what the setting of that name gives. Stages with
`per_round` repeat: preferences-1, reward-1, rejection-1, preferences-2, ... Each job lives in the file of its name and
has one signature, `run(job)`.
"""

from rlhf.pipeline import Stage

PIPELINE = (
    Stage(
        "base",
        "a pretrained model: a given checkpoint, or a small Llama from scratch (2.2)",
        data="running text",
        models=1,
        learners=1,
    ),
    Stage(
        "sft",
        "supervised fine-tuning on demonstrations (3.1)",
        reads=("base",),
        data="demonstrations",
        models=1,
        learners=1,
    ),
    Stage(
        "preferences",
        "two answers a prompt, rated (3.2.1)",
        reads=("policies",),
        per_round=True,
        data="prompts with annotators",
        microworld_only=True,
    ),
    Stage(
        "reward",
        "helpfulness and safety models (3.2.2)",
        reads=("policy", "preferences*"),
        per_round=True,
        data="pairs",
        models=2,
        learners=1,
    ),
    Stage(
        "rejection",
        "best of K over all rounds, fine-tuned on (3.2.3)",
        reads=("base", "sft", "policy", "reward", "rejection*"),
        per_round=True,
        data="prompts",
        models=1,
        learners=1,
    ),
    Stage(
        "distill",
        "safety context distillation (4.2.4)",
        reads=("policy", "reward"),
        data="prompts",
        models=1,
        learners=1,
    ),
    Stage(
        "gatt",
        "Ghost Attention: instructions that last (3.3)",
        reads=("policy", "reward"),
        data="dialogues of several turns",
        models=1,
        learners=1,
    ),
    Stage(
        "ppo",
        "PPO on the piecewise reward (3.2.3)",
        reads=("policy", "reward"),
        data="prompts",
        models=1,
        learners=2,
    ),
    Stage(
        "scaling",
        "safety data scaling: how much safety data does what (4.2.3)",
        reads=("base", "reward", "rejection*"),
        data="prompts",
        learners=1,  # and a model is left for each of `scaling.shares`
    ),
    Stage(
        "evaluate",
        "every policy on held-out prompts (3.4, 4)",
        reads=("policies", "reward*", "preferences*"),
        data="prompts",
    ),
)
