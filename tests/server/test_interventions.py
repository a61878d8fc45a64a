"""Interventions: what is refused, what is recorded, and that nobody else notices them."""

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from emopfx_server.engine.capture import CaptureSpec, layout_of
from emopfx_server.engine.engine import Engine
from emopfx_server.engine.interventions import LIMIT, Edit, Rewrite, Steering
from emopfx_server.engine.model import LoadedModel, load
from emopfx_server.engine.progress import Progress
from emopfx_server.engine.requests import Outcome, Request, Target
from emopfx_server.engine.sampling import SamplingParams
from emopfx_server.schemas import ApiError, EditKind, EditPositions
from tests.server.serving import RunningServer
from tests.server.test_api import ask, refusal

WIDTH = 64
ADD = {"kind": "add", "layer": 1, "vector": [0.5] * WIDTH, "scale": 4}


def steer(server: RunningServer, *interventions: dict[str, Any], **ndif: Any) -> Any:
    return ask(server, ndif={"interventions": list(interventions), **ndif})


@pytest.fixture(scope="module")
def vectors(tiny_server: RunningServer) -> Path:
    folder = tiny_server.data / "nano" / "artifacts"
    folder.mkdir(parents=True)
    save_file({"calm": torch.full((WIDTH,), 0.5)}, folder / "one.safetensors")
    save_file({"short": torch.ones(3), "nan": torch.full((WIDTH,), torch.nan)}, folder / "two.safetensors")
    (folder / "text.safetensors").write_text("no tensors")
    return folder


def test_a_vector_may_be_inline_or_in_a_file(tiny_server: RunningServer, vectors: Path) -> None:
    plain = ask(tiny_server, ndif={"capture": False}).json()
    inline = steer(tiny_server, ADD, capture=False).json()
    named = steer(tiny_server, {**ADD, "vector": "nano/artifacts/one.safetensors#calm"}, capture=False).json()
    only = steer(tiny_server, {**ADD, "vector": "nano/artifacts/one.safetensors"}, capture=False).json()
    answers = [answer["choices"][0]["message"]["content"] for answer in (inline, named, only)]
    assert answers[0] == answers[1] == answers[2] != plain["choices"][0]["message"]["content"]
    sums = {answer["ndif"]["interventions"][0]["vector"]["sha256"] for answer in (inline, named, only)}
    assert sums == {hashlib.sha256(torch.full((WIDTH,), 0.5).numpy().tobytes()).hexdigest()}


def test_what_was_done_is_recorded_without_numbers(tiny_server: RunningServer) -> None:
    zero = {"kind": "zero", "layer": -1, "hook_point": "mlp.output", "positions": ["0:4", "9:"]}
    crumb = steer(tiny_server, ADD, zero, save_dir="recorded", layers=[1]).json()["ndif"]
    folder = tiny_server.data / crumb["save_dir"]
    metadata = json.loads((folder / "metadata.json").read_text())
    first, second = metadata["interventions"]
    assert metadata["interventions"] == crumb["interventions"]
    assert {**first, "vector": None} == {**ADD, "hook_point": "output", "positions": "all", "vector": None}
    assert first["vector"]["source"] == "inline"
    assert first["vector"]["norm"] == pytest.approx(0.5 * WIDTH**0.5)
    assert second == {**zero, "layer": metadata["layers"][0] + 2, "scale": 1.0, "vector": None}
    assert metadata["captured"] == "after interventions"
    with safe_open(folder / "activations.safetensors", "pt") as file:
        header = file.metadata()
    assert json.loads(header["interventions"]) == metadata["interventions"]
    assert header["captured"] == "after interventions"


def test_captures_show_what_the_model_went_on_with(tiny_server: RunningServer) -> None:
    replace = {"kind": "replace", "layer": 1, "hook_point": "mlp.output", "vector": [0.25] * WIDTH}
    ndif = {"layers": [1], "hook_points": ["mlp.output"], "save_dir": "after", "dtype": "float32"}
    crumb = steer(tiny_server, {**replace, "positions": "generated"}, **ndif).json()["ndif"]
    tensors = load_file(tiny_server.data / crumb["save_dir"] / "activations.safetensors")
    generated = tensors["positions"] >= crumb["tokens"] - len(tensors["positions"]) + 1
    assert generated.any()
    rows = tensors["layers.1.mlp.output"]
    replaced = (rows == 0.25).all(dim=1)
    assert replaced.any()
    assert not replaced.all()
    first = int(replaced.nonzero()[0])
    assert replaced[first:].all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layer": 9}, "ndif.interventions.0.layer 9 is not a layer of this model"),
        ({"hook_point": "mlp.outputs"}, "has no hook point 'mlp.outputs'"),
        ({"vector": [1.0]}, r"its shape is \[1\], but layers.1.output takes \[64\]"),
        ({"vector": "nano/artifacts/none.safetensors"}, "there is no file 'nano/artifacts/none.safetensors'"),
        ({"vector": "nano/artifacts"}, "there is no file 'nano/artifacts'"),
        ({"vector": "nano/artifacts/two.safetensors"}, "names none of the file's tensors: nan, short"),
        ({"vector": "nano/artifacts/two.safetensors#long"}, "names none of the file's tensors: nan, short"),
        ({"vector": "nano/artifacts/two.safetensors#short"}, r"its shape is \[3\]"),
        ({"vector": "nano/artifacts/two.safetensors#nan"}, "not finite in float32"),
        ({"vector": "nano/artifacts/text.safetensors"}, "can't be read as safetensors"),
        ({"vector": "../../etc/passwd"}, "not a usable path"),
        ({"vector": "/etc/passwd"}, "not a usable path"),
        ({"vector": "nano/" + "a" * 5000}, "not a usable path"),
        ({"vector": [1e300] * WIDTH}, "not finite in float32"),
        ({"vector": [1e30] * WIDTH, "scale": 1e30}, "too large for float32"),
        ({"vector": ["a"]}, "a vector is a list of finite numbers"),
        ({"vector": None}, "'add' needs a vector"),
        ({"kind": "zero"}, "'zero' takes no vector"),
        ({"kind": "zero", "vector": None}, "'zero' takes no scale"),
        ({"kind": "scale", "vector": None, "scale": None}, "'scale' needs a scale"),
        ({"kind": "steer"}, "interventions.0.kind"),
        ({"positions": "last"}, "interventions.0.positions"),
        ({"positions": ["a"]}, "'a' is not a range of positions"),
        ({"strength": 1}, "interventions.0.strength"),
    ],
)
@pytest.mark.usefixtures("vectors")
def test_what_cannot_be_done_is_refused_in_one_sentence(
    tiny_server: RunningServer, change: dict[str, Any], says: str
) -> None:
    message = refusal(steer(tiny_server, {**ADD, **change}))
    assert re.search(says, message), message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"scale": 4', '"scale": NaN', "finite number"),
        ("[0.5,", "[NaN,", "finite numbers"),
        ("[0.5,", f"[1{400 * '0'},", "finite numbers"),
        (str(ADD["vector"]), r'"\ud800"', "half a surrogate pair"),
        ('"layer": 1', r'"layer": 1, "hook_point": "\ud800"', "half a surrogate pair"),
    ],
)
def test_what_json_can_say_and_nobody_can_mean_is_refused(
    tiny_server: RunningServer, old: str, new: str, says: str
) -> None:
    text = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "ndif": {"interventions": [ADD]}})
    with tiny_server.client() as client:
        headers = {"Content-Type": "application/json"}
        response = client.post("/v1/chat/completions", content=text.replace(old, new), headers=headers)
    assert says in refusal(response)


def test_a_request_is_another_one_when_its_vector_has_changed(tiny_server: RunningServer, vectors: Path) -> None:
    file = vectors / "changing.safetensors"
    one = {**ADD, "vector": "nano/artifacts/changing.safetensors"}
    save_file({"v": torch.ones(WIDTH)}, file)
    first = steer(tiny_server, one, request_id="vector-1").json()
    assert steer(tiny_server, one, request_id="vector-1").json()["ndif"]["replayed"]
    save_file({"v": torch.zeros(WIDTH)}, file)
    assert "taken" in refusal(steer(tiny_server, one, request_id="vector-1"), 409)
    save_file({"v": torch.ones(WIDTH)}, file)
    again = steer(tiny_server, one, request_id="vector-1").json()
    assert again["choices"] == first["choices"]


def edit(loaded: LoadedModel, kind: EditKind, value: float, hook_point: str, positions: EditPositions = "all") -> Edit:
    site = loaded.sites[1][hook_point]
    return Edit(kind, site, positions, 1, None, torch.full((site.width,), value))


def run_together(root: Path, count: int, changes: dict[int, list[Edit]]) -> list[Outcome | BaseException]:
    """Requests that all wait when the engine starts, so that every run has the same batches."""
    engine = Engine(load("tiny"), max_batch_size=8, capture_bytes=10**9, writers=1)
    loaded = engine.loaded
    spec = CaptureSpec(
        layout_of(frozenset(site for sites in loaded.sites for site in sites.values())), torch.float32, "all"
    )

    def request(index: int) -> Request:
        text = "Tom has 3 apples. " * (index + 1)
        prompt = loaded.tokenizer.encode(text, add_special_tokens=False)
        target = Target(spec, root / f"r{index}", "f", None)
        return Request(f"r{index}", prompt, SamplingParams(0, 1, 0, 12), target, tuple(changes.get(index, [])))

    async def run() -> list[Outcome | BaseException]:
        tasks = [asyncio.create_task(engine.run(request(index), Progress())) for index in range(count)]
        await asyncio.sleep(0)
        engine.start()
        return await asyncio.gather(*tasks, return_exceptions=True)

    try:
        return asyncio.run(run())
    finally:
        engine.stop()


def assert_same_bits(root: Path, other: Path, index: int) -> None:
    one, two = (load_file(folder / f"r{index}" / "activations.safetensors") for folder in (root, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(rows, two[name]) for name, rows in one.items())


def test_steering_one_request_changes_no_bit_of_another(tmp_path: Path) -> None:
    loaded = load("tiny")
    changes = [
        edit(loaded, "add", 2.0, "output"),
        edit(loaded, "replace", 0.5, "self_attn.k_proj.output"),
        edit(loaded, "add", 1.0, "mlp.input", "generated"),
    ]
    plain = run_together(tmp_path / "plain", 4, {})
    steered = run_together(tmp_path / "steered", 4, {1: changes})
    for index, (one, two) in enumerate(zip(plain, steered, strict=True)):
        assert isinstance(one, Outcome)
        assert isinstance(two, Outcome)
        assert one.record["batch_sizes"] == two.record["batch_sizes"] == {"4": 12}
        assert (one.answer.text == two.answer.text) == (index != 1)
    for index in (0, 2, 3):
        assert_same_bits(tmp_path / "plain", tmp_path / "steered", index)


def test_what_overflows_fails_alone(tmp_path: Path) -> None:
    """Infinity times zero is no number: behind a mask it would still reach the other requests."""
    loaded = load("tiny")
    places = ["output", "self_attn.k_proj.output", "input_layernorm.output"]
    huge = {index: [edit(loaded, "replace", 3e38, place)] for index, place in enumerate(places, start=1)}
    plain = run_together(tmp_path / "plain", 5, {})
    outcomes = run_together(tmp_path / "huge", 5, huge)
    for index, (one, two) in enumerate(zip(plain, outcomes, strict=True)):
        assert isinstance(one, Outcome)
        if index in huge:
            assert isinstance(two, ApiError)
            assert two.code == "intervention_overflow"
            assert not (tmp_path / "huge" / f"r{index}").exists()
        else:
            assert isinstance(two, Outcome)
            assert one.answer.text == two.answer.text


def test_only_the_rows_of_the_positions_meant_are_changed() -> None:
    site = load("tiny").sites[1]["output"]
    steering = Steering([Edit("scale", site, ["2:4"], 3.0), Edit("zero", site, "generated", 1.0)], 5, 4)
    assert steering.within(row=10, position=0, tokens=2) is None
    steered = steering.within(row=10, position=3, tokens=4)
    assert steered is not None
    rewrite = Rewrite([steered], torch.device("cpu"))
    changed = rewrite.apply(site, torch.ones(1, 16, WIDTH))
    assert changed[0, :, 0].tolist() == [1] * 10 + [3, 1, 0, 0] + [1] * 2
    assert rewrite.overflowed() == [False]
    rewrite.apply(site, torch.full((1, 16, WIDTH), 2 * LIMIT))
    assert rewrite.overflowed() == [True]
