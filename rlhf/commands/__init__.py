"""The table of commands. Each is a module of this package with a `main(request)`, imported when it is called."""

from __future__ import annotations

from rlhf.commands.request import Command

AGAIN = {
    "--rerun": "make the steps again even if nothing changed",
    "--reuse": "keep steps that only the code has changed for",
}

EXPORT = {
    "policy": "a step of the run, or a folder                     [the newest]",
    "to": "folder to write                          [runs/RUN/export/POLICY]",
}

COMMANDS = (
    Command(
        "run",
        "make every step that is missing or stale, skip the others, and write the report",
        "A step is skipped when its settings, inputs and code are what they were; else the reason is said.",
        ("rlhf run", "rlhf run stage=ppo ppo.kl_coef=0.005", "rlhf run stage=rejection-2 --rerun"),
        flags={
            **AGAIN,
            "--strict": "stop at a damaged save instead of going back to the one before",
            "--locked": "stop where this machine or the data are not as rlhf.lock of the run says",
        },
        options={"launch": "on several processes: a name in configs/accelerate/ or a file of accelerate's"},
    ),
    Command(
        "plan",
        "say what `run` would do, and why, and what it would cost; touch nothing",
        "A step is listed with what `run` would do if given the same arguments; below, each stage with the bytes\n"
        "on one GPU at its fullest moment, its tokens and operations; with gpu_memory=, what fits or what would help.",
        ("rlhf plan", "rlhf plan config=llama2-7b gpus=8 gpu_memory=80GB tflops=312"),
        flags=AGAIN,
        options={
            "launch": "ddp, fsdp, zero2, zero3 on GPUs; cpu, cpu-fsdp, cpu-zero2, cpu-zero3      [ddp]",
            "gpus": "how many; on CPUs, processes                                      [1]",
            "gpu_memory": "of each, such as 80GB",
            "tflops": "peak of each, for the time",
            "mfu": "share of that peak that is reached                              [0.4]",
            "prompt_tokens": "mean length of a prompt                                [512]",
            "longest_pair": "tokens of the longest pair              [the whole context]",
            "rows": "of each data set without a limit                              [30000]",
        },
    ),
    Command(
        "launch",
        "write the script that starts a run on other machines, by Slurm or by hand",
        "It submits nothing. Asked to stop (exit code 75), a Slurm job goes back to the queue.",
        ("rlhf launch slurm nodes=2 gpus=8 config=llama2-7b", "rlhf launch accelerate config=llama2-7b --dry-run"),
        flags={"--dry-run": "print it instead"},
        options={
            "launch": "ddp: models whole on every GPU; fsdp, zero2, zero3: what is trained in parts",
            "nodes": "machines                                                  [1]",
            "gpus": "of each                                                    [8]",
            "to": "file to write                     [RUN.slurm, or RUN.sh]",
        },
        words={"slurm": "a job for sbatch", "accelerate": "a script to start on every machine"},
    ),
    Command(
        "show",
        "print every setting, its value, and where the value came from",
        "The value is printed as you would type it. With stage=NAME, only the settings of that section.",
        ("rlhf show", "rlhf show stage=ppo config=llama2-70b"),
    ),
    Command(
        "status",
        "say which artefacts of a run are done, stale or missing",
        "Stale means that `run` with the same arguments would make the step again.",
        ("rlhf status", "rlhf status run=tiny-2"),
    ),
    Command(
        "reproduce",
        "make a finished run again in a new folder, and compare bit by bit",
        "Settings are those of its manifests, threads those of its rlhf.lock. What differs is named, file by file.",
        ("rlhf reproduce tiny", "rlhf reproduce FOLDER into=tiny-again"),
        options={"into": "folder of the copy [RUN-again]", "runs_dir": "folder of all runs"},
        words={"*": "the run: its name, or its folder"},
    ),
    Command(
        "report",
        "write report.json and report.html of a run again",
        "It is also written at the end of every run that made something. run=A,B adds a page that compares them.",
        ("rlhf report", "rlhf report run=tiny,tiny-2", "rlhf report format=markdown"),
        options={"format": "terminal, or markdown: how the table is printed"},
    ),
    Command(
        "chat",
        "talk to policies side by side, with both reward scores under each answer",
        "Without a terminal, questions are read from the standard input. Lines of one letter are commands: s saves.",
        ("rlhf chat", "rlhf chat policy=sft,ppo temperature=0.7 system='always answer in german'", "rlhf chat --web"),
        flags={"--web": "in a page on this machine only (needs the extra: pip install 'rlhf[web]')"},
        options={
            "policy": "steps of the run, or folders, separated by commas      [the newest]",
            "system": "an instruction that stands before the conversation",
            "temperature": "0 is greedy                              [evaluate.temperature]",
            "max_new_tokens": "longest answer in tokens              [evaluate.max_new_tokens]",
            "save": "where `s` adds preferred answers         [runs/RUN/chat.jsonl]",
            "port": "of the page                                              [8080]",
        },
    ),
    Command(
        "export",
        "write a policy as a folder for transformers, vLLM and TGI, with a model card",
        "The folder holds safetensors, tokenizer, template and generation config; `rlhf check parity` compares it.",
        ("rlhf export", "rlhf export policy=sft to=models/sft"),
        options=EXPORT,
    ),
    Command(
        "push",
        "export a policy and upload it to the hub; nothing else ever uploads",
        "Needs `hf auth login`. The repository is private unless --public is given.",
        ("rlhf push repo=me/my-model", "rlhf push repo=me/my-model policy=sft --public"),
        flags={"--public": "let everyone read it"},
        options=EXPORT | {"repo": "OWNER/NAME on the hub"},
    ),
    Command(
        "annotate",
        "export pairs for people to rate, and import their ratings",
        "For preferences.annotator=file. Pairs are blind and in a drawn order; stage=preferences-2 names a round.",
        ("rlhf annotate export pairs.csv", "rlhf annotate import pairs.csv"),
        words={
            "export": "FILE: a .csv or .jsonl to fill in",
            "import": "FILE: the same, filled in; every cell is checked",
        },
    ),
    Command(
        "check",
        "check the data of a recipe before training, or an export against what was trained",
        "Data: with stage=NAME, only what that stage reads; problems that would stop a stage give exit code 65.\n"
        "An export: exit code 1 if anything differs.",
        ("rlhf check data", "rlhf check data stage=reward config=hh", "rlhf check parity policy=sft path=models/sft"),
        words={
            "data": "rows, repeats, leaks between training and tests, and which tokens would bear loss",
            "parity": "ids, logits and greedy answers of an export, token by token, against the trained policy",
        },
        options={
            "policy": EXPORT["policy"],
            "path": "the exported folder                      [runs/RUN/export/POLICY]",
        },
    ),
    Command(
        "samples",
        "print the same prompts as every version answers them, with both scores and what changed",
        "Changes are marked as git marks words: [-gone-] {+new+}; = is the same answer as before.",
        ("rlhf samples", "rlhf samples run=tiny-2 show=3"),
        options={"show": "how many prompts                                      [6]"},
    ),
    Command(
        "doctor",
        "look for what is wrong: with a run, with this machine, with secrets in a run's files",
        "Exit code 1 if something was found.",
        ("rlhf doctor run", "rlhf doctor env", "rlhf doctor secrets run=tiny-2"),
        words={
            "run": "damaged artefacts, and metrics that point to trouble, each with its cure",
            "env": "versions, cores, memory, disk, accounts",
            "secrets": "places in a run's text files that look like a token or key",
        },
    ),
    Command(
        "diff",
        "print the settings in which two recipes or runs differ",
        "A and B are names in configs/, files, or folders of runs.",
        ("rlhf diff tiny hh", "rlhf diff runs/tiny runs/tiny-2"),
        words={"*": "A and B"},
    ),
    Command(
        "sync",
        "send to W&B what a run wrote while offline",
        "Every step is a run of its own there, in the group of the run's name; sent twice, it is still one.",
        ("rlhf sync", "rlhf sync dashboard=my-team"),
        options={"dashboard": "save a dashboard of the report's charts for this account too"},
    ),
    Command(
        "metrics",
        "explain the names in metrics.jsonl: what each means, and what is healthy",
        "Without a name, all of them.",
        ("rlhf metrics", "rlhf metrics gen/eos_rate"),
        words={"": "", "*": "names of metrics"},
    ),
    Command(
        "audit",
        "prove from the ledger that every sample was trained on as often as planned",
        "Exit code 1 if it was not.",
        ("rlhf audit", "rlhf audit stage=sft"),
    ),
    Command(
        "replay",
        "run a step again into the number that was not finite",
        "Goes on from the save in the bundle. Exit code 76 if it is met again, 0 if the step gets past it now.",
        ("rlhf replay runs/tiny/bundles/ppo",),
        words={"*": "the folder of a bundle"},
    ),
)
