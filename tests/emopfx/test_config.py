import jsonschema  # type: ignore[import-untyped]
import pytest

from emopfx.config import Experiment
from emopfx.config_file import parse
from emopfx.config_identity import config_hash, difference, identity
from emopfx.errors import InputError
from emopfx.variants import BUILT_IN


def experiment(**changes: object) -> Experiment:
    return parse({"name": "nano", **changes}, "test")


def hashed(**changes: object) -> str:
    return config_hash(identity(experiment(**changes), {"name": "gsm8k"}))


def test_everything_but_the_name_has_a_default() -> None:
    config = experiment()
    assert [variant.name for variant in config.variants] == list(BUILT_IN)
    assert config.model.name == "Qwen/Qwen3-0.6B"
    assert config.stages == ["deploy", "configure", "generate", "analyze"]


def test_variants_are_resolved_to_their_texts() -> None:
    config = experiment(variants=["calm", {"name": "rude", "prefix": "Oi!"}, {"name": "two", "prefixes": ["A", "B"]}])
    assert [variant.prefixes for variant in config.variants] == [list(BUILT_IN["calm"]), ["Oi!"], ["A", "B"]]


def test_a_resolved_config_means_the_same() -> None:
    cut = {"name": "cut", "interventions": [{"kind": "zero", "layer": 1}]}
    config = experiment(variants=["control", {"name": "rude", "prefix": "Oi!"}, cut], capture={"layers": [0, -1]})
    assert parse(config.model_dump(), "again") == config


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "tiny"}},
        {"model": {"dtype": "float32"}},
        {"generation": {"max_tokens": 7}},
        {"generation": {"temperature": 0.0}},
        {"generation": {"seed": 1}},
        {"generation": {"repeats": 2}},
        {"variants": ["control"]},
        {"variants": [{"name": "control", "prefix": "x"}]},
        {"variants": [{"name": "control", "interventions": [{"kind": "zero", "layer": 1}]}]},
        {"capture": {"layers": [0]}},
        {"capture": {"enabled": False}},
    ],
)
def test_the_hash_covers_what_changes_a_result(changes: dict[str, object]) -> None:
    assert hashed(**changes) != hashed()


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": {"concurrency": 1}},
        {"generation": {"max_failures": 9}},
        {"stages": ["analyze"]},
        {"name": "b"},
        {"storage": {"s3": {"uri": "s3://kept"}}},
    ],
)
def test_the_hash_leaves_out_what_does_not(changes: dict[str, object]) -> None:
    assert hashed(**changes) == hashed()


def test_the_hash_covers_dataset_vectors_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashed()
    assert config_hash(identity(experiment(), {"name": "gsm8k"}, {"v.safetensors": "00"})) != before
    assert config_hash(identity(experiment(), {"name": "other"})) != before
    monkeypatch.setattr("emopfx.config_identity.__version__", "9.9.9")
    assert hashed() != before


def test_differences_are_listed_by_key() -> None:
    old = identity(experiment(), {"samples": 8})
    new = identity(experiment(model={"dtype": "float32"}, variants=["control"]), {"samples": 9})
    lines = difference(old, new)
    assert lines[0] == "model.dtype: bfloat16 → float32"
    assert "dataset.samples: 8 → 9" in lines
    assert any(line.startswith("variants.calm: ['I feel relaxed") and line.endswith("→ (none)") for line in lines)


def test_the_schema_allows_what_the_config_allows() -> None:
    schema = Experiment.model_json_schema()
    assert schema["required"] == ["name"]
    assert schema["additionalProperties"] is False


STEERED = {"kind": "zero", "layer": 1}
LAYERS: list[object] = ["all", "0:28:4", "-2:", [0, -1]]
POSITIONS: list[object] = ["last", "all", ["0:4", ":"]]
BAD_LAYERS: list[object] = ["some", [], 64, "1:4:x"]
BAD_POSITIONS: list[object] = ["first", [], ["-4:"], [64]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"variants": ["calm", {"name": "x", "prefix": "p"}, {"name": "y", "prefixes": []}]},
        {"variants": [{"name": "x", "interventions": [STEERED]}]},
        {"variants": [{"name": "x", "prefix": "p", "interventions": [{**STEERED, "positions": ["0:4"]}]}]},
        *({"capture": {"layers": layers}} for layers in LAYERS),
        *({"capture": {"positions": positions}} for positions in POSITIONS),
        {"storage": {"s3": {"uri": "s3://kept"}}},
    ],
)
def test_the_schema_takes_what_the_config_takes(changes: dict[str, object]) -> None:
    raw = {"name": "nano", **changes}
    parse(raw, "test")
    jsonschema.validate(raw, Experiment.model_json_schema())
    resolved = parse(raw, "test").model_dump(mode="json")
    jsonschema.validate(resolved, Experiment.model_json_schema())


@pytest.mark.parametrize(
    "changes",
    [
        {"variants": ["angry"]},
        {"variants": [{"name": "x"}]},
        {"variants": [{"name": "x", "interventions": []}]},
        {"variants": [{"name": "x", "prefix": ""}]},
        {"variants": [{"name": "x", "prefix": "p", "prefixes": ["q"]}]},
        {"variants": [{"name": "x", "interventions": [{**STEERED, "positions": "last"}]}]},
        *({"capture": {"layers": layers}} for layers in BAD_LAYERS),
        *({"capture": {"positions": positions}} for positions in BAD_POSITIONS),
    ],
)
def test_the_schema_refuses_what_the_config_refuses(changes: dict[str, object]) -> None:
    raw = {"name": "nano", **changes}
    with pytest.raises(InputError):
        parse(raw, "test")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, Experiment.model_json_schema())
