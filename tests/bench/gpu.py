"""Throughput on a GPU: the server without and with full capture, against other ways of generating and of capturing.

Models have the shapes of public ones and random weights. Five ways answer the same requests: the server over HTTP,
without capture and with it (two norms of every layer), and in this process one static, padded batch of transformers'
`generate`: plain, with plain torch hooks, and with nnsight; all keep what they capture in host memory or on disk. The
static batch runs until its longest answer is done. Tokens per second count the tokens that were asked for. `--small`
shrinks it all, to try the script on a CPU.
"""

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from nnsight import save
from rich.console import Console
from rich.table import Table

from emopfx_server.engine.model import LoadedModel, load
from tests.bench.throughput import HERE, Job, client, machine, make_jobs, timed
from tests.server.serving import serve

SHAPES = ("qwen3-0.6b", "qwen2.5-7b")
SMALL = {
    "dtype": "float32",
    "num_hidden_layers": 3,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 4096,
}
Way = Callable[[], object]


def padded(jobs: list[Job]) -> dict[str, torch.Tensor]:
    """The prompts as one batch, padded on the left."""
    longest = max(len(job.prompt) for job in jobs)
    ids = torch.tensor([[0] * (longest - len(job.prompt)) + job.prompt for job in jobs])
    mask = torch.tensor([[0] * (longest - len(job.prompt)) + [1] * len(job.prompt) for job in jobs])
    return {"input_ids": ids, "attention_mask": mask}


def static(loaded: LoadedModel, jobs: list[Job]) -> dict[str, Way]:
    """The ways that run one static batch in this process."""
    model, steps = loaded.model, max(job.new_tokens for job in jobs)
    batch = {name: tensor.to(model.device) for name, tensor in padded(jobs).items()}
    options = {**batch, "min_new_tokens": steps, "max_new_tokens": steps, "do_sample": False, "pad_token_id": 0}
    paths = [
        f"{loaded.layers_path}.{layer}.{point.removesuffix('.output')}"
        for layer in range(loaded.num_layers)
        for point in loaded.default_hook_points()
    ]
    envoys = [loaded.envoy.get(path) for path in paths]

    def plain() -> None:
        with torch.no_grad():
            model.generate(**options)

    def hooked() -> None:
        rows: list[torch.Tensor] = []
        modules = [model.get_submodule(path) for path in paths]
        handles = [m.register_forward_hook(lambda _, __, output: rows.append(output.cpu())) for m in modules]
        plain()
        for handle in handles:
            handle.remove()
        assert len(rows) == steps * len(paths)

    def traced() -> None:
        with torch.no_grad(), loaded.envoy.trace(fn=model.generate, **options) as tracer:
            rows = save([])
            for _ in tracer.iter[0:steps]:
                for envoy in envoys:
                    rows.append(envoy.output.cpu())
        assert len(rows) == steps * len(paths)

    return {"generate": plain, "generate, torch hooks": hooked, "generate, nnsight": traced}


@contextmanager
def served(config: str, jobs: list[Job]) -> Iterator[dict[str, Way]]:
    """The ways that ask a server, which is gone at the end, and its memory free again."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        serve(config, Path(scratch) / "data") as server,
        client(server.url) as over_http,
    ):
        yield {
            "server": lambda: over_http(jobs, False),
            "server, full capture": lambda: over_http(jobs, True),
        }


def speeds(ways: dict[str, Way], jobs: list[Job], rounds: int) -> dict[str, float]:
    """Tokens a second of each way, the median of rounds in turn after one that warms up."""
    tokens = sum(job.new_tokens for job in jobs)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, run in ways.items():
            taken = timed(run)
            if round_:
                seconds[name].append(taken)
    return {name: round(tokens / median(taken), 1) for name, taken in seconds.items()}


def measure(shape: str, concurrent: int, new_tokens: tuple[int, int], rounds: int, small: bool) -> dict[str, Any]:
    """All ways on one model at one number of requests."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / f"{shape}.json"
        content = json.loads((HERE / f"{shape}.json").read_text())
        config.write_text(json.dumps(content | SMALL if small else content))
        name = f"random:{config}"
        loaded = load(name)
        jobs = make_jobs(loaded, concurrent, new_tokens)
        found = speeds(static(loaded, jobs), jobs, rounds)
        del loaded
        gc.collect()  # nnsight's view of the model holds it in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with served(name, jobs) as ways:
            found |= speeds(ways, jobs, rounds)
    return {"model": shape, "requests": concurrent, "tokens": sum(job.new_tokens for job in jobs), "speeds": found}


def show(runs: list[dict[str, Any]]) -> None:
    """Print tokens a second, and beside them the ratio to the plain static batch."""
    table = Table()
    table.add_column("tokens/s (÷ generate)")
    for run in runs:
        table.add_column(f"{run['model']}, {run['requests']} requests", justify="right")
    for way in runs[0]["speeds"]:
        cells = [f"{run['speeds'][way]:,} ({run['speeds'][way] / run['speeds']['generate']:.2f})" for run in runs]
        table.add_row(way, *cells)
    Console().print(table)


def main() -> None:
    """Measure, show, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="small models and short answers, to try it on a CPU")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default: 3)")
    parser.add_argument("--out", type=Path, help="the report (default: tests/bench/results/gpu.json or gpu-small.json)")
    asked = parser.parse_args()
    if not asked.small and not torch.cuda.is_available():
        parser.error("there is no GPU here; --small tries the script on a CPU")
    counts, new_tokens = ((4, 8), (8, 32)) if asked.small else ((32, 64), (128, 512))
    runs = [measure(shape, count, new_tokens, asked.rounds, asked.small) for shape in SHAPES for count in counts]
    show(runs)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    out = asked.out or HERE / "results" / ("gpu-small.json" if asked.small else "gpu.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"device": device, "machine": machine(), "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
