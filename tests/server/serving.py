"""A real server in a process of its own, and small models with random weights to serve."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from emopfx_server.tiny.tokenizer import build

_SMALL: dict[str, object] = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4}
_GROUPED: dict[str, object] = {**_SMALL, "intermediate_size": 128, "num_key_value_heads": 2}

ARCHITECTURES: dict[str, dict[str, object]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 16},
    "gemma": {**_GROUPED, "head_dim": 16},
    "gemma2": {**_GROUPED, "head_dim": 16, "sliding_window": 32},
    "gemma3_text": {**_GROUPED, "num_hidden_layers": 6, "head_dim": 16, "sliding_window": 32},
    "gpt2": {"n_layer": 3, "n_embd": 64, "n_head": 4, "n_positions": 1024},
    "gpt_neox": {**_SMALL, "intermediate_size": 128, "max_position_embeddings": 1024},
    "phi": {**_SMALL, "intermediate_size": 128},
}


def save_random_model(
    architecture: str, folder: Path, tokenizer_of: Callable[[], PreTrainedTokenizerFast] = build
) -> Path:
    """Save a small model with random weights, large enough that greedy answers vary, and a tokenizer."""
    from transformers import AutoConfig

    tokenizer = tokenizer_of()
    ids = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **ids, **ARCHITECTURES[architecture])
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    embedding_std = 0.6 / 8 if architecture.startswith("gemma") else 0.6  # Gemma scales its embeddings by √hidden
    for name, weights in model.named_parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=embedding_std if "embed" in name or "wte" in name else 0.1)
    model.save_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are single bytes, so that most characters take several."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({character: number for number, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, clean_up_tokenization_spaces=False
    )


def load_reference(folder: Path) -> PreTrainedModel:
    """The same model, served by nothing but transformers."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@dataclass
class RunningServer:
    """A server that answers, and the folder it writes to."""

    url: str
    data: Path
    process: subprocess.Popen[str]

    def client(self, timeout: float = 60) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, timeout=timeout)

    def metrics(self) -> dict[str, float]:
        """What it tells Prometheus, by name and labels."""
        with self.client() as client:
            lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def wait_until(self, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """The first metrics that fulfil a condition."""
        deadline = time.monotonic() + 60
        while not condition(now := self.metrics()):
            assert time.monotonic() < deadline, now
            time.sleep(0.02)
        return now


@contextmanager
def serve(model: str, data: Path, *flags: str, **environment: str) -> Iterator[RunningServer]:
    """Run a server until the block ends."""
    command = [sys.executable, "-m", "emopfx_server", "--model", model, "--data-dir", str(data), "--port", "0", *flags]
    log = (data.parent / f"{data.name}.server.log").open("w")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if match := re.match(r"emopfx-server ready on (\S+)", line):
                yield RunningServer(match[1], data, process)
                return
        raise AssertionError(f"the server did not start: {Path(log.name).read_text()}")
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()
        log.close()


def wait_until_idle(server: RunningServer) -> dict[str, float]:
    """The metrics, when nothing runs any more."""
    names = [f"emopfx_{name}" for name in ("requests_running", "requests_waiting", "capture_held_bytes")]
    return server.wait_until(lambda now: not any(now[name] for name in names))
