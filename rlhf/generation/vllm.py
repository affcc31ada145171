"""vLLM as an engine: a server, or in this process. The one door to vllm.

Both sample from the artefact's weights, which are loaded anew for every checkpoint; an adapter (LoRA) is loaded onto
its base. The seed of a sample is a function of (seed, prompt key, k), but vLLM's arithmetic depends on the batch: its
samples repeat only as far as its batches do. Log-probabilities must be those of the distribution sampled from,
temperature and top-p included, which vLLM calls `processed_logprobs`; a server that gives others is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any

from rlhf.errors import ConfigError, MissingError, RlhfError
from rlhf.generation.protocol import Completion, Engine, Request, Sampling
from rlhf.models.adapters import is_adapter
from rlhf.models.load import weights_of
from rlhf.schema import GenerationConfig, ModelConfig

AT_ONCE = 64
"""Requests under way: the server batches what it has at a time."""
PATIENCE = 600.0
"""Seconds that one request may take."""


def open_vllm(generation: GenerationConfig, checkpoint: Path, model: ModelConfig) -> Engine:
    """An engine that samples from this checkpoint.

    Raises:
        ConfigError: without the extra where vLLM is to run in this process, or if the server cannot do what is needed.
        MissingError: if no server answers.
    """
    if generation.server is None:
        return Colocated.open(checkpoint, model, memory_share=generation.memory_share)
    return Server.open(generation.server, checkpoint)


def sample_seed(seed: int, key: str) -> int:
    """The seed of a prompt's first sample; vLLM counts up from it for the others."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:4], "little") & 0x7FFF_FFFF


# --- a server ---


@dataclass(frozen=True)
class Server:
    """A vLLM server's completions, the interface that OpenAI's has: token ids in, token ids out."""

    address: str
    model: str
    context: int
    decoder: str = "vllm"

    @classmethod
    def open(cls, address: str, checkpoint: Path) -> Server:
        """Load the checkpoint into the server, and make sure that its log-probabilities are the sampler's."""
        address = address.rstrip("/")
        folder = str(checkpoint.resolve())
        weights, _ = weights_of(checkpoint)
        if is_adapter(checkpoint):
            check_base(address, weights)
            name = f"adapter-{hashlib.sha256(folder.encode()).hexdigest()[:12]}"
            call(address, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder, "load_inplace": True})
        else:
            call(address, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": weights}})
            name = served(address)[0]["id"]
        call(address, "/reset_prefix_cache", {})  # keys and values of the weights before
        context = next((card["max_model_len"] for card in served(address) if card.get("max_model_len")), None)
        if context is None:
            raise ConfigError(
                f"the server at {address} does not say how long its context is", where="generation.server"
            )
        server = cls(address, name, context)
        server.check_logprobs()
        return server

    def generate(self, request: Request) -> list[list[Completion]]:
        k = request.sampling.samples_per_prompt

        def ask(i: int) -> list[Completion]:
            body = body_of(self.model, request.part([i]))
            choices = sorted(call(self.address, "/v1/completions", body)["choices"], key=lambda c: int(c["index"]))
            if len(choices) != k:
                raise RlhfError(f"{self.address} gave {len(choices)} answers of {k}")
            return [completion_of(choice, self.address) for choice in choices]

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(ask, range(len(request.prompts))))

    def check_logprobs(self) -> None:
        """ConfigError if log-probabilities do not change with the temperature: they are not those sampled from.

        A token that comes at temperature 1 is forced, by its seed, at no other; so the likeliest one is asked about.
        """
        found = []
        for temperature in (1.0, 4.0):
            asked = Request([[0, 1]], ["probe"], Sampling(1, temperature, 1), seed=0, eos_token_id=0)
            (choice,) = call(self.address, "/v1/completions", body_of(self.model, asked) | {"logprobs": 1})["choices"]
            found.append(max((choice["logprobs"]["top_logprobs"] or [{}])[0].values(), default=math.nan))
        if math.isnan(found[0]) or abs(found[0] - found[1]) < 1e-6:
            raise ConfigError(
                f"the server at {self.address} gives log-probabilities before temperature, and those sampled from are"
                " needed",
                where="generation.server",
                hints=["start it with --logprobs-mode processed_logprobs"],
            )


def check_base(address: str, trained_on: str) -> None:
    """ConfigError unless the server was started with the weights that an adapter was trained on.

    A base of the same shape would take the adapter, too, and sample from another policy without a word.
    """
    base = str(served(address)[0].get("root"))
    if Path(base).resolve() != Path(trained_on).resolve():
        raise ConfigError(
            f"the server at {address} has the weights of {base}, and the adapter was trained on {trained_on}",
            where="generation.server",
            hints=[f"start it with them: vllm serve {trained_on} --enable-lora --logprobs-mode processed_logprobs"],
        )


def body_of(model: str, request: Request) -> dict[str, Any]:
    """A request for one prompt's answers as the server reads it; `return_token_ids` is vLLM's."""
    (prompt,), (key,), sampling = request.prompts, request.keys, request.sampling
    return {
        "model": model,
        "prompt": list(prompt),
        "n": sampling.samples_per_prompt,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": sample_seed(request.seed, key),
        "logprobs": 0,
        "return_token_ids": True,
        "add_special_tokens": False,
        "stop_token_ids": [request.eos_token_id],
    }


def completion_of(choice: Mapping[str, Any], address: str) -> Completion:
    """One choice of the answer, whose EOS is among its tokens."""
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if ids is None or logprobs is None or len(ids) != len(logprobs) or None in logprobs:
        raise ConfigError(
            f"the server at {address} does not give the ids and log-probabilities of its answers",
            where="generation.server",
            hints=["it must be vLLM 0.11 or newer"],
        )
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise RlhfError(f"{address} ended an answer for the reason {reason!r}")
    return Completion(tuple(ids), tuple(logprobs), reason)


def served(address: str) -> list[dict[str, Any]]:
    """The models that the server has, adapters included."""
    return list(call(address, "/v1/models", None)["data"])


def call(address: str, path: str, body: Mapping[str, Any] | None) -> Any:
    """POST a body as JSON, or GET without one; what the server answers.

    Raises:
        MissingError: if nobody answers there.
        ConfigError: if the server refuses.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[:200]
        hints = {
            "/collective_rpc": ["start it with VLLM_SERVER_DEV_MODE=1, without which it loads no other weights"],
            "/reset_prefix_cache": ["start it with VLLM_SERVER_DEV_MODE=1"],
            "/v1/load_lora_adapter": ["start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"],
        }.get(path, [])
        what = f"{address}{path} answered {error.code}: {said}"
        raise ConfigError(what, where="generation.server", hints=hints) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        raise MissingError(
            f"no vLLM server answers at {address}: {getattr(error, 'reason', error)}",
            where="generation.server",
            hints=["start one: vllm serve MODEL --logprobs-mode processed_logprobs"],
        ) from None
    try:
        return json.loads(text) if text.startswith(("{", "[")) else None
    except ValueError:
        raise RlhfError(f"{address}{path} answered what is not JSON: {text[:80]!r}") from None


# --- in this process ---


@dataclass(frozen=True)
class Colocated:
    """vLLM in this process, which keeps the engine and changes its weights from checkpoint to checkpoint."""

    llm: Any
    adapter: Any
    context: int
    decoder: str = "vllm"

    @classmethod
    def open(cls, checkpoint: Path, model: ModelConfig, *, memory_share: float) -> Colocated:
        if util.find_spec("vllm") is None:
            raise ConfigError(
                "generation.engine is vllm, which is not installed",
                where="generation.engine",
                hints=["pip install 'rlhf[vllm]'", "or a server elsewhere: generation.server=http://HOST:8000"],
            )
        folder = str(checkpoint.resolve())
        adapter = None
        weights, _ = weights_of(checkpoint)
        if is_adapter(checkpoint):
            number = int(hashlib.sha256(folder.encode()).hexdigest()[:7], 16) + 1
            adapter = import_module("vllm.lora.request").LoRARequest(f"adapter-{number}", number, folder)
        llm = resident(weights, model, lora=adapter is not None, memory_share=memory_share)
        return cls(llm, adapter, model.max_length)

    def generate(self, request: Request) -> list[list[Completion]]:
        make, sampling = import_module("vllm").SamplingParams, request.sampling
        asked = [
            make(
                n=sampling.samples_per_prompt,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=sample_seed(request.seed, key),
                logprobs=0,
                stop_token_ids=[request.eos_token_id],
                detokenize=False,
            )
            for key in request.keys
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in request.prompts]
        found = self.llm.generate(inputs, asked, use_tqdm=False, lora_request=self.adapter) if inputs else []
        return [[said(output) for output in sorted(answer.outputs, key=lambda o: o.index)] for answer in found]


def said(output: Any) -> Completion:
    """One of vLLM's outputs: for each token a table of log-probabilities in which it stands."""
    logprobs = tuple(table[token].logprob for token, table in zip(output.token_ids, output.logprobs, strict=True))
    return Completion(tuple(output.token_ids), logprobs, output.finish_reason)


_engines: dict[tuple[Any, ...], tuple[Any, str]] = {}


def resident(weights: str, model: ModelConfig, *, lora: bool, memory_share: float) -> Any:
    """The engine of this process, with these weights: a second one would not fit beside it."""
    kind = (model.dtype, model.max_length, lora, memory_share)
    if kind in _engines:
        llm, loaded = _engines[kind]
        if loaded != weights:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": weights})
            llm.reset_prefix_cache()  # keys and values of the weights before
    else:
        llm = import_module("vllm").LLM(
            model=weights,
            dtype=model.dtype,
            max_model_len=model.max_length,
            gpu_memory_utilization=memory_share,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            enable_lora=lora,
        )
    _engines[kind] = (llm, weights)
    return llm
