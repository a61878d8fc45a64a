import json
import re
from typing import Any

import pytest

from emopfx.errors import InputError
from emopfx.kubernetes import configmap
from emopfx.kubernetes.configmap import RunRecord


def record(given: str = "name: nano\n") -> RunRecord:
    made = RunRecord("nano", "emopfx", "0123456789", given, given)
    made.stages = {"generate": {"state": "running", "job": "nano-generate-01234567"}}
    return made


def found(body: dict[str, Any], manager: str = "emopfx") -> dict[str, Any]:
    """Return a ConfigMap as the API server gives it back."""
    fields = {"manager": manager, "fieldsV1": {"f:data": {"f:experiment.yaml": {}}}}
    return {**body, "metadata": {**body["metadata"], "uid": "u1", "managedFields": [fields]}}


def test_comes_back_as_it_was_written() -> None:
    made = record()
    made.resolved, made.summary = {"name": "nano"}, {"found": 3, "expected": 4}
    body = made.body()
    assert body["metadata"]["labels"]["emopfx.dev/experiment"] == "nano"
    assert body["metadata"]["labels"]["emopfx.dev/hash"] == "01234567"
    read = RunRecord.of(found(body))
    assert read is not None
    assert not read.given_by_others
    assert {**vars(read), "object": {}} == vars(made)
    assert read.body() == {**body, "metadata": {**body["metadata"], "uid": "u1"}}


def test_leaves_an_experiment_that_was_applied_to_who_applied_it() -> None:
    read = RunRecord.of(found(record().body(), manager="kubectl"))
    assert read is not None
    assert "experiment.yaml" not in read.body()["data"]
    assert read.body()["data"]["run.yaml"] == "name: nano\n"


def test_a_config_map_with_nothing_but_an_experiment_is_no_record() -> None:
    metadata = {"name": "emopfx-nano", "labels": {}}
    assert RunRecord.of({"metadata": metadata, "data": {"experiment.yaml": "name: nano"}}) is None


def test_a_copy_of_a_record_is_no_record() -> None:
    body = found(record().body())
    body["metadata"]["name"] = "a-copy"
    assert RunRecord.of(body) is None


def test_a_record_without_labels_is_still_the_run_s() -> None:
    body = found(record().body())
    del body["metadata"]["labels"]
    read = RunRecord.of(body)
    assert read is not None
    assert (read.run, read.release) == ("nano", "")


def test_what_was_refused_is_known_without_a_record() -> None:
    stages = {"configure": {"state": "failed", "reason": "unknown key x", "refused": True}}
    metadata = {"name": "typo", "labels": {"emopfx.dev/experiment": "typo"}}
    read = configmap.applied({"metadata": metadata, "data": {"stages.json": json.dumps(stages)}})
    assert (read.run, read.hash, read.stages) == ("typo", "", stages)
    assert configmap.applied({"metadata": metadata}).stages == {}


@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        ("stages.json", "{", "stages.json is not valid JSON (Expecting"),
        ("stages.json", "[" * 100_000, "stages.json is not valid JSON (maximum recursion depth"),
        ("stages.json", "[1]", "stages.json is not what emopfx writes (Input should be a valid dictionary)"),
        ("stages.json", "3", "stages.json is not what emopfx writes"),
        ("stages.json", "null", "stages.json is not what emopfx writes"),
        ("stages.json", '{"generate": "x"}', "stages.json is not what emopfx writes (generate: "),
        ("stages.json", '{"generate": {"state": "odd"}}', "(generate.state: Input should be 'pending', "),
        ("stages.json", '{"generate": {"state": "failed", "reason": 3}}', "(generate.reason: "),
        ("stages.json", '{"publish": {"state": "failed"}}', "(publish.[key]: "),
        ("summary.json", "[1]", "summary.json is not what emopfx writes"),
        ("summary.json", '{"found": "x", "expected": 3}', "summary.json is not what emopfx writes (found: "),
        ("experiment_config.json", "[1]", "experiment_config.json is not what emopfx writes"),
        ("hash", "", "'' is not a hash"),
    ],
)
def test_a_record_that_somebody_has_broken_is_refused_in_a_sentence(key: str, text: str, sentence: str) -> None:
    body = found(record().body())
    body["data"][key] = text
    with pytest.raises(InputError, match=rf"^ConfigMap emopfx-nano: .*{re.escape(sentence)}.*somebody has changed it$"):
        RunRecord.of(body)


def test_is_never_larger_than_a_config_map_may_be() -> None:
    made = record()
    made.resolved = {"dataset": {"sample_ids": [f"gsm8k_{index:04d}" for index in range(100_000)]}}
    data = made.body()["data"]
    assert sum(map(len, data.values())) < 1 << 20
    assert "too large" in json.loads(data["experiment_config.json"])["note"]


def test_refuses_a_config_that_does_not_fit() -> None:
    with pytest.raises(InputError, match="nano: a ConfigMap holds at most 1 MiB, and this config takes 11"):
        record(f"name: nano\n# {'x' * 550_000}\n").body()


def test_summary() -> None:
    counts = {"created": "now", "expected": 4, "found": 3}
    report = {**counts, "missing": ["calm/a_1"], "statistics": {"variants": []}, "hash": "x"}
    assert configmap.summarize(report) == {**counts, "missing": 1, "variants": []}
