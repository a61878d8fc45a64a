"""What capture costs: tokens a second over HTTP with full capture, against the same model without, and without us.

Four ways of answering the same 12 mixed requests, in turn and back, several times over; what is reported is the median
of the ratios within a round, so that a machine whose speed drifts cancels out, and the quartiles beside it. The
slowest, `generate` by request, takes part in the first rounds only. The profile says where the others' time goes.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from emopfx_server.engine.capture import Capture, CaptureSpec, layout_of
from emopfx_server.engine.model import LoadedModel, load
from emopfx_server.engine.writer import commit
from tests.server.serving import serve

HERE = Path(__file__).parent
MODEL = f"random:{HERE / 'llama-12x512.json'}"
WORDS = ["Tom", "has", "3", "apples", "and", "buys", "4", "more", ",", "how", "many", "are", "there", "now", "?"]
SERIAL_ROUNDS = 3
RATIOS = {
    "capture_vs_serial": ("full capture", "serial generate", "ours with full capture ÷ serial generate without"),
    "capture_vs_none": ("full capture", "no capture", "ours with full capture ÷ ours without"),
    "none_vs_direct": ("no capture", "direct batching", "ours without, over HTTP ÷ transformers' own batching"),
}


@dataclass(frozen=True)
class Job:
    """One request: its text, the tokens that the chat template makes of it, and how many tokens to generate."""

    text: str
    prompt: list[int]
    new_tokens: int


def make_jobs(loaded: LoadedModel, count: int, new_tokens: tuple[int, int] = (16, 64)) -> list[Job]:
    """Mixed requests: prompts of 5 to 200 tokens, and `new_tokens` (from, to) new ones."""
    chosen = random.Random(0)
    jobs = []
    for _ in range(count):
        text = " ".join(chosen.choice(WORDS) for _ in range(chosen.randint(1, 195)))
        messages = [{"role": "user", "content": text}]
        templated = loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = loaded.tokenizer.encode(templated, add_special_tokens=False)
        jobs.append(Job(text, prompt, chosen.randint(*new_tokens)))
    return jobs


def serial(loaded: LoadedModel, jobs: list[Job]) -> None:
    """One request after the other through `generate`."""
    for job in jobs:
        ids = torch.tensor([job.prompt])
        with torch.no_grad():
            loaded.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=job.new_tokens,
                do_sample=False,
                pad_token_id=0,
            )


@dataclass
class Steps:
    """How many steps there were, and the seconds that they took."""

    count: int = 0
    seconds: float = 0.0

    def __sub__(self, before: "Steps") -> "Steps":
        return Steps(self.count - before.count, self.seconds - before.seconds)


@contextmanager
def direct(loaded: LoadedModel, jobs: list[Job]) -> Iterator[tuple[Callable[[], None], Callable[[], Steps]]]:
    """transformers' continuous batching, started and warm, with nothing of ours in it but a clock around its steps."""
    manager = loaded.model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=32,
            num_blocks=512,
            max_batch_tokens=512,
            max_requests_per_batch=64,
            allow_block_sharing=False,
            use_cuda_graph=False,
            use_async_batching=False,
        ),
    )
    manager.warmup()
    runner, steps = manager.batch_processor.model_runner, Steps()
    step = runner._forward_process_and_sample

    def clocked(*batch: Any) -> None:
        steps.seconds += timed(partial(step, *batch))
        steps.count += 1

    runner._forward_process_and_sample = clocked
    manager.start()

    def run() -> None:
        for job in jobs:
            manager.add_request(job.prompt, max_new_tokens=job.new_tokens)
        answered = 0
        while answered < len(jobs):
            answered += manager.get_result(timeout=60) is not None

    yield run, partial(replace, steps)
    manager.stop()


@contextmanager
def client(url: str) -> Iterator[Callable[[list[Job], bool], list[dict[str, Any]]]]:
    """A client that stays connected; a call sends all jobs at once, and returns the answers' breadcrumbs."""
    with asyncio.Runner() as runner:
        http = httpx.AsyncClient(base_url=url, timeout=600)

        async def ask(job: Job, capture: bool) -> dict[str, Any]:
            body = {
                "messages": [{"role": "user", "content": job.text}],
                "max_tokens": job.new_tokens,
                "temperature": 0,
                "ndif": {"capture": capture},
            }
            response = await http.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            answer = response.json()
            assert answer["usage"]["completion_tokens"] == job.new_tokens
            crumb: dict[str, Any] = answer["ndif"]
            return crumb

        async def ask_all(jobs: list[Job], capture: bool) -> list[dict[str, Any]]:
            return await asyncio.gather(*(ask(job, capture) for job in jobs))

        yield lambda jobs, capture: runner.run(ask_all(jobs, capture))
        runner.run(http.aclose())


def server_steps(url: str) -> Steps:
    """The server's steps so far, from its metrics."""
    metrics = httpx.get(f"{url}/metrics").text
    found = dict(re.findall(r"^emopfx_step_seconds_(sum|count) (\S+)$", metrics, re.MULTILINE))
    return Steps(int(float(found["count"])), float(found["sum"]))


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def write_speed(loaded: LoadedModel, folder: Path, rows: int = 2000) -> float:
    """MB/s at which one writer commits a long request's files: written, hashed and synced."""
    sites = frozenset(
        loaded.sites[layer][point] for layer in range(loaded.num_layers) for point in loaded.default_hook_points()
    )
    spec = CaptureSpec(layout_of(sites), torch.bfloat16, "all")
    capture = Capture(spec, rows, 1)
    capture.take(spec.layout.allocate(rows, torch.bfloat16, "cpu"), spec.layout, range(rows), 0, range(rows))
    size = rows * spec.layout.row_bytes(spec.dtype)
    runs = [timed(partial(commit, folder / str(i), capture, {}, {})) for i in range(5)]
    return size / median(runs) / 1e6


def machine() -> dict[str, Any]:
    """What this was measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@dataclass
class Round:
    """One way's turn: the seconds it took, and its steps, where it says so."""

    seconds: float
    steps: Steps


def measure(rounds: int) -> dict[str, Any]:
    """Run everything `rounds` times in turn, after a warm-up round."""
    console = Console(stderr=True)
    loaded = load(MODEL)
    jobs = make_jobs(loaded, 12)
    crumbs: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        serve(MODEL, Path(scratch) / "data") as server,
        client(server.url) as over_http,
        direct(load(MODEL), jobs) as (run_direct, direct_steps),
    ):
        served = partial(server_steps, server.url)
        ways: dict[str, tuple[Callable[[], object], Callable[[], Steps]]] = {
            "serial generate": (lambda: serial(loaded, jobs), Steps),
            "direct batching": (run_direct, direct_steps),
            "no capture": (lambda: over_http(jobs, False), served),
            "full capture": (lambda: crumbs.extend(over_http(jobs, True)), served),
        }
        turns: dict[str, list[Round]] = {name: [] for name in ways}
        for round_ in range(rounds + 1):
            for name in list(ways) if round_ % 2 else reversed(ways):
                run, steps = ways[name]
                if name == "serial generate" and round_ > SERIAL_ROUNDS:
                    continue
                before = steps()
                turn = Round(timed(run), steps() - before)
                if round_:
                    turns[name].append(turn)
            console.print(f"round {round_} of {rounds}" + ("" if round_ else " (warm-up, not counted)"))
        writer = write_speed(loaded, Path(scratch))
    tokens = sum(job.new_tokens for job in jobs)
    return {
        **{key: ratio(turns[ours], turns[other]) for key, (ours, other, _) in RATIOS.items()},
        "tokens_per_second": {
            name: round(median(tokens / turn.seconds for turn in own), 1) for name, own in turns.items()
        },
        "profile": {name: profile(own) for name, own in turns.items() if own[0].steps.count},
        "capture_bytes_per_token": round(sum(c["bytes"] for c in crumbs) / sum(c["tokens"] for c in crumbs)),
        "write_mb_per_second": round(writer),
        "rounds": rounds,
        "machine": machine(),
    }


def ratio(ours: list[Round], others: list[Round]) -> dict[str, float]:
    """Our speed to another way's: the median over rounds, and the quartiles."""
    found = [other.seconds / own.seconds for own, other in zip(ours, others, strict=False)]
    low, middle, high = quantiles(found, n=4, method="inclusive")
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def profile(turns: list[Round]) -> dict[str, float]:
    """Where a round's time goes: how many steps it had, and the seconds in them and besides."""
    return {
        "steps": median(turn.steps.count for turn in turns),
        "seconds_in_steps": round(median(turn.steps.seconds for turn in turns), 3),
        "seconds_besides": round(median(turn.seconds - turn.steps.seconds for turn in turns), 3),
    }


def show(report: dict[str, Any]) -> None:
    """Print the report."""
    console = Console()
    speeds = Table()
    speeds.add_column("12 mixed requests, 12 layers × 512")
    speeds.add_column("tokens/s", justify="right")
    for name, value in report["tokens_per_second"].items():
        speeds.add_row(name, str(value))
    console.print(speeds)
    for key, (_, _, meaning) in RATIOS.items():
        found = report[key]
        console.print(
            f"{key:18} {found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})  {meaning}",
            highlight=False,
            soft_wrap=True,
        )
    for name, found in report["profile"].items():
        console.print(
            f"{name:18} {found['steps']:.0f} steps, {found['seconds_in_steps']:.2f} s in them, "
            f"{found['seconds_besides']:.2f} s besides",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"{report['capture_bytes_per_token']:,} bytes captured per token", highlight=False)
    console.print(f"{report['write_mb_per_second']:,} MB/s written by one writer (hashed and synced)", highlight=False)


def main() -> None:
    """Measure, show, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="counted rounds (default: 12)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "latest.json")
    asked = parser.parse_args()
    report = measure(asked.rounds)
    show(report)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
