from pathlib import Path
from typing import Any

import pytest

from emopfx import config_identity
from emopfx.config_file import override, parse, read_yaml
from emopfx.errors import InputError


def steered(**changes: Any) -> dict[str, Any]:
    one = {"kind": "add", "layer": 1, "vector": "v.safetensors", "scale": 4, **changes}
    return {"name": "a", "variants": [{"name": "x", "interventions": [one]}]}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "name is required"),
        ({"name": "Big"}, "name must be 1 to 40 of a-z, 0-9 and -"),
        ({"name": "a" * 41}, "name must be 1 to 40"),
        ({"name": "-a"}, "name must be 1 to 40"),
        ({"name": 7}, "name: input should be a valid string, got 7"),
        ({"name": "a", "modle": {}}, "unknown key modle; did you mean model\\? allowed here: name, model, dataset"),
        (
            {"name": "a", "generation": {"max_token": 3}},
            "unknown key generation.max_token; did you mean max_tokens\\? allowed here: max_tokens, temperature",
        ),
        ({"name": "a", "generation": {"max_tokens": 0}}, "generation.max_tokens: .* greater than or equal to 1, got 0"),
        ({"name": "a", "generation": {"max_tokens": "3"}}, "generation.max_tokens: .* valid integer, got '3'"),
        ({"name": "a", "generation": {"temperature": 3.0}}, "generation.temperature: .* less than or equal to 2"),
        ({"name": "a", "generation": {"repeats": True}}, "generation.repeats: .* valid integer, got True"),
        ({"name": "a", "model": "tiny"}, "model must be a mapping with the keys name, revision, dtype, got 'tiny'"),
        ({"name": "a", "model": {"dtype": "int8"}}, "model.dtype: .*'auto', 'float32' or 'bfloat16', got 'int8'"),
        ({"name": "a", "variants": ["angry"]}, "variants.0: unknown variant 'angry'; built in are control, "),
        ({"name": "a", "variants": ["calm", "calm"]}, "the variant 'calm' is there twice"),
        ({"name": "a", "variants": []}, "variants: .* at least 1 item"),
        ({"name": "a", "variants": [{"name": "x"}]}, "variants.0: .* needs either prefix or prefixes"),
        ({"name": "a", "variants": [{"name": "x", "interventions": []}]}, "or interventions, beside its name"),
        (
            steered(strength=1),
            "unknown key variants.0.interventions.0.strength; allowed here: kind, layer",
        ),
        (steered(kind="steer"), "variants.0.interventions.0.kind: .*'add', 'scale', 'zero' or 'replace'"),
        (steered(vector=None), "variants.0.interventions.0: an intervention of kind add needs a vector"),
        (steered(kind="zero", scale=None), "kind zero takes no vector"),
        (steered(kind="scale", vector=None, scale=None), "kind scale needs a scale"),
        (steered(vector="a#b#c"), "variants.0.interventions.0.vector: .* got 'a#b#c'"),
        (steered(scale=float("nan")), "variants.0.interventions.0.scale: .* finite number"),
        (steered(positions="last"), "variants.0.interventions.0.positions: positions can't be last"),
        (steered(positions=["-1:"]), "positions must be all, prompt, generated"),
        ({"name": "a", "variants": [{"name": "x", "prefix": ""}]}, "variants.0.prefixes.0: .* at least 1 character"),
        ({"name": "a", "variants": [{"name": "x", "prefix": "p", "tone": 1}]}, "unknown key variants.0.tone"),
        ({"name": "a", "variants": [{"name": "X/Y", "prefix": "p"}]}, "variants.0.name must be 1 to 40"),
        ({"name": "a", "variants": [{"name": "activations", "prefix": "p"}]}, "can't be named 'activations'"),
        ({"name": "a", "variants": "calm"}, "variants: .* valid list, got 'calm'"),
        ({"name": "a", "capture": {"layers": "some"}}, "capture.layers: layers must be all, a list .* got 'some'"),
        ({"name": "a", "capture": {"layers": [0, "x"]}}, "capture.layers: layers must be all"),
        ({"name": "a", "capture": {"layers": "-:"}}, "capture.layers: layers must be all, a list .* got '-:'"),
        ({"name": "a", "capture": {"layers": "9" * 5000 + ":"}}, "capture.layers: layers must be all"),
        ({"name": "a", "capture": {"positions": ["-4:"]}}, "capture.positions: .* a list of ranges"),
        ({"name": "a", "capture": {"positions": ["0:4:2"]}}, "capture.positions: .* a list of ranges"),
        ({"name": "a", "capture": {"positions": "first"}}, "capture.positions: positions must be all, prompt, "),
        ({"name": "a", "stages": ["train"]}, "stages.0: .*'deploy', 'configure', 'generate' or 'analyze'"),
        ({"name": "a", "dataset": {"path": __file__}}, "dataset.path: allowed are a .jsonl or .* got "),
        *(
            ({"name": "a", "dataset": {"path": path}}, "dataset.path: allowed are a .jsonl or .parquet file, and ")
            for path in ("no.csv", "data/no.json", "no.TXT", "./data", "../gsm8k", "/data", "a/b/c", "~/gsm8k", "a b")
        ),
        ({"name": "a", "dataset": {"path": "::no.jsonl"}}, "dataset.path: there is no file ::no.jsonl"),
        ({"name": "a", "dataset": {"path": "no.JSONL"}}, "dataset.path: there is no file no.JSONL"),
        ({"name": "a", "capture": {"layers": 64}}, "capture.layers: layers must be .* got 64; quote a slice"),
        ({"name": "a", "capture": {"positions": [64]}}, "capture.positions: .* quote a range"),
        ({"name": "a", "storage": {"s3": {}}}, "storage.s3.uri is required"),
        (
            {"name": "a", "storage": {"s3": {"uri": "bucket"}}},
            "storage.s3.uri: an S3 URI is s3://bucket or .* got 'bucket'",
        ),
        (
            {"name": "a", "storage": {"s3": {"uri": "s3://bucket", "endpoint_url": "http://me:pw@host"}}},
            "storage.s3.endpoint_url: an endpoint is http://host .* without credentials$",
        ),
        (
            {"name": "a", "storage": {"s3": {"uri": "s3://bucket", "pusch": True}}},
            "unknown key storage.s3.pusch; did you mean push\\? allowed here: uri, endpoint_url, push",
        ),
        ({"name": "a", "storage": {"s4": {}}}, "unknown key storage.s4; allowed here: s3"),
        ({"name": "a", "dataset": {"path": "no/such.jsonl"}}, "dataset.path: there is no file no/such.jsonl"),
    ],
)
def test_bad_configs_are_refused_in_one_sentence(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(raw, "my.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", ["all", [0, -1], "0:28:4", ":3", "-2:"])
def test_layers_may_be_all_a_list_or_a_slice(layers: object) -> None:
    assert parse({"name": "a", "capture": {"layers": layers}}, "x").capture.layers == layers


def test_files_are_looked_for_beside_the_config_then_under_the_working_directory_then_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "configs", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    raw = {"name": "a", "dataset": {"path": "rows.jsonl"}}
    with pytest.raises(InputError, match=r"there is no file .*configs/rows.jsonl nor rows.jsonl$"):
        parse(raw, "x", beside)
    for folder in (tmp_path, here, beside):
        (folder / "rows.jsonl").touch()
        assert parse(raw, "x", beside).dataset.path == str(folder / "rows.jsonl")
    assert parse(raw, "x").dataset.path == str(here / "rows.jsonl")


def test_the_demo_can_be_run_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = Path(__file__).parents[2] / "manifests" / "experiments" / "demo.yaml"
    monkeypatch.chdir(tmp_path)
    found = parse(read_yaml(demo), "demo.yaml", demo.parent)
    assert found.dataset.path == str(demo.with_name("demo-stories.jsonl"))


def test_what_is_no_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "rows.jsonl").mkdir()
    for path in ("gsm8k", "rows.jsonl"):
        with pytest.raises(InputError, match=f"^dataset.path: allowed are .*, got the folder {path}$"):
            parse({"name": "a", "dataset": {"path": path}}, "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nmodel: {name: tiny\nseed: 3", "my.yaml, line 3: not valid YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("name: \x00", "not valid YAML"),
        ("name: a\nseed: 1\nname: b\n", "my.yaml, line 3: not valid YAML: the key 'name' is there twice"),
        ("a: 1\nname: 2020-13-45", "my.yaml, line 2: not valid YAML: '2020-13-45' is no timestamp; quote it"),
        (f"name: {'9' * 5000}", "line 1: not valid YAML: '999.* is no int"),
        ("name: !!int foo", "line 1: not valid YAML: 'foo' is no int"),
        ("name: !!int ''", "line 1: not valid YAML: '' is no int"),
        ("name: !!bool foo", "line 1: not valid YAML: 'foo' is no bool"),
        ("name: !!timestamp foo", "line 1: not valid YAML: 'foo' is no timestamp"),
        ("name: !!map foo", "line 1: not valid YAML: expected a mapping node"),
        ("name: {[a]: b}", "line 1: not valid YAML: found unhashable key"),
        (f"name: {'[' * 3000}", "my.yaml: not valid YAML: its values are nested too deeply"),
        ("name: a\nmodel:\n  name: a\n  name: b\n", "line 4: not valid YAML: the key 'name' is there twice"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no config file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="can't read the config file"):
        read_yaml(tmp_path / "binary.yaml")
    (tmp_path / "empty.yaml").touch()
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_flags_override_single_keys() -> None:
    raw = {"name": "a", "dataset": {"samples": 3, "seed": 1}, "model": None}
    merged = override(raw, {"dataset.samples": 5, "model.name": "tiny", "name": "b"})
    assert merged == {"name": "b", "dataset": {"samples": 5, "seed": 1}, "model": {"name": "tiny"}}
    assert raw["dataset"] == {"samples": 3, "seed": 1}


@pytest.mark.parametrize(
    ("analysis", "message"),
    [
        ({"probe": {}}, "unknown key analysis.probe; did you mean probes. allowed here: probes, sae"),
        (
            {"probes": {"fold": 3}},
            "unknown key analysis.probes.fold; did you mean folds. allowed here: features, ",
        ),
        ({"probes": {"folds": 1}}, "analysis.probes.folds: input should be greater than or equal to 2, got 1"),
        ({"sae": {}}, "analysis.sae.layers is required"),
    ],
)
def test_wrong_analysis_settings_are_refused(analysis: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse({"name": "a", "analysis": analysis}, "x")


def test_the_analysis_is_no_part_of_the_hash() -> None:
    plain, probed = parse({"name": "a"}, "x"), parse({"name": "a", "analysis": {"probes": {}}}, "x")
    assert config_identity.identity(plain, {}) == config_identity.identity(probed, {})
    assert probed.analysis.probes is not None
    assert plain.analysis.probes is None
