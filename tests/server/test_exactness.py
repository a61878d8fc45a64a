"""What is captured is what the model computed: answers and activations against transformers alone."""

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from emopfx_server.engine.model import find_sites, first_tensor
from tests.server.serving import RunningServer, load_reference, save_random_model, serve


@dataclass
class Case:
    """One request, its prompt already in tokens as the server will see it."""

    content: str
    prompt: list[int]
    max_tokens: int
    delay: float


@dataclass
class Served:
    """A served random model with its reference."""

    server: RunningServer
    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt2", "gpt_neox", "phi"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = save_random_model(request.param, tmp_path_factory.mktemp(request.param))
    with serve(str(folder), tmp_path_factory.mktemp("data")) as server:
        yield Served(server, load_reference(folder), AutoTokenizer.from_pretrained(folder))


def make_cases(tokenizer: PreTrainedTokenizerBase, count: int) -> list[Case]:
    """Prompts of 5 to 200 tokens, 1 to 64 new tokens, joining while others run."""
    chosen = random.Random(3)
    words = ["apples", "Tom", "has", "3", "calm", "how", "many", "?", "please", "+", "12", "take", "time"]
    cases = []
    for index in range(count):
        size = [1, 196][index] if index < 2 else chosen.randint(1, 190)
        content = " ".join(chosen.choice(words) for _ in range(size))
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer.encode(text, add_special_tokens=False)
        new = [64, 1][index] if index < 2 else chosen.randint(1, 64)
        cases.append(Case(content, prompt, new, chosen.uniform(0, 0.4)))
    return cases


async def ask_all(url: str, cases: list[Case], ndif: dict[str, Any]) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def ask(case: Case) -> dict[str, Any]:
            await asyncio.sleep(case.delay)
            body = {
                "messages": [{"role": "user", "content": case.content}],
                "max_tokens": case.max_tokens,
                "temperature": 0,
                "ndif": ndif,
            }
            response = await client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            answer: dict[str, Any] = response.json()
            return answer

        return await asyncio.gather(*(ask(case) for case in cases))


def solo_run(
    model: PreTrainedModel, case: Case, names: list[str], interventions: list[dict[str, Any]] | None = None
) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Greedy generate for one prompt alone, with plain forward hooks: first those that change, then those that read."""
    path, _, _ = find_sites(model)
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = []

    def hook(layer: int | str, hook_point: str, visit: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        module, _, side = hook_point.rpartition(".")
        target = model.get_submodule(".".join(part for part in (path, str(layer), module) if part))

        def visited(value: Any) -> Any:
            tensor = first_tensor(value)
            assert tensor is not None
            new = visit(tensor)
            return value if new is None else (new, *value[1:]) if isinstance(value, tuple) else new

        def before(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (visited(args[0]), *args[1:]), kwargs
            first = next(iter(kwargs))
            return args, {**kwargs, first: visited(kwargs[first])}

        if side == "output":
            handles.append(target.register_forward_hook(lambda _, __, out: visited(out)))
        else:
            handles.append(target.register_forward_pre_hook(before, with_kwargs=True))

    for one in interventions or []:
        hook(one["layer"], one["hook_point"], changing(one, len(case.prompt)))
    for name in names:
        _, layer, hook_point = name.split(".", 2)
        hook(layer, hook_point, keeping(rows[name]))
    ids = torch.tensor([case.prompt])
    with torch.no_grad():
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=case.max_tokens, do_sample=False, pad_token_id=0
        )
    for handle in handles:
        handle.remove()
    return output[0, len(case.prompt) :].tolist(), {name: torch.cat(parts) for name, parts in rows.items()}


def keeping(rows: list[torch.Tensor]) -> Callable[[torch.Tensor], None]:
    return lambda tensor: rows.append(tensor[0].flatten(1).clone())


def changing(one: dict[str, Any], prompt: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A hook that makes one intervention in a solo run, row by row."""
    position = 0
    wanted = {
        "all": range(1000),
        "prompt": range(prompt),
        "generated": range(prompt, 1000),
        "last_prompt": [prompt - 1],
        "['1:3', '5:']": [1, 2, *range(5, 1000)],
    }[str(one["positions"])]

    def change(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal position
        changed = tensor.clone()
        for row in changed.view(1, tensor.shape[1], -1)[0]:
            if position in wanted:
                vector = torch.tensor(one.get("vector", 0.0)) * one.get("scale", 1.0)
                new = {"add": row + vector, "replace": vector, "scale": row * one.get("scale", 0.0), "zero": row * 0}
                row[:] = new[one["kind"]]
            position += 1
        return changed

    return change


def naming(name: str) -> Callable[[str], str]:
    return lambda message: f"{name}: {message}"


def test_sixteen_mixed_requests_equal_solo_runs(served: Served) -> None:
    cases = make_cases(served.tokenizer, 16)
    assert min(len(case.prompt) for case in cases) <= 8
    assert max(len(case.prompt) for case in cases) >= 190
    answers = asyncio.run(ask_all(served.server.url, cases, {"save_dir": "exact", "dtype": "model"}))
    together = 0
    varied = set()
    for case, answer in zip(cases, answers, strict=True):
        crumb = answer["ndif"]
        tensors = load_file(served.server.data / crumb["save_dir"] / "activations.safetensors")
        token_ids = tensors.pop("token_ids").tolist()
        positions = tensors.pop("positions").tolist()
        tokens, expected = solo_run(served.reference, case, list(tensors))
        varied.update(tokens)
        assert answer["choices"][0]["message"]["content"] == served.tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer["usage"]["completion_tokens"] == len(tokens) == case.max_tokens
        assert token_ids == case.prompt + tokens[:-1]
        assert positions == list(range(len(case.prompt) + len(tokens) - 1))
        assert len(tensors) == 2 * served.reference.config.num_hidden_layers
        for name, rows in tensors.items():
            torch.testing.assert_close(rows, expected[name], atol=1e-5, rtol=0, msg=naming(name))
        together = max(together, *(int(size) for size in crumb["batch_sizes"]))
    assert together >= 4, "the requests must have shared steps"
    assert len(varied) >= 3, "the answers must not be one token over and over"


def test_every_hook_point_equals_a_solo_run(served: Served) -> None:
    with served.server.client() as client:
        structure = client.get("/v1/model/structure").json()
    hook_points = [point["name"] for point in structure["hook_points"]]
    cases = make_cases(served.tokenizer, 4)
    ndif = {"save_dir": "every", "dtype": "model", "layers": [0, -1], "hook_points": hook_points}
    for case, answer in zip(cases, asyncio.run(ask_all(served.server.url, cases, ndif)), strict=True):
        tensors = load_file(served.server.data / answer["ndif"]["save_dir"] / "activations.safetensors")
        del tensors["token_ids"], tensors["positions"]
        _, expected = solo_run(served.reference, case, list(tensors))
        assert len(tensors) == 2 * len(hook_points)
        for name, rows in tensors.items():
            torch.testing.assert_close(rows, expected[name], atol=2e-5, rtol=1e-5, msg=naming(name))


@pytest.mark.parametrize("served", ["llama"], indirect=True)
def test_prompts_longer_than_a_step_and_mixed_wishes(served: Served) -> None:
    """A prompt of more tokens than one step takes, beside requests that capture other places and positions."""
    base = make_cases(served.tokenizer, 3)
    long = " ".join(["apples"] * 700)
    text = served.tokenizer.apply_chat_template(
        [{"role": "user", "content": long}], tokenize=False, add_generation_prompt=True
    )
    cases = [*base, Case(long, served.tokenizer.encode(text, add_special_tokens=False), 20, 0.0)]
    wishes: list[dict[str, Any]] = [
        {"layers": [1], "hook_points": ["mlp.output"], "positions": "generated"},
        {"positions": "last_prompt"},
        {"layers": "0:3:2", "hook_points": ["output", "self_attn.output"], "positions": ["2:4", "3:6"]},
        {"positions": "all"},
    ]

    async def ask() -> list[dict[str, Any]]:
        groups = [
            ask_all(served.server.url, [case], {**wish, "dtype": "model", "save_dir": "mixed"})
            for case, wish in zip(cases, wishes, strict=True)
        ]
        return [answers[0] for answers in await asyncio.gather(*groups)]

    for case, wish, answer in zip(cases, wishes, asyncio.run(ask()), strict=True):
        tensors = load_file(served.server.data / answer["ndif"]["save_dir"] / "activations.safetensors")
        positions = tensors.pop("positions").tolist()
        token_ids = tensors.pop("token_ids").tolist()
        tokens, expected = solo_run(served.reference, case, list(tensors))
        sequence = case.prompt + tokens[:-1]
        kept = {
            "generated": list(range(len(case.prompt), len(sequence))),
            "last_prompt": [len(case.prompt) - 1],
            "all": list(range(len(sequence))),
        }.get(str(wish["positions"]), [2, 3, 4, 5])
        assert positions == kept
        assert token_ids == [sequence[position] for position in kept]
        for name, rows in tensors.items():
            torch.testing.assert_close(rows, expected[name][kept], atol=1e-5, rtol=0)


def make_interventions(hook_points: list[dict[str, Any]], chosen: random.Random) -> list[dict[str, Any]]:
    """One to three interventions, anywhere and of any kind."""
    made: list[dict[str, Any]] = []
    for point in chosen.sample(hook_points, chosen.randint(1, 3)):
        kind = chosen.choice(["add", "scale", "zero", "replace"])
        positions = chosen.choice(["all", "prompt", "generated", "last_prompt", ["1:3", "5:"]])
        one: dict[str, Any] = {"kind": kind, "layer": chosen.randrange(3), "hook_point": point["name"]}
        if kind in ("add", "replace"):
            one["vector"] = [chosen.gauss(0, 1) for _ in range(point["width"])]
        if kind != "zero":
            one["scale"] = chosen.choice([-1.0, 0.5, 2.0])
        made.append({**one, "positions": positions})
    return made


def test_steered_requests_equal_solo_runs(served: Served) -> None:
    """Requests steered in different ways and ones that are not, side by side."""
    with served.server.client() as client:
        hook_points = client.get("/v1/model/structure").json()["hook_points"]
    chosen = random.Random(5)
    cases = [replace(case, max_tokens=min(case.max_tokens, 20)) for case in make_cases(served.tokenizer, 7)]
    plans = [make_interventions(hook_points, chosen) if index % 3 else [] for index in range(len(cases))]

    async def ask() -> list[dict[str, Any]]:
        groups = [
            ask_all(
                served.server.url,
                [case],
                {
                    "dtype": "model",
                    "save_dir": "steered",
                    "hook_points": ["output", *{one["hook_point"] for one in plan} - {"output"}],
                    "interventions": plan,
                },
            )
            for case, plan in zip(cases, plans, strict=True)
        ]
        return [answers[0] for answers in await asyncio.gather(*groups)]

    differing = 0
    for case, plan, answer in zip(cases, plans, asyncio.run(ask()), strict=True):
        tensors = load_file(served.server.data / answer["ndif"]["save_dir"] / "activations.safetensors")
        token_ids = tensors.pop("token_ids").tolist()
        del tensors["positions"]
        tokens, expected = solo_run(served.reference, case, list(tensors), plan)
        assert token_ids == case.prompt + tokens[:-1]
        for name, rows in tensors.items():
            torch.testing.assert_close(rows, expected[name], atol=5e-5, rtol=1e-5, msg=naming(f"{name} of {plan}"))
        differing += bool(plan) and tokens != solo_run(served.reference, case, [])[0]
    assert differing >= 2, "the interventions must have changed answers"
