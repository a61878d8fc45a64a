"""Whatever is asked, the server answers with 2xx or 4xx, and writes nowhere but under its root."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok

from tests.server.serving import RunningServer, serve
from tests.server.test_api import body

QUIET = settings(
    deadline=None,
    max_examples=15,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose data lies beside a file that it must not touch; its requests end soon."""
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "secret").write_text("untouched")
    with serve("tiny", folder / "data", "--request-seconds", "5") as server:
        yield server


def test_no_request_that_the_document_allows_makes_it_fail(fuzzed: RunningServer) -> None:
    schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/interventions", "/v1/activations/{path}"} <= {
        operation.path for operation in operations
    }
    for operation in operations:

        @given(case=operation.as_strategy())
        @QUIET
        def check(case: Any) -> None:
            case.call_and_validate(checks=[not_a_server_error], timeout=60)

        check()


def outside(folder: Path, root: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_relative_to(root)}


names = st.text(max_size=12) | st.sampled_from(
    [
        "..",
        "../x",
        "/etc",
        "a/../../b",
        "a/./b",
        ".",
        "~",
        "a\\b",
        "con",
        "a\0b",
        "é" * 200,
        "x" * 300,
        "a//b",
        "../secret",
        "metadata.json",
        "activations.safetensors",
        "a/metadata.json",
    ]
)
hook_points = st.sampled_from(
    ["output", "mlp.output", "input", "self_attn.q_proj.output", "self_attn.input", "mlp.act_fn.output", "nope", ""]
)
positions = st.sampled_from(["all", "prompt", "generated", "last_prompt"]) | st.lists(
    st.sampled_from(["0:2", ":", "3:1", "1:"]), min_size=1, max_size=2
)


@st.composite
def interventions(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly well formed: what is wrong is a place that the model lacks, or a vector of another width."""
    kind = draw(st.sampled_from(["add", "scale", "zero", "replace"]))
    made: dict[str, Any] = {"kind": kind, "layer": draw(st.integers(-5, 4)), "positions": draw(positions)}
    if draw(st.booleans()):
        made["hook_point"] = draw(hook_points)
    if kind in ("add", "replace"):
        made["vector"] = [draw(st.floats(-1e30, 1e30))] * draw(st.sampled_from([64, 64, 64, 1]))
    if kind == "scale" or (kind != "zero" and draw(st.booleans())):
        made["scale"] = draw(st.floats(-1e30, 1e30))
    return made


sane = {
    "capture": st.booleans(),
    "request_id": names,
    "save_dir": names,
    "per_request_subdir": st.booleans(),
    "layers": st.sampled_from(["all", "0:2", "::-1", "1:", ":", "x"]) | st.lists(st.integers(-9, 9), max_size=3),
    "hook_points": st.lists(hook_points, max_size=2),
    "positions": st.sampled_from(["all", "last", "prompt", "never"])
    | st.lists(st.sampled_from(["0:2", ":", "3:1", "a:"])),
    "dtype": st.sampled_from(["float32", "model", "int8"]),
    "timeout": st.floats(),
    "config_hash": st.text(max_size=5),
    "interventions": st.lists(interventions(), max_size=3),
}
well_formed = st.fixed_dictionaries(
    {"interventions": st.lists(interventions(), min_size=1, max_size=3)},
    optional={
        "request_id": st.sampled_from("abc"),
        "save_dir": st.sampled_from(["a", "a/b"]),
        "capture": st.booleans(),
    },
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    ndif=st.fixed_dictionaries({}, optional=sane)
    | well_formed
    | st.dictionaries(st.sampled_from(sorted(sane)), anything, max_size=3)
    | anything,
    stream=st.booleans(),
    n=st.integers(1, 4),
)
@settings(QUIET, max_examples=200)
def test_no_ndif_makes_it_fail_or_write_elsewhere(fuzzed: RunningServer, ndif: Any, stream: bool, n: int) -> None:
    content = json.dumps(body("Hi", max_tokens=1, ndif=ndif, stream=stream, n=n))  # NaN and half surrogates too
    with fuzzed.client() as client:
        response = client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code < 500, response.text
    beside = {path.name for path in outside(fuzzed.data.parent, fuzzed.data)}
    assert beside == {"data.server.log", "secret"}
    assert fuzzed.data.with_name("secret").read_text() == "untouched"
