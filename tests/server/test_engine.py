"""The engine when things go wrong, and the memory it holds."""

import asyncio
import json
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from emopfx_server.engine.capture import Capture, CaptureSpec, layout_of
from emopfx_server.engine.engine import Engine
from emopfx_server.engine.model import ModelError, load
from emopfx_server.engine.progress import Progress
from emopfx_server.engine.requests import Outcome, Request, Target
from emopfx_server.engine.sampling import SamplingParams
from emopfx_server.schemas import ApiError
from tests.server.serving import RunningServer, serve
from tests.server.test_api import ask


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(load("tiny"), max_batch_size=4, capture_bytes=10**8, writers=1)
    engine.start()
    yield engine
    engine.stop()


def make_request(engine: Engine, folder: Path) -> Request:
    spec = CaptureSpec(layout_of(frozenset({engine.loaded.sites[0]["output"]})), torch.float32, "all")
    prompt = engine.loaded.tokenizer.encode("Tom has 3 apples.", add_special_tokens=False)
    return Request("r1", prompt, SamplingParams(0, 1, 0, 8), Target(spec, folder, "f", None))


async def run(engine: Engine, folder: Path) -> Outcome:
    return await engine.run(make_request(engine, folder), Progress())


def test_a_failed_step_fails_its_requests_and_the_engine_says_so(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*batch: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(engine._batching, "_step", broken)
    with pytest.raises(ApiError, match="no such kernel") as caught:
        asyncio.run(run(engine, tmp_path / "x" / "r1"))
    assert caught.value.status == 500
    assert not engine.alive
    assert engine.admission.held == 0
    with pytest.raises(ApiError, match="has stopped"):
        asyncio.run(run(engine, tmp_path / "x" / "r2"))


def test_rows_that_can_not_be_handed_over_are_a_failure_of_the_engine(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*rows: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Capture, "take", broken)
    for name in ("r1", "r2"):
        with pytest.raises(ApiError, match="no memory") as caught:
            asyncio.run(run(engine, tmp_path / "x" / name))
        assert (caught.value.status, caught.value.code) == (500, "engine_error")
    assert engine.admission.held == 0
    assert not engine.alive


def test_what_times_out_inside_is_no_deadline(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stalled(*sequence: object) -> None:
        raise TimeoutError("the device does not answer")

    monkeypatch.setattr(engine._batching, "run", stalled)
    with pytest.raises(TimeoutError, match="the device does not answer"):
        asyncio.run(run(engine, tmp_path / "r1"))
    assert engine.admission.held == 0


def test_a_disk_without_room_is_refused_before_generation(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=100))
    with pytest.raises(ApiError, match="100 bytes left") as caught:
        asyncio.run(run(engine, tmp_path / "x" / "r1"))
    assert caught.value.status == 507
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_half_way_leaves_nothing_and_the_server_goes_on(tmp_path: Path) -> None:
    with serve("tiny", tmp_path / "data") as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
        large: dict[str, Any] = {"ndif": {"dtype": "float32", "save_dir": "large"}}
        response = ask(server, **large)
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "write_failed"
        assert list((server.data / "large").iterdir()) == []
        assert ask(server, ndif={"positions": "last"}).status_code == 200


def test_memory_does_not_grow_with_the_requests_served(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        points = [point["name"] for point in client.get("/v1/model/structure").json()["hook_points"]]
    process = psutil.Process(tiny_server.process.pid)

    def serve_some(count: int) -> int:
        ndif = {"hook_points": points, "dtype": "float32", "save_dir": "memory"}
        with ThreadPoolExecutor(8) as pool:
            sizes = list(pool.map(lambda _: ask(tiny_server, ndif=ndif).json()["ndif"]["bytes"], range(count)))
        shutil.rmtree(tiny_server.data / "memory")
        return sum(sizes)

    serve_some(80)  # until the threads and arenas that stay are there; a slab, of a seventh of this, comes and goes
    before = process.memory_info().rss
    captured = serve_some(80)
    grown = process.memory_info().rss - before
    assert captured > 100e6
    assert grown < captured / 4


@pytest.mark.parametrize(
    "shape",
    [
        {"model_type": "gptj", "rotary_dim": 8},
        {"model_type": "bloom"},
        {"model_type": "falcon"},
        {"model_type": "mamba"},
    ],
)
def test_attention_that_can_not_be_batched_is_refused(tmp_path: Path, shape: dict[str, Any]) -> None:
    config = tmp_path / "config.json"
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "hidden_size": 64, "num_attention_heads": 4}
    config.write_text(json.dumps({**sizes, **shape}))
    loaded = load(f"random:{config}")
    with pytest.raises(ModelError, match="attention"):
        Engine(loaded, max_batch_size=4, capture_bytes=10**8, writers=1)
