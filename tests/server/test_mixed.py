"""Streams, several choices, clients that hang up and interventions in one batch: each is as exact as alone."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.server.serving import load_reference, save_random_model, serve
from tests.server.test_exactness import Case, make_cases, naming, solo_run

# The intervention of every second plain request and stream.
STEERING: list[dict[str, Any]] = [
    {"kind": "add", "layer": 1, "hook_point": "output", "vector": [0.5, -0.5] * 32, "scale": 2.0, "positions": "all"},
    {"kind": "scale", "layer": 2, "hook_point": "mlp.output", "scale": 0.3, "positions": "generated"},
]


def steering(index: int) -> list[dict[str, Any]]:
    return STEERING if index % 8 < 4 else []


async def ask(client: httpx.AsyncClient, index: int, case: Case) -> None:
    """A plain request, a stream, a stream that is left, or two choices, by the index; some are steered."""
    request: dict[str, Any] = {
        "messages": [{"role": "user", "content": case.content}],
        "max_tokens": case.max_tokens,
        "temperature": 0,
        "ndif": {"request_id": str(index), "save_dir": "mixed", "dtype": "model", "interventions": steering(index)},
    }
    await asyncio.sleep(case.delay)
    if index % 4 in (1, 2):
        async with client.stream("POST", "/v1/chat/completions", json={**request, "stream": True}) as response:
            async for line in response.aiter_lines():
                if index % 4 == 2 and line:
                    return
    else:
        n = 2 if index % 4 == 3 else 1
        response = await client.post("/v1/chat/completions", json={**request, "n": n, "logprobs": True})
        assert response.status_code == 200, response.text


def test_each_is_as_exact_as_alone(tmp_path: Path) -> None:
    async def everybody(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            await asyncio.gather(*(ask(client, index, case) for index, case in enumerate(cases)))

    folder = save_random_model("llama", tmp_path / "llama")
    cases = make_cases(AutoTokenizer.from_pretrained(folder), 12)
    for case in cases[2::4]:
        case.max_tokens = 1000  # so that there is somebody to leave
    with serve(str(folder), tmp_path / "data") as server:
        asyncio.run(everybody(server.url))
    reference = load_reference(folder)
    checked = 0
    for path in (tmp_path / "data").rglob("activations.safetensors"):
        index = int(path.relative_to(tmp_path / "data" / "mixed").parts[0])
        assert index % 4 != 2, "whoever left leaves no files"
        case, tensors = cases[index], load_file(path)
        positions, token_ids = tensors.pop("positions").tolist(), tensors.pop("token_ids").tolist()
        tokens, expected = solo_run(reference, case, list(tensors), steering(index))
        assert token_ids == case.prompt + tokens[:-1]
        assert positions == list(range(len(token_ids)))
        for name, rows in tensors.items():
            atol = 5e-5 if steering(index) else 1e-5
            torch.testing.assert_close(rows, expected[name], atol=atol, rtol=0, msg=naming(name))
        checked += 1
    assert checked == 3 + 3 + 2 * 3
