"""vLLM behind the protocol: the requests it is sent, what is read from its answers, and what is refused.

The server here speaks as much of vLLM's interface as is used, and samples from a table of its own.
"""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import util
from types import SimpleNamespace

import pytest

from rlhf.errors import ConfigError, MissingError, RlhfError
from rlhf.generation import vllm
from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.vllm import Server, open_vllm
from rlhf.schema import GenerationConfig, ModelConfig

EOS = 1
LOGITS = {5: 2.0, 6: 1.0, EOS: 0.0}


def logprobs(temperature):
    total = math.log(sum(math.exp(x / temperature) for x in LOGITS.values()))
    return {token: x / temperature - total for token, x in LOGITS.items()}


class Fake(ThreadingHTTPServer):
    """What the server was told, and how it differs from what it should be."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls, self.processed, self.missing, self.change = [], True, (), lambda choice: choice
        self.adapters = []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def choices(self, body):
        """Sample k of a prompt: as many sixes as its seed and k say, then the EOS if there is room."""
        table = logprobs(body["temperature"] if self.processed else 1.0)
        for k in range(body["n"]):
            ids = [6] * ((body["seed"] + k) % 5) + [EOS]
            reason = "stop" if len(ids) <= body["max_tokens"] else "length"
            ids = ids[: body["max_tokens"]]
            said = {"token_logprobs": [table[t] for t in ids], "top_logprobs": [{"five": table[5], "said": table[6]}]}
            yield self.change({"index": k, "text": "", "token_ids": ids, "logprobs": said, "finish_reason": reason})


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        names = ["large", *self.server.adapters]
        cards = [{"id": name, "max_model_len": 64 if name == "large" else None, "root": name} for name in names]
        self.answer({"data": cards})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append((self.path, body))
        if self.path in self.server.missing:
            self.send_error(404)
        elif self.path == "/v1/completions":
            self.answer({"choices": list(self.server.choices(body))[::-1]})  # in no particular order
        elif self.path == "/v1/load_lora_adapter":
            self.server.adapters.append(body["lora_name"])
            self.answer("Success: LoRA adapter added successfully.")
        else:
            self.answer({"results": [None]})

    def answer(self, value):
        text = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake():
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    return tmp_path / "checkpoint"


def write_adapter(checkpoint, *, base):
    """As the artefacts of an adapted policy have it: its weights, and the name of what they stand on."""
    (checkpoint / "adapter_config.json").write_text("{}")
    (checkpoint / "source.json").write_text(json.dumps({"path": base, "revision": None}))


def sampled(engine, sampling, keys=("a", "b"), seed=0):
    prompts = [[9] * (i + 1) for i in range(len(keys))]
    return engine.generate(Request(prompts, keys, sampling, seed, eos_token_id=EOS))


def test_answers_are_read_with_the_logprobs_of_the_distribution_sampled_from(fake, checkpoint):
    engine = Server.open(fake.address, checkpoint)
    assert engine.context == 64
    groups = sampled(engine, Sampling(5, 2.0, 3))
    table = logprobs(2.0)  # worked: e^1, e^.5, 1 of their sum
    assert table[5] == pytest.approx(1 - math.log(math.e + math.exp(0.5) + 1))
    for group in groups:
        assert sorted(len(c.token_ids) for c in group) == [1, 2, 3, 3, 3]  # 0, 1, 2, 3 and 4 sixes, an EOS, cut at 3
        for completion in group:
            assert completion.logprobs == pytest.approx([table[token] for token in completion.token_ids])
            assert (completion.token_ids[-1] == EOS) == (completion.finish_reason == "stop")


def test_what_is_asked_for(fake, checkpoint):
    engine = Server.open(fake.address, checkpoint)
    fake.calls.clear()
    engine.generate(Request([[7, 8]], ["a"], Sampling(3, 1.5, 4, top_p=0.9), seed=3, eos_token_id=EOS))
    ((path, body),) = fake.calls
    assert path == "/v1/completions"
    seed = body.pop("seed")
    assert 0 <= seed < 2**31
    assert body == {
        "model": "large", "prompt": [7, 8], "n": 3, "temperature": 1.5, "top_p": 0.9, "max_tokens": 4, "logprobs": 0,
        "return_token_ids": True, "add_special_tokens": False, "stop_token_ids": [EOS],
    }  # fmt: skip


def test_a_sample_depends_on_seed_key_and_number_alone(fake, checkpoint):
    engine = Server.open(fake.address, checkpoint)
    two, one = sampled(engine, Sampling(4, 1.0, 8)), sampled(engine, Sampling(4, 1.0, 8), keys=("b",))
    assert [c.token_ids for c in one[0]] == [c.token_ids for c in two[1]]
    seeds = {
        (key, seed): body["seed"]
        for seed in (0, 1)
        for key in ("a", "b")
        if not fake.calls.clear() and sampled(engine, Sampling(1, 1.0, 2), keys=(key,), seed=seed)
        for _, body in fake.calls
    }
    assert len(set(seeds.values())) == 4


def test_weights_are_those_of_the_checkpoint(fake, checkpoint):
    Server.open(fake.address + "/", checkpoint)
    told = [(path, body) for path, body in fake.calls if path != "/v1/completions"]
    assert told == [
        ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(checkpoint.resolve())}}),
        ("/reset_prefix_cache", {}),  # or prompts would be read from the keys and values of the round before
    ]


def test_an_adapter_is_loaded_onto_its_base(fake, checkpoint):
    write_adapter(checkpoint, base="large")
    engine = Server.open(fake.address, checkpoint)
    path, body = fake.calls[0]
    assert (path, body["lora_path"]) == ("/v1/load_lora_adapter", str(checkpoint.resolve()))
    assert engine.model == body["lora_name"] == fake.adapters[0]
    fake.calls.clear()
    sampled(engine, Sampling(1, 1.0, 2), keys=("a",))
    assert fake.calls[0][1]["model"] == engine.model


def test_an_adapter_of_another_base_is_refused(fake, checkpoint):
    write_adapter(checkpoint, base="someone/larger")
    with pytest.raises(ConfigError, match="has the weights of large, and the adapter was trained on someone/larger"):
        Server.open(fake.address, checkpoint)
    assert not fake.adapters


def test_weights_that_were_given_are_those_the_checkpoint_names(fake, checkpoint):
    (checkpoint / "source.json").write_text(json.dumps({"path": "someone/model", "revision": None}))
    Server.open(fake.address, checkpoint)
    assert fake.calls[0][1]["kwargs"] == {"weights_path": "someone/model"}


def test_in_this_process_an_adapter_stands_on_the_base_beside_it_wherever_the_run_was_made(tmp_path, monkeypatch):
    made = {"adapter_config.json": {"base_model_name_or_path": "/elsewhere/base/checkpoint"}}
    made["source.json"] = {"path": "../../base/checkpoint", "revision": None}
    adapter, base = tmp_path / "sft" / "checkpoint", tmp_path / "base" / "checkpoint"
    for folder in (adapter, base):
        folder.mkdir(parents=True)
    for name, content in made.items():
        (adapter / name).write_text(json.dumps(content))
    engine = SimpleNamespace(LLM=lambda **options: options, LoRARequest=lambda *words: words)
    monkeypatch.setattr(vllm, "import_module", lambda name: engine)
    monkeypatch.setattr(vllm, "util", SimpleNamespace(find_spec=lambda name: engine))
    monkeypatch.setattr(vllm, "_engines", {})
    opened = open_vllm(GenerationConfig(engine="vllm"), adapter, ModelConfig())
    assert opened.llm["model"] == str(base)
    assert opened.llm["enable_lora"]
    assert opened.adapter[-1] == str(adapter)


def test_logprobs_before_temperature_are_refused(fake, checkpoint):
    fake.processed = False
    with pytest.raises(ConfigError, match="log-probabilities before temperature") as refused:
        Server.open(fake.address, checkpoint)
    assert refused.value.hints == ("start it with --logprobs-mode processed_logprobs",)


@pytest.mark.parametrize(
    ("missing", "hint"),
    [("/collective_rpc", "VLLM_SERVER_DEV_MODE=1"), ("/v1/load_lora_adapter", "--enable-lora")],
)
def test_a_server_that_loads_no_weights_is_refused(fake, checkpoint, missing, hint):
    fake.missing = (missing,)
    if "lora" in missing:
        write_adapter(checkpoint, base="large")
    with pytest.raises(ConfigError, match=f"{missing} answered 404") as refused:
        Server.open(fake.address, checkpoint)
    assert hint in refused.value.hints[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {**c, "token_ids": None}, "does not give the ids and log-probabilities"),
        (lambda c: {**c, "logprobs": {"token_logprobs": []}}, "does not give the ids and log-probabilities"),
        (lambda c: {**c, "finish_reason": "abort"}, "ended an answer for the reason 'abort'"),
    ],
)
def test_answers_that_cannot_be_used_are_refused(fake, checkpoint, change, message):
    engine = Server.open(fake.address, checkpoint)
    fake.change = change
    with pytest.raises(RlhfError, match=message):
        sampled(engine, Sampling(1, 1.0, 4))


def test_too_few_answers_are_refused(fake, checkpoint):
    engine = Server.open(fake.address, checkpoint)
    fake.choices = lambda body: iter(())
    with pytest.raises(RlhfError, match="gave 0 answers of 2"):
        sampled(engine, Sampling(2, 1.0, 4))


def test_nobody_answers(checkpoint):
    with pytest.raises(MissingError, match=r"no vLLM server answers at http://127\.0\.0\.1:9"):
        Server.open("http://127.0.0.1:9", checkpoint)


@pytest.mark.skipif(util.find_spec("vllm") is not None, reason="vllm is installed")
def test_without_the_extra_its_name_is_said(checkpoint):
    with pytest.raises(ConfigError, match=r"generation\.engine is vllm, which is not installed") as refused:
        open_vllm(GenerationConfig(engine="vllm"), checkpoint, ModelConfig())
    assert refused.value.hints[0] == "pip install 'rlhf[vllm]'"


def test_a_server_without_the_engine_is_refused():
    with pytest.raises(ValueError, match="is an address of vLLM, and engine is transformers"):
        GenerationConfig(server="http://elsewhere:8000")
