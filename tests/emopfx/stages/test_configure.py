from typing import Any

import pytest

from emopfx.config import Capture
from emopfx.config_file import parse
from emopfx.errors import InputError
from emopfx.server_api import HookPoint, Structure
from emopfx.stages.configure import configure, resolve_layers
from tests.emopfx.scripted_server import STRUCTURE

SERVED = Structure(
    model="tiny",
    revision="abc",
    dtype="bfloat16",
    num_layers=4,
    hook_points=(
        HookPoint("input_layernorm.output", None),
        HookPoint("post_attention_layernorm.output", None),
        HookPoint("mlp.output", frozenset({0, 2})),
    ),
    raw=dict(STRUCTURE),
)


def zero(layer: int, hook_point: str = "mlp.output") -> dict[str, object]:
    one = {"kind": "zero", "layer": layer, "hook_point": hook_point}
    return {"variants": [{"name": "cut", "interventions": [one]}]}


def sae(*layers: int, **more: object) -> dict[str, object]:
    return {"sae": {"layers": list(layers), **more}}


def check(**changes: object) -> list[int]:
    raw: dict[str, Any] = {"name": "nano", "model": {"name": "tiny"}, **changes}
    return configure(parse(raw, "test"), SERVED)


@pytest.mark.parametrize(
    ("layers", "resolved"),
    [("all", [0, 1, 2, 3]), ([3, 0, -1], [0, 3]), ("0:4:2", [0, 2]), ("-2:", [2, 3]), ("::-1", [0, 1, 2, 3])],
)
def test_layers_are_resolved(layers: str | list[int], resolved: list[int]) -> None:
    assert resolve_layers(Capture(layers=layers), 4) == resolved


def test_a_fitting_config_gives_its_layers() -> None:
    assert check() == [0, 1, 2, 3]
    assert check(capture={"layers": [0, 2], "hook_points": ["mlp.output"]}) == [0, 2]
    assert check(capture={"enabled": False}, **zero(-2)) == []
    assert check(model={"name": "tiny", "dtype": "auto", "revision": "abc"}) == [0, 1, 2, 3]
    assert check(analysis=sae(-1, 0), capture={"layers": [0, 3]}) == [0, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "gpt2"}}, "the server serves the model tiny, but the config names gpt2"),
        (
            {"model": {"name": "tiny", "dtype": "float32"}},
            "computes in bfloat16, but the config says model.dtype float32",
        ),
        ({"model": {"name": "tiny", "revision": "x"}}, "serves revision abc, but the config names x"),
        ({"generation": {"max_tokens": 4096}}, "max_tokens is 4096, which leaves no room .* tiny .4096 tokens"),
        ({"capture": {"layers": [0, 9]}}, "there is no layer 9, the model has 0 to 3"),
        ({"capture": {"layers": [-5]}}, "there is no layer -5"),
        ({"capture": {"layers": "7:"}}, "capture.layers '7:' names no layer of the model's 4"),
        ({"capture": {"layers": "0:4:0"}}, "names no layer"),
        (
            {"capture": {"hook_points": ["mlp.outptu"]}},
            "tiny has no hook point 'mlp.outptu'; it has input_layernorm.output, post_attention_layernorm.output, mlp",
        ),
        ({"analysis": sae(4)}, "analysis.sae: layer 4 is not captured; 0, 1, 2, 3 are"),
        ({"analysis": sae(-5)}, "analysis.sae: layer -5 is not captured"),
        ({"analysis": sae(-1), "capture": {"layers": [0, 2]}}, "analysis.sae: layer -1 is not captured; 0, 2 are"),
        (
            {"analysis": sae(0, hook_points=["mlp.output"])},
            "analysis.sae: 'mlp.output' is not captured; input_layernorm.output, post_attention_layernorm.output are",
        ),
        ({"analysis": sae(0), "capture": {"enabled": False}}, "analysis.sae needs activations, but capture.enabled is"),
        (zero(4), "variants.cut.interventions: there is no layer 4, the model has 0 to 3"),
        (zero(-5), "there is no layer -5"),
        (
            zero(0, "output"),
            "variants.cut.interventions: tiny has no hook point 'output'; it has input_layernorm.output",
        ),
        (zero(-1), "'mlp.output' is not in layer -1 of tiny"),
        ({"capture": {"hook_points": ["mlp.output"]}}, r"'mlp.output' is not in layers \[1, 3\] of tiny"),
    ],
)
def test_what_the_model_lacks_is_refused_in_one_sentence(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(**changes)
