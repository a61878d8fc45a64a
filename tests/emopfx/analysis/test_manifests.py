"""A manifest opened by itself, on this disk and in a bucket."""

import re
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest

from emopfx.analysis.activation_file import Site
from emopfx.analysis.activations import Activations
from emopfx.analysis.answers import Answer
from emopfx.analysis.manifests import open_manifest
from emopfx.errors import InputError
from emopfx.layout import Layout, write_json
from emopfx.storage import push
from emopfx.storage.s3 import Bucket
from tests.emopfx.analysis.planted import HOOK_POINT, PROMPT, TOKENS, experiment
from tests.emopfx.storage.s3_service import CREDENTIALS, moto

SITE = Site(1, HOOK_POINT)


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture
def answers(tmp_path: Path) -> list[Answer]:
    found = experiment(tmp_path, ["control", "calm"], 3, lambda layer, variant, correct: np.zeros(16, np.float32))
    entries = {
        answer.key: {**(answer.breadcrumb or {}), "request_id": answer.key, "uri": None, "tokens": TOKENS}
        for answer in found
    }
    write_json(tmp_path / "nano" / "activations_manifest.json", entries)
    return found


def means(opened: Activations) -> dict[str, float]:
    return {key: float(rows.mean()) for key, rows in opened.rows(SITE, "generated")}


def test_a_manifest_on_this_disk_is_opened(tmp_path: Path, answers: list[Answer]) -> None:
    (tmp_path / (answers[1].breadcrumb or {})["save_dir"] / "metadata.json").write_text("{}")
    with open_manifest(str(tmp_path / "nano" / "activations_manifest.json")) as opened:
        assert len(means(opened)) == 5
        assert opened.count(answers[0].key, "prompt") == PROMPT
        assert opened.problems == {
            answers[1].key: "the manifest or metadata.json doesn't say how long prompt and answer are"
        }


def test_the_readme_s_lines_print_rows(
    tmp_path: Path, answers: list[Answer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "results").symlink_to(tmp_path)
    (tmp_path / "nano").rename(tmp_path / "demo")
    written = tmp_path / "demo" / "activations_manifest.json"
    written.write_text(written.read_text().replace("nano/", "demo/"))
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert capsys.readouterr().out.splitlines() == [f"{answer.key} ({TOKENS - PROMPT}, 16)" for answer in answers]


def test_a_manifest_in_a_bucket_is_opened(
    tmp_path: Path, answers: list[Answer], service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    client = boto3.client("s3", endpoint_url=service)
    client.create_bucket(Bucket="results")
    client.close()
    with Bucket("s3://results/some/prefix", service) as bucket:
        push.activations(Layout(tmp_path, "nano"), bucket)
    with open_manifest(str(tmp_path / "nano" / "activations_manifest.json")) as opened:
        here = means(opened)
    with open_manifest("s3://results/some/prefix/nano/activations_manifest.json", service) as opened:
        assert means(opened) == here
        assert len(here) == len(answers)
    with pytest.raises(InputError, match="no activations_manifest"), open_manifest("s3://results/none/x.json", service):
        pass


def test_no_manifest_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no .*activations_manifest"), open_manifest(f"{tmp_path}/a/b.json"):
        pass
